"""An ONNX graph as operations that three parties can compute.

ONNX Runtime simplifies it first: it folds constants, shapes, and batch norm into convolutions.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from marship.contract import Contract
from marship.errors import ModelError
from marship.private.mpc.nodes import Node, Reals, taps_of, tidied
from marship.serving.private.mpc.program import Gathering

_ROWS = 7
"""A batch that no other axis is likely to equal: what is not of 7 rows has mixed them."""
_INSTEAD = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), "leave softmax to the client: export the logits"),
    **dict.fromkeys(
        ("Sigmoid", "Tanh", "Gelu", "Erf", "Elu", "Selu", "HardSwish", "HardSigmoid", "Softplus"),
        "train with ReLU, or leave the last activation to the client",
    ),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "Sqrt"),
        "train with batch norm",
    ),
    **dict.fromkeys(
        ("LSTM", "GRU", "RNN", "Attention", "Gather"), "there is no way yet: serve it sealed"
    ),
}


@dataclass
class _Graph:
    """What is known while the graph is walked.

    Attributes:
        constants: Arrays by tensor name.
        values: Nodes by tensor name.
        shapes: Of all tensors, with `_ROWS` rows.
    """

    constants: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    values: dict[str, Node] = field(default_factory=dict)

    def row(self, name: str) -> tuple[int, ...]:
        """The shape of one row of a value."""
        return self.shapes[name][1:]


class _RefusedNode(Exception):  # noqa: N818  not an error of the user's
    """Why a node cannot be computed."""


def lower(model: Path, contract: Contract) -> Node:
    """The model's output as a node, with all that it depends on.

    Raises:
        ModelError: It has other inputs than one of floats, or a node that cannot be computed: the
            message names it, and what to do.
    """
    _check_contract(contract)
    simple = _simplified(model)
    graph = _Graph(_constants(simple), _shapes(simple))
    given, wanted = simple.graph.input[0].name, simple.graph.output[0].name
    graph.values[given] = Node("the input", "input", [], prod(graph.row(given)))
    for node in simple.graph.node:
        if node.op_type == "Constant":
            graph.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            continue
        try:
            graph.values[node.output[0]] = _node(graph, node)
        except _RefusedNode as reason:
            name = node.name or node.output[0]
            raise ModelError(
                "three parties must know how to compute every node, got "
                f"{node.op_type} ({name}): {reason}."
            ) from reason
    output = graph.values.get(wanted)
    if output is None or not output.inputs:
        raise ModelError("the output must be computed of the input, got a constant or the input.")
    return tidied(output)


def _check_contract(contract: Contract) -> None:
    specs = (*contract.inputs, *contract.outputs)
    is_one = len(contract.inputs) == len(contract.outputs) == 1
    if not is_one or any(spec.dtype != "float32" for spec in specs):
        raise ModelError(
            "a model of three parties must have one input and one output, both float32, got "
            f"{', '.join(map(str, specs))}. Export it with one of each, after model.float()."
        )
    variable = [size for size in contract.inputs[0].shape[1:] if isinstance(size, str)]
    if contract.batch_axis is None or variable:
        raise ModelError(
            "a model of three parties must take rows of one fixed shape, got "
            f"{contract.inputs[0]}. Export it with a batch axis, and no other variable one."
        )


def _simplified(path: Path) -> onnx.ModelProto:
    """The graph for `_ROWS` rows, as ONNX Runtime's basic optimizations leave it."""
    import onnxruntime as ort

    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = _ROWS
    del model.graph.value_info[:]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "simple.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            simple = onnx.load(str(target))
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
            raise ModelError(
                f"{path.name} must load with a batch of {_ROWS} rows, got: {error}"
            ) from error
    return shape_inference.infer_shapes(simple, data_prop=True)


def _constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
    }


def _node(graph: _Graph, node: onnx.NodeProto) -> Node:
    shape = graph.shapes.get(node.output[0], ())
    if not shape or shape[0] != _ROWS or 0 in shape:
        raise _RefusedNode("it mixes rows, or its shape is not known")
    build = _BUILDERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if build is None:
        instead = _INSTEAD.get(node.op_type, "use Gemm, Conv, ReLU, pools and sums instead")
        raise _RefusedNode(f"it is not supported; {instead}")
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return build(graph, node, attributes)


Attributes = Mapping[str, Any]


def _value(graph: _Graph, node: onnx.NodeProto, place: int = 0) -> Node:
    """An input that depends on the model's input."""
    name = node.input[place]
    if name not in graph.values:
        raise _RefusedNode(f"its input {place} must depend on the model's input")
    return graph.values[name]


