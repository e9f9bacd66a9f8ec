"""Finds inputs of a graph that index a table, and the table's size.

A range is only stated if every value of an input, or of a column cut out of it, is certainly
looked up: values that are masked or clipped before the lookup, or looked up in one branch only,
may be arbitrary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from marship.contract import ColumnRange, TensorSpec
from marship.proof.columns import ALL, WHOLE, InputValues, Range, Ranges, passed_on
from marship.proof.operators import inlined

_NUMBERS = WHOLE | {TensorProto.FLOAT16}
"""Types of inputs that may hold indices; a Cast truncates floats."""

_PLACES = {("", "GatherND"): (1, 0), ("", "ScatterND"): (1, 0)}
"""By operator, the input with places, whose last axis has an index for each of the table's axes."""

_LOOKUPS = {
    ("", "Gather"): ((1, 0),),
    ("", "GatherElements"): ((1, 0),),
    ("", "ScatterElements"): ((1, 0),),
    ("ai.onnx", "Gather"): ((1, 0),),
    ("com.microsoft", "TorchEmbedding"): ((1, 0),),
    ("com.microsoft", "GatherBlockQuantized"): ((1, 0),),
    ("com.microsoft", "EmbedLayerNormalization"): ((0, 2), (1, 4)),
    ("com.microsoft", "QEmbedLayerNormalization"): ((0, 2), (1, 4)),
}
"""By operator, pairs of the input with indices and the input with the table."""

_FROM_END = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"}
"""Operators of ONNX that count a negative index from the end of the table."""


@dataclass(frozen=True, slots=True)
class IndexRanges:
    """Ranges of inputs that index a table, by the input's name.

    Attributes:
        whole: Ranges of inputs of which all values are indices.
        columns: Ranges of columns of inputs that are indices.
    """

    whole: Mapping[str, Range]
    columns: Mapping[str, tuple[ColumnRange, ...]]

    def stated(self, spec: TensorSpec) -> TensorSpec:
        """The spec with its ranges."""
        return replace(
            spec,
            value_range=self.whole.get(spec.name),
            column_ranges=self.columns.get(spec.name, ()),
        )


def index_ranges(model: ModelProto) -> IndexRanges:
    """The ranges of inputs that index a table.

    ONNX counts negative indices from a table's end, PyTorch's Embedding rejects them. The range of
    a table in the file starts at 0, as in training: -1 is then a client's mistake. A table that
    comes with the request takes negative ones. An index of several tables must be valid for all.
    """
    inlined_model = inlined(model)
    sizes = _TableSizes(inlined_model)
    stored = {tensor.name for tensor in inlined_model.graph.initializer}
    given = frozenset({value.name for value in inlined_model.graph.input} - stored)
    whole, columns = {}, {}
    for value in inlined_model.graph.input:
        if value.type.tensor_type.elem_type not in _NUMBERS:
            continue
        held = InputValues((0, 0), tuple(dims(value)))
        bounds = _Trace(sizes, given).bounds(inlined_model.graph, {value.name: held}, {})
        bounds = {place: both for place, both in bounds.items() if both[0] <= both[1]}
        if ALL in bounds:
            whole[value.name] = bounds.pop(ALL)
        if bounds:
            columns[value.name] = tuple(
                ColumnRange(axis, place, low, high)
                for (axis, place), (low, high) in sorted(bounds.items())
            )
    return IndexRanges(whole, columns)


