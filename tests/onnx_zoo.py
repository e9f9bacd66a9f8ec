"""Generated ONNX graphs whose rows are independent, or are not, by construction.

A graph is a chain of stages over x, float32 of shape (n, L, D). Row-wise stages work within a row;
a graph that mixes has one stage more that works across rows, whose result is an output of its
own, so that nothing after it can undo that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

L, D, TABLE = 5, 6, 60
OPSET = 21
LATEST_IR = 10


@dataclass
class Builder:
    """Nodes and constants of a graph that is being written.

    Attributes:
        generator: Draws weights and choices.
    """

    generator: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def op(
        self, kind: str, *inputs: Any, outputs: int = 1, take: int = 0, **attributes: Any
    ) -> str:
        """Add a node; arrays among its inputs become constants. The name of one output."""
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        made = [f"{kind}_{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, name=made[0], **attributes))
        return made[take]

    def constant(self, value: Any) -> str:
        """A constant: float32 for floats, int64 for whole numbers, arrays as they are."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype({"f": np.float32, "i": np.int64, "b": bool}[array.dtype.kind])
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int) -> np.ndarray:
        """float32, normally distributed, scaled to keep the size of what they multiply."""
        return (self.generator.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    def batch(self, x: str) -> str:
        """The number of rows, int64 of shape (1,)."""
        return self.op("Shape", x, start=0, end=1)

    def scalar(self, x: str, kind: str = "ReduceMax") -> str:
        """One number for the whole of x."""
        return self.op(kind, x, keepdims=0)


Stage = Callable[[Builder, str], str]
ROW_WISE: dict[str, Stage] = {}
MIXING: dict[str, Stage] = {}
UNSHOWN: dict[str, Stage] = {}
"""Row-wise by what their values do, and not by the definitions of their operators."""


def row_wise(stage: Stage) -> Stage:
    """Note a stage that works within a row."""
    ROW_WISE[stage.__name__] = stage
    return stage


def unshown(stage: Stage) -> Stage:
    """Note a stage that works within a row by what its values do."""
    UNSHOWN[stage.__name__] = stage
    return stage


def mixing(stage: Stage) -> Stage:
    """Note a stage that works across rows."""
    MIXING[stage.__name__] = stage
    return stage


def _several(into: dict[str, Stage], stages: dict[str, Stage]) -> None:
    into.update(stages)


def _reduced(kind: str, axes: list[int] | None, then: str = "Sub") -> Stage:
    def stage(b: Builder, x: str) -> str:
        inputs = (x,) if axes is None else (x, np.array(axes))
        return b.op(then, x, b.op(kind, *inputs, keepdims=1))

    return stage


_several(
    ROW_WISE,
    {
        **{
            f"{kind.lower()}_element": (lambda b, x, kind=kind: b.op(kind, x))
            for kind in ("Relu", "Tanh", "Sigmoid", "Gelu", "Softplus", "Erf", "Abs", "Elu", "Neg")
        },
        **{
            f"{kind}_of_{'_'.join(map(str, axes))}": _reduced(kind, axes)
            for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2")
            for axes in ([1], [2], [1, 2], [-1])
        },
        "softmax": lambda b, x: b.op("Softmax", x, axis=-1),
        "softmax_over_length": lambda b, x: b.op("Softmax", x, axis=1),
        "log_softmax": lambda b, x: b.op("LogSoftmax", x, axis=2),
        "cumsum": lambda b, x: b.op("CumSum", x, np.array(1)),
        "largest": lambda b, x: b.op("TopK", x, np.array([D]), outputs=2, axis=2),
        "sorted_along_length": lambda b, x: b.op("TopK", x, np.array([L]), outputs=2, axis=1),
        "matmul": lambda b, x: b.op("MatMul", x, b.weights(D, D)),
        "add_places": lambda b, x: b.op("Add", x, b.weights(L, D)),
        "clip": lambda b, x: b.op("Clip", x, np.float32(-1).reshape(()), np.float32(1).reshape(())),
        "lp_norm": lambda b, x: b.op("LpNormalization", x, axis=2),
        "back_to_front": lambda b, x: b.op(
            "Slice", x, np.array([-1]), np.array([-99]), np.array([1]), np.array([-1])
        ),
        "instance_norm": lambda b, x: b.op(
            "InstanceNormalization", x, np.ones(L, np.float32), np.zeros(L, np.float32)
        ),
        "batch_norm_with_statistics": lambda b, x: b.op(
            "BatchNormalization", x, np.ones(L, np.float32), np.zeros(L, np.float32),
            np.zeros(L, np.float32), np.ones(L, np.float32),
        ),
        "layer_norm": lambda b, x: b.op(
            "LayerNormalization", x, np.ones(D, np.float32), np.zeros(D, np.float32)
        ),
        "convolution": lambda b, x: b.op("Conv", x, b.weights(L, L, 3), pads=[1, 1]),
        "own_products": lambda b, x: b.op(
            "MatMul", b.op("Softmax", b.op("Einsum", x, x, equation="nld,nmd->nlm")), x
        ),
    },
)  # fmt: skip


@row_wise
def attention(b: Builder, x: str) -> str:
    """Places of a row look at each other."""
    q, k, v = (b.op("MatMul", x, b.weights(D, D)) for _ in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), v)


