"""Static facts about an ONNX graph from its operators.

Four facts, also within subgraphs and model-local functions: operators that generate random
numbers, operators that make rows of one call depend on each other, the constants that values are
compared with, and outputs whose size depends on values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from marship.contract import Array, Arrays
from marship.errors import ModelError

FINISHED_ROWS_STAY = "finished_rows_stay"
"""A model's attribute, and a property of its graph: loops that go on until all rows of a call are
done leave what is done as it is. Its author says so; runs look for the opposite."""

_DEFAULT_DOMAINS = ("", "ai.onnx")
_MICROSOFT = "com.microsoft"

RANDOM = {
    *((domain, name) for domain in _DEFAULT_DOMAINS for name in (
        "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    )),
    (_MICROSOFT, "Sampling"),
}  # fmt: skip
"""A `seed` attribute makes only the first call of a session deterministic."""

TRAINING_MODE = {
    **{(domain, "Dropout"): 2 for domain in _DEFAULT_DOMAINS},
    (_MICROSOFT, "BitmaskDropout"): 2,
    (_MICROSOFT, "BiasDropout"): 4,
    (_MICROSOFT, "BitmaskBiasDropout"): 4,
}
"""Operators that are random if this input is true."""

CALL_SCALES = {
    *((domain, "DynamicQuantizeLinear") for domain in _DEFAULT_DOMAINS),
    (_MICROSOFT, "DynamicQuantizeLSTM"),
    (_MICROSOFT, "DynamicQuantizeMatMul"),
}
"""Operators that quantize with one scale for a whole tensor.

QAttention, MatMulIntegerToFloat and the QLinear operators take their scale as input, so they are
as row-wise as its computation. MatMulNBits scales activations block by block within a row.
"""

_SIZES = {"Shape", "Size", "SequenceLength", "OptionalHasElement"}
"""Operators whose output depends on a tensor's size and not on its values."""