def _weights(graph: _Graph, node: onnx.NodeProto, place: int, default: float = 0.0) -> Reals:
    """An input that is a constant; the default if it is left out."""
    if place >= len(node.input) or not node.input[place]:
        return np.array(default)
    if node.input[place] not in graph.constants:
        raise _RefusedNode("it multiplies two values that depend on the input")
    found: Reals = graph.constants[node.input[place]].astype(np.float64)
    if not np.isfinite(found).all():
        raise _RefusedNode("its weights must be finite")
    return found


def _gemm(graph: _Graph, node: onnx.NodeProto, attributes: Attributes) -> Node:
    source = _value(graph, node)
    matrix = _weights(graph, node, 1) * attributes.get("alpha", 1.0)
    if attributes.get("transA") or matrix.ndim != 2:  # noqa: PLR2004  a matrix
        raise _RefusedNode("its first input must not be transposed")
    matrix = matrix.T if attributes.get("transB") else matrix
    bias = _weights(graph, node, 2) * attributes.get("beta", 1.0)
    if bias.ndim == 2 and len(bias) > 1:  # noqa: PLR2004  a matrix
        raise _RefusedNode("its bias must be the same for all rows")
    taps, width = matrix.shape
    weights = [matrix, np.broadcast_to(bias.ravel(), (width,)).copy()]
    return Node(_name(node), "linear", [source], width, taps=taps, weights=weights)