@row_wise
def flattened_matmul(b: Builder, x: str) -> str:
    """All places as one matrix, and back."""
    flat = b.op("Reshape", x, np.array([-1, D]))
    return b.op("Reshape", b.op("Gemm", flat, b.weights(D, D)), np.array([-1, L, D]))


@row_wise
def transposed_there_and_back(b: Builder, x: str) -> str:
    """Length first, as a recurrent network wants it, and back."""
    first = b.op("Transpose", x, perm=[1, 0, 2])
    return b.op("Transpose", b.op("MatMul", first, b.weights(D, D)), perm=[1, 0, 2])


@row_wise
def recurrent(b: Builder, x: str) -> str:
    """A GRU along the length."""
    first = b.op("Transpose", x, perm=[1, 0, 2])
    w, r = b.weights(D, 3 * D).T[None], b.weights(D, 3 * D).T[None]
    states = b.op("GRU", first, np.ascontiguousarray(w), np.ascontiguousarray(r),
                  outputs=2, hidden_size=D)  # fmt: skip
    return b.op("Transpose", b.op("Squeeze", states, np.array([1])), perm=[1, 0, 2])


@row_wise
def bytes_or_floats_by_row(b: Builder, x: str) -> str:
    """A row is divided by 255 where its own largest value is over 10."""
    largest = b.op("ReduceMax", x, np.array([1, 2]), keepdims=1)
    return b.op("Where", b.op("Greater", largest, 10.0), b.op("Div", x, 255.0), x)


@row_wise
def quantized_by_row(b: Builder, x: str) -> str:
    """A scale for each row."""
    largest = b.op("ReduceMax", b.op("Abs", x), np.array([1, 2]), keepdims=1)
    scale = b.op("Add", b.op("Div", largest, 127.0), 1e-12)
    return b.op("Mul", b.op("Round", b.op("Div", x, scale)), scale)


@row_wise
def statically_quantized(b: Builder, x: str) -> str:
    """One scale that is a constant."""
    scale, zero = np.float32(0.05), np.uint8(128)
    q = b.op("QuantizeLinear", x, np.asarray(scale), np.asarray(zero))
    return b.op("DequantizeLinear", q, np.asarray(scale), np.asarray(zero))


@row_wise
def gathered_by_own_places(b: Builder, x: str) -> str:
    """A row's own largest place is looked up in it."""
    places = b.op("ArgMax", x, axis=1, keepdims=1)
    return b.op("Add", x, b.op("GatherElements", x, places, axis=1))


@unshown
def experts(b: Builder, x: str) -> str:
    """Rows of a kind are taken out, changed, and put back."""
    first = b.op("Squeeze", b.op("Slice", x, np.array([0, 0]), np.array([1, 1]), np.array([1, 2])),
                 np.array([1, 2]))  # fmt: skip
    chosen = b.op("Transpose", b.op("NonZero", b.op("Greater", first, 0.0)), perm=[1, 0])
    rows = b.op("GatherND", x, chosen)
    return b.op("ScatterND", x, chosen, b.op("MatMul", rows, b.weights(D, D)))