@dataclass(slots=True)
class _Trace:
    """Traces an input's values to the tables that they index.

    Attributes:
        sizes: The sizes of tables.
        given: The inputs of the graph, which may be tables, too.
    """

    sizes: "_TableSizes"
    given: frozenset[str]

    def bounds(
        self, graph: GraphProto, held: Mapping[str, InputValues], outer: Mapping[str, TensorProto]
    ) -> Ranges:
        """The ranges of the input's values that the graph implies.

        Args:
            graph: The graph or subgraph.
            held: Tensors that hold all the input's values, or all values of some columns.
            outer: Constants of the enclosing graphs.
        """
        known = dict(held)
        constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
        found: Ranges = {}
        for node in graph.node:
            note_constant(node, constants)
            for place, table in _LOOKUPS.get((node.domain, node.op_type), ()):
                if place < len(node.input) and node.input[place] in known:
                    index = known[node.input[place]]
                    size = self.sizes.along(node, node.input[table], constants)
                    found = _both(found, self._ranges(index, size, node, table))
            found = _both(found, self._places(node, known, constants))
            found = _both(found, self._inside(node, known, constants))
            known |= passed_on(node, known, constants)
        return found

    def _ranges(self, index: InputValues, size: int | None, node: NodeProto, table: int) -> Ranges:
        """The ranges by a lookup in a table of this size."""
        found = index.ranges(size)
        if node.input[table] in self.given and node.op_type in _FROM_END and size is not None:
            return {place: (low - size, high) for place, (low, high) in found.items()}
        return found

    def _places(
        self,
        node: NodeProto,
        known: Mapping[str, InputValues],
        constants: Mapping[str, TensorProto],
    ) -> Ranges:
        """The ranges by a lookup of whole places: one for each column of the last axis."""
        where = _PLACES.get((node.domain, node.op_type))
        index = known.get(node.input[where[0]]) if where else None
        if where is None or index is None or not index.sizes:
            return {}
        last = len(index.sizes) - 1
        first = next((a.i for a in node.attribute if a.name == "batch_dims"), 0)
        found: Ranges = {}
        for column in range(index.sizes[last] or 0):
            part = index.cut(last, [column], keeps_axis=True)
            if part is not None:
                size = self.sizes.of(node.input[where[1]], first + column, constants)
                found = _both(found, self._ranges(part, size, node, where[1]))
        return found

    def _inside(
        self,
        node: NodeProto,
        known: Mapping[str, InputValues],
        constants: Mapping[str, TensorProto],
    ) -> Ranges:
        """The ranges by a subgraph that is certainly run.

        One branch of an If is; the body of a Scan is, with each slice of its scanned inputs. A
        Loop may have no iteration.
        """
        bodies = {a.name: a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH}
        if node.op_type == "If":
            return _either([self.bounds(body, known, constants) for body in bodies.values()])
        if node.op_type == "Scan" and node.domain == "":
            body = bodies["body"]
            scanned = next(a.i for a in node.attribute if a.name == "num_scan_inputs")
            pairs = list(zip(node.input, body.input, strict=False))[len(node.input) - scanned :]
            entering = {
                inner.name: replace(known[outer], sizes=())
                for outer, inner in pairs
                if outer in known
            }
            return self.bounds(body, {**known, **entering}, constants)
        return {}


def _both(one: Ranges, other: Ranges) -> Ranges:
    """The intersection; a range of all values applies to each column."""
    found = {**one, **other}
    for place in one.keys() & other.keys():
        found[place] = max(one[place][0], other[place][0]), min(one[place][1], other[place][1])
    return found


def _either(branches: Sequence[Ranges]) -> Ranges:
    """The union over branches, for values that are restricted in each of them."""
    first, *others = branches
    common = [place for place in first if all(place in other for other in others)]
    return {
        place: (min(b[place][0] for b in branches), max(b[place][1] for b in branches))
        for place in common
    }


def note_constant(node: NodeProto, constants: dict[str, TensorProto]) -> None:
    """Add the tensor of a node that is a constant, by its output's name."""
    if node.op_type != "Constant":
        return
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            constants[node.output[0]] = value
        elif attribute.name in ("value_int", "value_ints"):
            constants[node.output[0]] = numpy_helper.from_array(np.asarray(value, np.int64))
        elif attribute.name in ("value_string", "value_strings"):
            texts = np.asarray([value] if isinstance(value, bytes) else value, object)
            constants[node.output[0]] = numpy_helper.from_array(texts)


@dataclass(slots=True)
class _TableSizes:
    """The size of a table along the indexed axis, if it is fixed."""

    model: ModelProto
    _inferred: dict[str, tuple[int | None, ...]] | None = field(default=None)

    def along(
        self, node: NodeProto, table: str, constants: Mapping[str, TensorProto]
    ) -> int | None:
        """The size; None if it is unknown or variable."""
        axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
        return self.of(table, axis, constants)

    def of(self, table: str, axis: int, constants: Mapping[str, TensorProto]) -> int | None:
        """The size of an axis of a table; None if it is unknown or variable."""
        known = constants.get(table)
        shape = self._shapes().get(table) if known is None else tuple(known.dims)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        return shape[axis]

    def _shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Inferred shapes; those declared in the file are not trusted."""
        if self._inferred is None:
            bare = onnx.ModelProto()
            bare.CopyFrom(self.model)
            del bare.graph.value_info[:]
            try:
                graph = onnx.shape_inference.infer_shapes(bare).graph
            except (onnx.shape_inference.InferenceError, ValueError):  # over 2 GB, or invalid
                graph = bare.graph
            self._inferred = {
                value.name: tuple(dims(value))
                for value in (*graph.value_info, *graph.input)
                if value.type.tensor_type.HasField("shape")
            }
        return self._inferred


def dims(value: onnx.ValueInfoProto) -> Iterator[int | None]:
    """The sizes of a tensor's axes as the graph states them; None where they vary."""
    for axis in value.type.tensor_type.shape.dim:
        yield axis.dim_value if axis.HasField("dim_value") else None