def _matmul(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
    source, matrix = _value(graph, node), _weights(graph, node, 1)
    if matrix.ndim != 2:  # noqa: PLR2004  a matrix
        raise _RefusedNode("its second input must be one matrix")
    taps, width = matrix.shape
    positions = prod(graph.row(node.input[0])[:-1])
    weights = [matrix, np.zeros(width)]
    return Node(
        _name(node), "linear", [source], positions * width,
        positions=positions, taps=taps, weights=weights,
    )  # fmt: skip


def _conv(graph: _Graph, node: onnx.NodeProto, attributes: Attributes) -> Node:
    source, kernels = _value(graph, node), _weights(graph, node, 1)
    window = _window(graph, node, attributes, kernels.shape[2:], joins_channels=True)
    groups, width = attributes.get("group", 1), len(kernels)
    channels = window.shape[0]
    full = np.zeros((width, channels, *kernels.shape[2:]))
    for group in range(groups):
        outputs = slice(group * width // groups, (group + 1) * width // groups)
        inputs = slice(group * channels // groups, (group + 1) * channels // groups)
        full[outputs, inputs] = kernels[outputs]
    bias = np.broadcast_to(_weights(graph, node, 2), (width,)).copy()
    positions, taps = prod(window.places), taps_of(window)
    return Node(
        _name(node), "linear", [source], positions * width, window, positions, taps,
        is_channelled=True, weights=[full.reshape(width, taps).T.copy(), bias],
    )  # fmt: skip


def _window(
    graph: _Graph,
    node: onnx.NodeProto,
    attributes: Attributes,
    kernel: Sequence[int],
    *,
    joins_channels: bool,
) -> Gathering:
    axes = len(kernel)
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _RefusedNode("its padding must be stated in numbers, not auto_pad")
    if attributes.get("ceil_mode") or attributes.get("storage_order"):
        raise _RefusedNode("ceil_mode and storage_order must be left out")
    ones = (1,) * axes
    window = Gathering(
        graph.row(node.input[0]),
        tuple(kernel),
        tuple(attributes.get("strides", ones)),
        tuple(attributes.get("pads", (0,) * (2 * axes))),
        tuple(attributes.get("dilations", ones)),
        joins_channels,
        repeats=not joins_channels and node.op_type.endswith("MaxPool"),
    )
    if window.places != graph.row(node.output[0])[1:]:
        raise _RefusedNode(f"its result must have axes of {window.places}")
    return window


def _pool(graph: _Graph, node: onnx.NodeProto, attributes: Attributes) -> Node:
    is_global = node.op_type.startswith("Global")
    row = graph.row(node.input[0])
    kernel = row[1:] if is_global else attributes["kernel_shape"]
    window = _window(graph, node, attributes, kernel, joins_channels=False)
    if node.op_type == "AveragePool" and any(window.pads) and attributes.get("count_include_pad"):
        raise _RefusedNode("count_include_pad must be off")
    if len(node.output) > 1 and node.output[1]:
        raise _RefusedNode("it must not give indices")
    return _pooled(graph, node, window)


def _pooled(graph: _Graph, node: onnx.NodeProto, window: Gathering) -> Node:
    operation = "maximum" if window.repeats else "average"
    return Node(_name(node), operation, [_value(graph, node)], window.counts[0], window)


def _mean(graph: _Graph, node: onnx.NodeProto, attributes: Attributes) -> Node:
    """The mean over all axes but rows and channels, as exporters write adaptive pooling."""
    row = graph.row(node.input[0])
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = graph.constants[node.input[1]].tolist()
    rank = len(row) + 1
    if sorted(axis % rank for axis in axes or ()) != list(range(2, rank)):
        raise _RefusedNode("it must be the mean of each whole channel")
    ones, none = (1,) * (rank - 2), (0,) * (2 * (rank - 2))
    return _pooled(graph, node, Gathering(row, row[1:], ones, none, ones, joins_channels=False))


def _relu(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
    source = _value(graph, node)
    return Node(_name(node), "relu", [source], source.size)


def _clip(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
    low, high = _weights(graph, node, 1, -np.inf), _weights(graph, node, 2, np.inf)
    if low != 0 or high != np.inf:
        raise _RefusedNode("it must clip at 0 from below alone; use ReLU for ReLU6")
    return _relu(graph, node, {})


def _batch_norm(graph: _Graph, node: onnx.NodeProto, attributes: Attributes) -> Node:
    gain, offset, mean, variance = (_weights(graph, node, place) for place in (1, 2, 3, 4))
    factor = gain / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    row = graph.row(node.input[0])
    shape = (len(factor), *(1,) * (len(row) - 1))
    bias = offset - mean * factor
    return _scale(graph, node, factor.reshape(shape), bias.reshape(shape))


def _scale(graph: _Graph, node: onnx.NodeProto, factor: Reals, bias: Reals, place: int = 0) -> Node:
    """`x * factor + bias`, both of one row's shape or broadcast to it."""
    source, row = _value(graph, node, place), graph.row(node.output[0])
    if prod(row) != source.size:
        raise _RefusedNode("it must keep its input's shape")
    try:
        weights = [
            np.broadcast_to(_of_row(array, len(row)), row).ravel() for array in (factor, bias)
        ]
    except ValueError as error:
        raise _RefusedNode("its constant must be the same for all rows") from error
    return Node(_name(node), "scale", [source], source.size, weights=weights)


def _of_row(array: Reals, rank: int) -> Reals:
    """A constant without the axis of rows, which must have size 1."""
    return array[0] if array.ndim == rank + 1 and len(array) == 1 else array


def _binary(
    both: str | None, by: Callable[[Reals, int], tuple[Reals, Reals]]
) -> "Callable[[_Graph, onnx.NodeProto, Attributes], Node]":
    """An operation of two values, or of one and a constant, which is then a factor and a bias."""

    def build(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
        constant = next((n for n in (0, 1) if node.input[n] in graph.constants), None)
        if constant is not None:
            factor, bias = by(_weights(graph, node, constant), constant)
            return _scale(graph, node, factor, bias, 1 - constant)
        left, right = _value(graph, node, 0), _value(graph, node, 1)
        if both is None or graph.row(node.input[0]) != graph.row(node.input[1]):
            raise _RefusedNode("it must have a constant, or two values of one shape")
        return Node(_name(node), both, [left, right], left.size)

    return build


def _difference(array: Reals, place: int) -> tuple[Reals, Reals]:
    return (np.array(1.0), -array) if place == 1 else (np.array(-1.0), array)


def _quotient(array: Reals, place: int) -> tuple[Reals, Reals]:
    if place == 0 or not array.all():
        raise _RefusedNode("it must divide by a constant that is not 0")
    return 1.0 / array, np.array(0.0)


def _larger(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
    if any(name in graph.constants for name in node.input):
        raise _RefusedNode("it must not have a constant; write max(x, c) as relu(x - c) + c")
    if len(node.input) != 2 or graph.row(node.input[0]) != graph.row(node.input[1]):  # noqa: PLR2004  two
        raise _RefusedNode("it must have two values of one shape")
    left, right = _value(graph, node, 0), _value(graph, node, 1)
    return Node(_name(node), "maximum", [left, right], left.size)


def _negated(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
    return _scale(graph, node, np.array(-1.0), np.array(0.0))


def _squared(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
    if _weights(graph, node, 1).tolist() not in (2, [2]):
        raise _RefusedNode("its exponent must be 2")
    source = _value(graph, node)
    return Node(_name(node), "multiply", [source, source], source.size)


def _same(graph: _Graph, node: onnx.NodeProto, _: Attributes) -> Node:
    return _value(graph, node)


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


_BUILDERS: Mapping[str, Callable[[_Graph, onnx.NodeProto, Attributes], Node]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), _pool),
    "ReduceMean": _mean,
    "Relu": _relu,
    "Clip": _clip,
    "BatchNormalization": _batch_norm,
    "Add": _binary("sum", lambda array, _: (np.array(1.0), array)),
    "Sub": _binary("difference", _difference),
    "Mul": _binary("multiply", lambda array, _: (array, np.array(0.0))),
    "Div": _binary(None, _quotient),
    "Max": _larger,
    "Neg": _negated,
    "Pow": _squared,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"), _same),
}