@row_wise
def looped(b: Builder, x: str) -> str:
    """Three rounds of a loop."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Tanh", ["h"], ["t"]),
            helper.make_node("Add", ["h", "t"], ["h_next"]),
        ],
        "body",
        _loop_inputs(),
        _loop_outputs(),
    )
    return b.op("Loop", np.array(3), np.array(True), x, body=body)


@unshown
def looped_until_done(b: Builder, x: str) -> str:
    """A loop until all rows are done, in which a row that is done stays as it is."""
    return _until_small(b, x, frozen=True)


@row_wise
def branch_on_length(b: Builder, x: str) -> str:
    """A branch on a size that is no batch's."""
    return _branch(b, x, b.op("Greater", b.op("Squeeze", b.op("Shape", x, start=1, end=2)), 3))


@row_wise
def quantized_constant(b: Builder, x: str) -> str:
    """A constant is quantized with one scale, which no row can change."""
    q = [b.op("DynamicQuantizeLinear", b.weights(L, D), outputs=3)]
    q += [q[0][:-1] + str(k) for k in (1, 2)]
    return b.op("Add", x, b.op("DequantizeLinear", *q))


@row_wise
def halves_swapped(b: Builder, x: str) -> str:
    """Columns change places."""
    left = b.op("Slice", x, np.array([0]), np.array([D // 2]), np.array([2]))
    right = b.op("Slice", x, np.array([D // 2]), np.array([D]), np.array([2]))
    return b.op("Concat", right, left, axis=2)


_several(
    MIXING,
    {
        **{
            f"{kind}_{'all' if axes is None else '_'.join(map(str, axes))}_{then}": _reduced(
                kind, axes, then
            )
            for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2")
            for axes in ([0], [0, 1], [0, 2], None)
            for then in ("Sub", "Add")
        },
        "softmax_over_batch": lambda b, x: b.op("Softmax", x, axis=0),
        "log_softmax_over_batch": lambda b, x: b.op("LogSoftmax", x, axis=0),
        "cumsum_over_batch": lambda b, x: b.op("CumSum", x, np.array(0)),
        "cumsum_backwards": lambda b, x: b.op("CumSum", x, np.array(0), reverse=1, exclusive=1),
        "rows_sorted": lambda b, x: b.op("TopK", x, b.batch(x), outputs=2, axis=0),
        "order_of_rows": lambda b, x: b.op(
            "Cast", b.op("TopK", x, b.batch(x), outputs=2, take=1, axis=0), to=TensorProto.FLOAT
        ),
        "hardmax_over_batch": lambda b, x: b.op("Hardmax", x, axis=0),
        "lp_norm_over_batch": lambda b, x: b.op("LpNormalization", x, axis=0),
        "backwards": lambda b, x: b.op(
            "Slice", x, np.array([-1]), np.array([-9999]), np.array([0]), np.array([-1])
        ),
        "first_row_added": lambda b, x: b.op("Add", x, b.op("Gather", x, np.array([0]), axis=0)),
        "last_row_added": lambda b, x: b.op("Add", x, b.op("Gather", x, np.array([-1]), axis=0)),
        "divided_by_batch": lambda b, x: b.op(
            "Div", x, b.op("Cast", b.batch(x), to=TensorProto.FLOAT)
        ),
        "across_rows": lambda b, x: b.op(
            "Einsum", x, x, x, equation="nld,mld,mke->nke"
        ),
        "mean_variance": lambda b, x: b.op("MeanVarianceNormalization", x, axes=[0, 1, 2]),
        "batch_norm_without_statistics": lambda b, x: b.op(
            "BatchNormalization", x, np.ones(L, np.float32), np.zeros(L, np.float32),
            np.zeros(L, np.float32), np.ones(L, np.float32), outputs=3, training_mode=1,
        ),
    },
)  # fmt: skip


def _bytes_or_floats(limit: float, kind: str) -> Stage:
    def stage(b: Builder, x: str) -> str:
        over = b.op("Greater", b.scalar(x, kind), limit)
        return b.op("Where", over, b.op("Div", x, 255.0), x)

    return stage


def _large_batches(limit: int, kind: str) -> Stage:
    def stage(b: Builder, x: str) -> str:
        return b.op("Where", b.op(kind, b.batch(x), limit), b.op("Mul", x, 2.0), x)

    return stage


_several(
    MIXING,
    {
        **{
            f"bytes_or_floats_{kind}_{limit:g}": _bytes_or_floats(limit, kind)
            for kind in ("ReduceMax", "ReduceMean")
            for limit in (0.5, 10.0, 200.0, 30000.0)
        },
        **{
            f"batch_{kind}_{limit}": _large_batches(limit, kind)
            for kind, limit in (("Greater", 1), ("Greater", 20), ("Greater", 64), ("Less", 100))
        },
        "odd_batches": lambda b, x: b.op(
            "Add", x, b.op("Cast", b.op("Mod", b.batch(x), 2), to=TensorProto.FLOAT)
        ),
    },
)


@mixing
def attention_across_rows(b: Builder, x: str) -> str:
    """The batch is taken for the length: batch_first was forgotten."""
    turned = b.op("Transpose", x, perm=[1, 0, 2])
    return b.op("Transpose", attention(b, turned), perm=[1, 0, 2])


@mixing
def recurrent_across_rows(b: Builder, x: str) -> str:
    """A GRU along the batch."""
    w, r = b.weights(D, 3 * D).T[None], b.weights(D, 3 * D).T[None]
    states = b.op("GRU", x, np.ascontiguousarray(w), np.ascontiguousarray(r),
                  outputs=2, hidden_size=D)  # fmt: skip
    return b.op("Squeeze", states, np.array([1]))


@mixing
def convolution_across_rows(b: Builder, x: str) -> str:
    """The batch is taken for the width."""
    turned = b.op("Transpose", x, perm=[1, 2, 0])
    made = b.op("Conv", turned, b.weights(D, D, 3), pads=[1, 1])
    return b.op("Transpose", made, perm=[2, 0, 1])


@mixing
def wrongly_reshaped(b: Builder, x: str) -> str:
    """Batch and length change places without a transpose."""
    shape = b.op("Concat", np.array([L]), b.batch(x), np.array([D]), axis=0)
    return b.op("Transpose", b.op("Reshape", x, shape), perm=[1, 0, 2])


@mixing
def rolled(b: Builder, x: str) -> str:
    """Each row has its neighbour's place."""
    head = b.op("Slice", x, np.array([0]), np.array([1]), np.array([0]))
    tail = b.op("Slice", x, np.array([1]), np.array([9999]), np.array([0]))
    return b.op("Concat", tail, head, axis=0)


@mixing
def minmax_scaled(b: Builder, x: str) -> str:
    """From 0 to 1 over the whole call."""
    low, high = b.scalar(x, "ReduceMin"), b.scalar(x)
    return b.op("Div", b.op("Sub", x, low), b.op("Add", b.op("Sub", high, low), 1e-6))


@mixing
def standardized(b: Builder, x: str) -> str:
    """Each column over the rows."""
    centred = b.op("Sub", x, b.op("ReduceMean", x, np.array([0])))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), np.array([0]))
    return b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, 1e-5)))


@mixing
def call_scale(b: Builder, x: str) -> str:
    """DynamicQuantizeLinear."""
    q = [b.op("DynamicQuantizeLinear", x, outputs=3)]
    return b.op("DequantizeLinear", q[0], *(q[0][:-1] + str(k) for k in (1, 2)))


@mixing
def call_scale_by_hand(b: Builder, x: str) -> str:
    """The same from its parts."""
    scale = b.op("Add", b.op("Div", b.scalar(b.op("Abs", x)), 15.0), 1e-9)
    return b.op("Mul", b.op("Round", b.op("Div", x, scale)), scale)


@mixing
def filtered(b: Builder, x: str) -> str:
    """Rows whose first number is positive."""
    first = b.op("Slice", x, np.array([0, 0]), np.array([1, 1]), np.array([1, 2]))
    mask = b.op("Greater", b.op("Reshape", first, np.array([-1])), 0.0)
    return b.op("Compress", x, mask, axis=0)


@mixing
def filtered_by_places(b: Builder, x: str) -> str:
    """Rows below a limit that hardly a row is above."""
    sums = b.op("ReduceMax", x, np.array([1, 2]), keepdims=0)
    places = b.op("NonZero", b.op("Less", sums, 40.0))
    return b.op("GatherND", x, b.op("Transpose", places, perm=[1, 0]))


@mixing
def branch_on_values(b: Builder, x: str) -> str:
    """A branch for the whole call."""
    return _branch(b, x, b.op("Greater", b.scalar(x, "ReduceSum"), 0.0))


@mixing
def branch_on_batch(b: Builder, x: str) -> str:
    """Another branch for large batches."""
    return _branch(b, x, b.op("Greater", b.op("Squeeze", b.batch(x)), 48))


@mixing
def looped_until_all_done(b: Builder, x: str) -> str:
    """All rows are halved until the largest of them is small."""
    return _until_small(b, x, frozen=False)


@mixing
def best_row(b: Builder, x: str) -> str:
    """The row with the largest sum is added to all."""
    best = b.op("ArgMax", b.op("ReduceSum", x, np.array([1, 2]), keepdims=0), axis=0, keepdims=1)
    return b.op("Add", x, b.op("Gather", x, best, axis=0))


@mixing
def counted(b: Builder, x: str) -> str:
    """How many rows of the call have a positive first number."""
    first = b.op("Slice", x, np.array([0, 0]), np.array([1, 1]), np.array([1, 2]))
    positive = b.op("Cast", b.op("Greater", first, 0.0), to=TensorProto.FLOAT)
    return b.op("Add", x, b.op("ReduceSum", positive, keepdims=1))


@mixing
def row_numbers(b: Builder, x: str) -> str:
    """Each row gets its place in the call."""
    numbers = b.op("Range", np.array(0), b.op("Squeeze", b.batch(x)), np.array(1))
    column = b.op("Unsqueeze", b.op("Cast", numbers, to=TensorProto.FLOAT), np.array([1, 2]))
    return b.op("Add", x, column)


def _loop_inputs() -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("h", TensorProto.FLOAT, None),
    ]