SIZED_BY_VALUES = {"Compress", "Loop", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"}
_SIZED_AS_FIRST = {"Scatter", "ScatterElements", "ScatterND"}
_SIZE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""The inputs of an operator that determine its output's size."""

_COMPARING = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_LIMITING = ("Clip", "Max", "Min", "Mod", "Sub")
_SAME_VALUES = ("Cast", "CastLike", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_MOST_ELEMENTS = 16
_MOST_CONSTANTS = 24
_SMALLEST, _LARGEST = 1e-9, 1e15
"""Numbers beyond these guard against division by zero, or mask, such as -1e38."""


class Follow(Protocol):
    """Tells for a few requests why rows depend on each other; see `marship.proof.influence`."""

    def __call__(self, parts: Sequence[Arrays], *, is_usual: bool) -> Sequence[str]:
        """Sentences, none if rows are independent."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Static facts about the rows of one call.

    Attributes:
        mixing: Why rows of one call depend on each other, a sentence for each operator.
        constants: Constants that values are compared with, those of comparison operators first.
        sized: The outputs whose size may depend on values, and not on the inputs' sizes alone.
        follow: Tells for a few requests why rows depend on each other; `marship.proof.influence`.
    """

    mixing: tuple[str, ...] = ()
    constants: tuple[float, ...] = ()
    sized: tuple[str, ...] = ()
    follow: "Follow | None" = None


def facts(model: ModelProto) -> Facts:
    """The graph's facts about the rows of one call."""
    whole = inlined(model)
    taint = _Taint()
    inputs = {value.name for value in whole.graph.input}
    taint.walk(whole.graph, inputs, set(), looped=False)
    _, sizes = _Taint(grows=False).walk(whole.graph, inputs, set(), looped=False)
    sized = tuple(value.name for value in whole.graph.output if value.name in sizes)
    return Facts(tuple(taint.mixing), tuple(_compared_with(whole.graph)), sized)


def refuse_random(model: ModelProto) -> None:
    """Reject a graph that generates random numbers.

    Raises:
        ModelError: It holds such operators; all are named.
    """
    found = list(random_operators(model))
    if found:
        raise ModelError(
            f"the model must give the same outputs twice, got random operators: "
            f"{', '.join(found)}. Take the randomness out of forward, call model.eval(), or set "
            "training_mode of Dropout to false, and export again."
        )


def quantizes(model: ModelProto) -> bool:
    """Whether values are rounded to integers on the way, which makes small differences large."""
    return any(
        node.op_type.startswith(("Quantize", "DynamicQuantize"))
        for node, _ in _nodes(inlined(model).graph, {})
    )


def recurs(model: ModelProto) -> bool:
    """Whether the graph has recurrent networks: ONNX Runtime's LSTM aborts without any steps."""
    nodes = _nodes(inlined(model).graph, {})
    return any(node.op_type.endswith(("LSTM", "GRU", "RNN")) for node, _ in nodes)


def random_operators(model: ModelProto) -> Iterator[str]:
    """The operators that generate random numbers, formatted for messages."""
    for node, constants in _nodes(inlined(model).graph, {}):
        key = (node.domain, node.op_type)
        if key in RANDOM or (key in TRAINING_MODE and _trains(node, constants)):
            yield named(node)


def inlined(model: ModelProto) -> ModelProto:
    """The model with its local functions inlined."""
    if not model.functions:
        return model
    from onnx import inliner

    return inliner.inline_local_functions(model)


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs in a node's attributes."""
    found = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return found + [
        g for a in node.attribute if a.type == onnx.AttributeProto.GRAPHS for g in a.graphs
    ]


def named(node: NodeProto) -> str:
    """A node for messages: its operator and its name, or that of its output."""
    name = node.name or next(iter(node.output), "")
    return f"{node.op_type} {name!r}"


def _nodes(
    graph: GraphProto, outer: dict[str, Array]
) -> Iterator[tuple[NodeProto, dict[str, Array]]]:
    """All nodes, including those of subgraphs, each with the small constants in scope."""
    constants = outer | _constants(graph)
    for node in graph.node:
        _note_constant(node, constants)
        yield node, constants
        for inner in subgraphs(node):
            yield from _nodes(inner, constants)


def _constants(graph: GraphProto) -> dict[str, Array]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if _is_small(tensor)
    }


def _is_small(tensor: onnx.TensorProto) -> bool:
    inside = tensor.data_location != onnx.TensorProto.EXTERNAL
    return inside and int(np.prod(tensor.dims, dtype=np.int64)) <= _MOST_ELEMENTS


def _note_constant(node: NodeProto, constants: dict[str, Array]) -> None:
    """Propagate a constant through operators that keep its values."""
    if node.op_type in _SAME_VALUES and node.input and node.input[0] in constants:
        constants[node.output[0]] = constants[node.input[0]]
    if node.op_type != "Constant":
        return
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            if _is_small(value):
                constants[node.output[0]] = numpy_helper.to_array(value)
        elif attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            constants[node.output[0]] = np.asarray(value)


def _trains(node: NodeProto, constants: dict[str, Array]) -> bool:
    """Whether a dropout is, or may be, in training mode."""
    place = TRAINING_MODE[node.domain, node.op_type]
    if len(node.input) <= place or not node.input[place]:
        return False
    mode = constants.get(node.input[place])
    return mode is None or bool(mode.any())


def _compared_with(graph: GraphProto) -> list[float]:
    """Distinct finite non-zero constants that values are compared with or clipped to."""
    found: dict[str, list[float]] = {"compared": [], "limited": []}
    for node, constants in _nodes(graph, {}):
        if node.op_type not in (*_COMPARING, *_LIMITING):
            continue
        kind = "compared" if node.op_type in _COMPARING else "limited"
        for name in node.input:
            values = constants.get(name)
            if values is not None and values.dtype.kind in "iuf":
                found[kind] += [float(value) for value in values.ravel()]
    usable = (v for v in found["compared"] + found["limited"] if _SMALLEST < abs(v) < _LARGEST)
    return list(dict.fromkeys(usable))[:_MOST_CONSTANTS]


@dataclass(slots=True)
class _Taint:
    """Taint analysis: which tensors depend on the inputs' values, and not only on their sizes.

    Attributes:
        mixing: Why rows of one call depend on each other.
        grows: Whether a state that a loop carries may grow with each iteration; most do not.
    """

    grows: bool = True
    mixing: list[str] = field(default_factory=list)

    def walk(
        self, graph: GraphProto, values: set[str], sizes: set[str], *, looped: bool
    ) -> tuple[set[str], set[str]]:
        """Record operators that mix rows.

        Args:
            graph: The graph or subgraph.
            values: Tensors whose values depend on the inputs' values.
            sizes: Tensors whose size does.
            looped: Whether it is the body of a loop, which may process one row at a time.

        Returns:
            Both sets with the graph's own tensors.
        """
        values, sizes = set(values), set(sizes)
        for node in graph.node:
            self._look(node, values, looped=looped)
            inner_values, inner_sizes = self._inner(node, values, sizes, looped=looped)
            by_value = _by_value(node, values, sizes) or inner_values
            by_size = self._by_size(node, values, sizes) or inner_sizes
            if by_value:
                values.update(node.output)
            if by_size:
                sizes.update(node.output)
        return values, sizes

    def _look(self, node: NodeProto, values: set[str], *, looped: bool) -> None:
        if node.op_type == "If" and node.input[0] in values and not looped:
            self._note(f"{named(node)} chooses a branch for the whole call by values of its rows")
        key = (node.domain, node.op_type)
        if key in CALL_SCALES and node.input[0] in values:
            self._note(f"{named(node)} quantizes with one scale for the whole call")

    def _by_size(self, node: NodeProto, values: set[str], sizes: set[str]) -> bool:
        if node.op_type == "Loop" and not self.grows and not _stacks(node):
            return any(name in sizes for name in node.input)
        return _by_size(node, values, sizes)

    def _note(self, reason: str) -> None:
        if reason not in self.mixing:
            self.mixing.append(reason)

    def _inner(
        self, node: NodeProto, values: set[str], sizes: set[str], *, looped: bool
    ) -> tuple[bool, bool]:
        """Whether outputs of a node's subgraphs depend on values, by their value and by size."""
        by_value = by_size = False
        for body in subgraphs(node):
            inside = looped or node.op_type != "If"
            given = values | _entering(node, body, values)
            while True:  # until a fixed point: outputs of an iteration are inputs of the next
                found, sized = self.walk(body, given, sizes, looped=inside)
                more = _carried(node, body, found) - given
                if not more:
                    break
                given |= more
            outputs = {value.name for value in body.output}
            by_value |= bool(outputs & found)
            by_size |= bool(outputs & sized)
        return by_value, by_size


def _by_value(node: NodeProto, values: set[str], sizes: set[str]) -> bool:
    if node.op_type in _SIZES:
        return any(name in sizes for name in node.input)
    return any(name in values for name in node.input)


def _by_size(node: NodeProto, values: set[str], sizes: set[str]) -> bool:
    if node.op_type in _SIZES:
        return False
    shaping = node.input[:1] if node.op_type in _SIZED_AS_FIRST else node.input
    if any(name in sizes for name in shaping):
        return True
    deciding: Sequence[str] = node.input if node.op_type in SIZED_BY_VALUES else ()
    if node.op_type in _SIZE_INPUTS:
        deciding = [node.input[i] for i in _SIZE_INPUTS[node.op_type] if i < len(node.input)]
    return any(name in values for name in deciding)


def _stacks(loop: NodeProto) -> bool:
    """Whether a Loop has scan outputs, with a row for each iteration (onnx.ai, Loop)."""
    carried = len(loop.input) - 2
    return len(loop.output) > carried


def _entering(node: NodeProto, body: GraphProto, values: set[str]) -> set[str]:
    """The inputs of a subgraph whose initial values depend on the inputs' values."""
    if node.op_type == "Loop":  # its body also gets the iteration number and the condition
        pairs = zip(node.input[2:], list(body.input)[2:], strict=False)
    else:
        pairs = zip(node.input, body.input, strict=False)
    return {inner.name for outer, inner in pairs if outer in values}


def _carried(node: NodeProto, body: GraphProto, found: set[str]) -> set[str]:
    """The inputs of a loop's body that are carried over from the previous iteration."""
    inputs = list(body.input)[1:] if node.op_type == "Loop" else list(body.input)
    if node.op_type not in ("Loop", "Scan"):
        return set()
    return {
        inner.name for outer, inner in zip(body.output, inputs, strict=False) if outer.name in found
    }
