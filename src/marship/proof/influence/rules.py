"""The rule of each operator; those of ONNX Runtime that do the same have the same names."""

from collections.abc import Mapping

from marship.proof.influence import moves, sums
from marship.proof.influence.tensor import Rule

_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "StringConcat", "RegexFullMatch", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    "Where", "Xor", "FastGelu", "BiasGelu", "QuickGelu", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearLeakyRelu", "Affine", "ParametricSoftplus", "ScaledTanh",
    "Binarizer", "LabelEncoder", "CategoryMapper", "StringUpper", "StringLower", "StringStrip",
    "StringRegexReplace",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_CONVOLUTIONS = (
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcFusedConv",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
_POOLS = (
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
)  # fmt: skip
_TABLES = (
    "FeatureVectorizer", "Imputer", "LinearClassifier",
    "LinearRegressor", "Normalizer", "SVMClassifier", "SVMRegressor", "Scaler",
    "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "TfIdfVectorizer",
)  # fmt: skip
_ATTENTIONS = (
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "RotaryEmbedding",
    "EmbedLayerNormalization",
)  # fmt: skip
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, sums.elementwise),
    **dict.fromkeys(_REDUCTIONS, sums.reduce),
    **dict.fromkeys(_CONVOLUTIONS, sums.convolution),
    **dict.fromkeys(_POOLS, sums.pool),
    **dict.fromkeys(_TABLES, sums.table),
    **dict.fromkeys(_ATTENTIONS, sums.attention),
    **dict.fromkeys(("ArgMax", "ArgMin"), sums.pick),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), moves.reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), sums.softmax),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), sums.recurrent),
    **dict.fromkeys(("Resize", "Upsample"), moves.resize),
    **dict.fromkeys(("MatMul", "MatMulInteger", "MatMulIntegerToFloat"), sums.matmul),
    "QLinearMatMul": sums.quantized_matmul,
    "FusedMatMul": sums.fused_matmul,
    "StringNormalizer": sums.words,
    "ArrayFeatureExtractor": sums.features,
    **dict.fromkeys(("DequantizeLinear", "OneHotEncoder", "QuantizeLinear"), sums.one_row),
    **dict.fromkeys(("DFT", "STFT"), sums.spectrum),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), sums.loss),
    **dict.fromkeys(("LpNormalization", "TopK"), sums.along(-1)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), sums.from_axis(-1)),
    "SimplifiedLayerNormalization": sums.from_axis(-1),
    **dict.fromkeys(("SkipLayerNormalization", "MatMulNBits"), sums.inner_axes(1)),
    "SkipSimplifiedLayerNormalization": sums.inner_axes(1),
    **dict.fromkeys(("GroupNormalization", "LRN", "GridSample"), sums.first_axis),
    "Trilu": sums.inner_axes(2),
    "Det": sums.determinant,
    "BatchNormalization": sums.batch_norm,
    "InstanceNormalization": sums.instance_norm,
    "MeanVarianceNormalization": sums.mean_variance,
    "Transpose": moves.transpose,
    "CumSum": sums.along_input,
    "Dropout": sums.dropout,
    "Gemm": sums.gemm,
    "Einsum": sums.einsum,
    "Concat": moves.concat,
    "Split": moves.split,
    "Slice": moves.slices,
    "Gather": moves.gather,
    "GatherElements": moves.gather_elements,
    "GatherND": moves.gather_nd,
    **dict.fromkeys(("Scatter", "ScatterElements", "ScatterND"), moves.scatter),
    "ReverseSequence": moves.reverse,
    "OneHot": moves.one_hot,
    "Expand": moves.expand,
    "Tile": moves.tile,
    "Pad": moves.pad,
}