def _loop_outputs() -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("h_next", TensorProto.FLOAT, None),
    ]


def _until_small(b: Builder, x: str, *, frozen: bool) -> str:
    """Halve values until the largest is below 1; frozen rows are not halved any more."""
    constants = [
        numpy_helper.from_array(np.float32(value), name)
        for name, value in (("half", 0.5), ("one", 1.0))
    ] + [numpy_helper.from_array(np.array([1, 2]), "axes")]
    nodes = [
        helper.make_node("Abs", ["h"], ["a"]),
        helper.make_node("ReduceMax", ["a", "axes"], ["m"], keepdims=1),
        helper.make_node("Greater", ["m", "one"], ["open"]),
        helper.make_node("Mul", ["h", "half"], ["halved"]),
        helper.make_node("Where", ["open", "halved", "h"], ["h_next"])
        if frozen
        else helper.make_node("Identity", ["halved"], ["h_next"]),
        helper.make_node("ReduceMax", ["a"], ["all_m"], keepdims=0),
        helper.make_node("Greater", ["all_m", "one"], ["go_on"]),
    ]
    body = helper.make_graph(nodes, "body", _loop_inputs(), _loop_outputs(), constants)
    return b.op("Loop", np.array(200), np.array(True), x, body=body)


def _branch(b: Builder, x: str, condition: str) -> str:
    """Twice x, or x."""

    def graph(kind: str, inputs: list[str]) -> onnx.GraphProto:
        out = f"{kind}_{len(b.nodes)}_out"
        return helper.make_graph(
            [helper.make_node(kind, inputs, [out])],
            "branch",
            [],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        )

    return b.op(
        "If", condition, then_branch=graph("Add", [x, x]), else_branch=graph("Identity", [x])
    )


def _entrance(b: Builder, kind: str) -> tuple[str, onnx.ValueInfoProto]:
    """The tensor x from an input of some kind, and that input."""
    if kind == "ids":
        table = b.weights(TABLE, D) * np.linspace(0.1, 12, TABLE, dtype=np.float32)[:, None]
        x = b.op("Gather", table, "input", axis=0)
        return x, helper.make_tensor_value_info("input", TensorProto.INT64, ["n", L])
    if kind == "pixels":
        x = b.op("Cast", "input", to=TensorProto.FLOAT)
        x = b.op("Sub", b.op("Div", x, 64.0), 2.0)
        return x, helper.make_tensor_value_info("input", TensorProto.UINT8, ["n", L, D])
    if kind == "flat":
        x = b.op("Reshape", b.op("MatMul", "input", b.weights(D, L * D)), np.array([-1, L, D]))
        return x, helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", D])
    x = b.op("Identity", "input")
    return x, helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", L, D])


ENTRANCES = ("plain", "ids", "pixels", "flat")
HEADS: dict[str, Stage] = {
    "as it is": lambda b, x: b.op("Identity", x),
    "mean": lambda b, x: b.op("ReduceMean", x, np.array([1]), keepdims=0),
    "scores": lambda b, x: b.op("Flatten", b.op("MatMul", x, b.weights(D, 3))),
    "one number": lambda b, x: b.op("ReduceSum", x, np.array([1, 2]), keepdims=0),
}


def build(seed: int, mixes: str | None, entrance: str, stages: int) -> tuple[onnx.ModelProto, str]:
    """A model, and the names of its stages.

    Args:
        seed: Draws stages, their order and weights.
        mixes: The name of a stage that works across rows; None for a row-wise graph.
        entrance: One of ENTRANCES.
        stages: How many row-wise stages there are.
    """
    generator = np.random.default_rng(seed)
    chain = [str(name) for name in generator.choice(sorted(ROW_WISE), stages, replace=False)]
    if mixes is not None:
        before = str(generator.choice(sorted(KEEPS_DIFFERENCES)))
        after = [] if mixes.startswith("filtered") else chain  # ONNX Runtime aborts at no rows
        chain = [*([before] if seed % 2 else []), mixes, *after]
    head = str(generator.choice(sorted(HEADS)))
    return _chained(generator, chain, entrance, head, mixes)


def alone(stage: str) -> tuple[onnx.ModelProto, str]:
    """A model of one row-wise stage."""
    return _chained(np.random.default_rng(0), [stage], "plain", "as it is", None)


def _chained(
    generator: np.random.Generator, chain: list[str], entrance: str, head: str, mixes: str | None
) -> tuple[onnx.ModelProto, str]:
    b = Builder(generator)
    x, value = _entrance(b, entrance)
    mixed = None
    for name in chain:
        x = {**ROW_WISE, **MIXING, **UNSHOWN}[name](b, x)
        mixed = b.op("Identity", x) if name == mixes else mixed
    outputs = [HEADS[head](b, x), *([mixed] if mixed else [])]
    graph = helper.make_graph(
        b.nodes,
        "zoo",
        [value],
        [_output(name, head if i == 0 else "as it is") for i, name in enumerate(outputs)],
        b.constants,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=LATEST_IR)
    return model, " > ".join([entrance, *chain, head])


NEEDS_ANY_VALUE = {
    name for name in MIXING if name.startswith("bytes_or_floats") or name == "filtered_by_places"
}
"""Stages that mix at values which the table and the pixels of an entrance do not reach."""
KEEPS_DIFFERENCES = {"matmul", "add_places", "neg_element", "elu_element", "halves_swapped"}
"""Stages after which rows differ as much as before, so that what follows can mix them."""


def _output(name: str, head: str) -> onnx.ValueInfoProto:
    shapes = {
        "as it is": ["n", L, D],
        "mean": ["n", D],
        "scores": ["n", 3 * L],
        "one number": ["n"],
    }
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[head])
