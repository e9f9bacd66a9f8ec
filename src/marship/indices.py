"""Which integer inputs of a graph index a table, and how large the table is.

A range is stated only where every value of an input is surely looked up: what is masked,
clipped or cut before the table, or looked up in one branch only, may hold any number.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from marship.operators import inlined

Range = tuple[int, int]
"""Smallest and largest index, both included."""

_KEEPING = {
    "Concat",
    "Expand",
    "Flatten",
    "Identity",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators whose output holds every value of the input."""

_WHOLE = {
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
    TensorProto.DOUBLE,
    TensorProto.FLOAT,
}
"""Types that a Cast of an index keeps its value in; float32 does up to 2^24 rows."""

_LOOKUPS = {
    ("", "Gather"): ((1, 0),),
    ("", "GatherElements"): ((1, 0),),
    ("ai.onnx", "Gather"): ((1, 0),),
    ("com.microsoft", "TorchEmbedding"): ((1, 0),),
    ("com.microsoft", "GatherBlockQuantized"): ((1, 0),),
    ("com.microsoft", "EmbedLayerNormalization"): ((0, 2), (1, 4)),
    ("com.microsoft", "QEmbedLayerNormalization"): ((0, 2), (1, 4)),
}
"""By operator, pairs of an input of indices and the input that is their table."""


def index_ranges(model: ModelProto) -> dict[str, Range]:
    """The range of each input of whole numbers that indexes a table, by its name.

    ONNX counts negative indices from a table's end, PyTorch's Embedding refuses them; a range
    starts at 0, as a model is trained. What indexes several tables must fit them all.
    """
    whole = inlined(model)
    sizes = _TableSizes(whole)
    found = {}
    for value in whole.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind not in _WHOLE - {TensorProto.DOUBLE, TensorProto.FLOAT}:
            continue
        bounds = _Trace(sizes).bounds(whole.graph, {value.name: (0, 0)}, {})
        if bounds is not None and bounds[0] <= bounds[1]:
            found[value.name] = bounds
    return found


Shift = tuple[int, int]
"""The smallest and the largest number that was added to an input's values."""


@dataclass(slots=True)
class _Trace:
    """Follows an input's values to the tables that they index."""

    sizes: "_TableSizes"

    def bounds(
        self, graph: GraphProto, shifts: Mapping[str, Shift], outer: Mapping[str, TensorProto]
    ) -> Range | None:
        """What the input's values must lie in; None where the graph does not say.

        Args:
            graph: The graph or subgraph.
            shifts: Tensors that hold all the input's values, and what was added to them.
            outer: Constants of the graphs around this one.
        """
        known = dict(shifts)
        constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
        found: Range | None = None
        for node in graph.node:
            _note_constant(node, constants)
            for place, table in _LOOKUPS.get((node.domain, node.op_type), ()):
                if place < len(node.input) and node.input[place] in known:
                    size = self.sizes.along(node, node.input[table], constants)
                    found = _both(found, _unshifted(size, known[node.input[place]]))
            found = _both(found, self._inside(node, known, constants))
            shift = _passed_on(node, known, constants)
            if shift is not None:
                known[node.output[0]] = shift
        return found

    def _inside(
        self,
        node: NodeProto,
        known: Mapping[str, Shift],
        constants: Mapping[str, TensorProto],
    ) -> Range | None:
        """What a subgraph demands that is surely run.

        One branch of an If is; the body of a Scan is, with each part of what it goes through.
        A Loop may end before its first round.
        """
        bodies = {a.name: a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH}
        if node.op_type == "If":
            branches = [self.bounds(body, known, constants) for body in bodies.values()]
            return _either(branches)
        if node.op_type == "Scan" and node.domain == "":
            body = bodies["body"]
            scanned = next(a.i for a in node.attribute if a.name == "num_scan_inputs")
            pairs = list(zip(node.input, body.input, strict=False))[len(node.input) - scanned :]
            entering = {inner.name: known[outer] for outer, inner in pairs if outer in known}
            return self.bounds(body, {**known, **entering}, constants)
        return None


def _both(one: Range | None, other: Range | None) -> Range | None:
    if one is None or other is None:
        return one or other
    return max(one[0], other[0]), min(one[1], other[1])


def _either(ranges: list[Range | None]) -> Range | None:
    """What one of several ranges holds, where each is known."""
    known = [found for found in ranges if found is not None]
    if not known or len(known) < len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _unshifted(size: int | None, shift: Shift) -> Range | None:
    """The values that, shifted, index a table of that size; the widest of a vector's shifts."""
    return None if size is None else (-shift[1], size - 1 - shift[0])


def _passed_on(
    node: NodeProto, known: Mapping[str, Shift], constants: Mapping[str, TensorProto]
) -> Shift | None:
    """What was added to the values of an output that holds all values of the input."""
    held = [known[name] for name in node.input if name in known]
    if not held or node.domain not in ("", "ai.onnx"):
        return None
    first = known.get(node.input[0])
    if node.op_type in _KEEPING:
        return held[0] if len(held) == 1 else None
    if node.op_type == "Cast" and first is not None:
        to = next(a.i for a in node.attribute if a.name == "to")
        return first if to in _WHOLE else None
    if node.op_type in ("Add", "Sub") and len(held) == 1:
        return _added(node, held[0], constants)
    return None


def _added(node: NodeProto, shift: Shift, constants: Mapping[str, TensorProto]) -> Shift | None:
    others = [constants[name] for name in node.input if name in constants]
    if len(others) != 1 or others[0].data_location == TensorProto.EXTERNAL:
        return None
    if node.op_type == "Sub" and node.input[1] not in constants:
        return None  # a constant minus the values turns their order around
    added = numpy_helper.to_array(others[0])
    if added.dtype.kind not in "iuf" or added.size == 0 or not np.array_equal(added, added // 1):
        return None
    low, high = int(added.min()), int(added.max())
    if node.op_type == "Sub":
        low, high = -high, -low
    return shift[0] + low, shift[1] + high


def _note_constant(node: NodeProto, constants: dict[str, TensorProto]) -> None:
    if node.op_type != "Constant":
        return
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            constants[node.output[0]] = value
        elif attribute.name in ("value_int", "value_ints"):
            constants[node.output[0]] = numpy_helper.from_array(np.asarray(value, np.int64))


@dataclass(slots=True)
class _TableSizes:
    """The size of a table along the axis that is indexed, where it is one for all calls."""

    model: ModelProto
    _inferred: dict[str, tuple[int | None, ...]] | None = field(default=None)

    def along(
        self, node: NodeProto, table: str, constants: Mapping[str, TensorProto]
    ) -> int | None:
        """None where the table's size is not known, or varies."""
        known = constants.get(table)
        shape = self._shapes().get(table) if known is None else tuple(known.dims)
        axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        return shape[axis]

    def _shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes as inference finds them; those that the file states are not relied upon."""
        if self._inferred is None:
            bare = onnx.ModelProto()
            bare.CopyFrom(self.model)
            del bare.graph.value_info[:]
            try:
                graph = onnx.shape_inference.infer_shapes(bare).graph
            except (onnx.shape_inference.InferenceError, ValueError):  # over 2 GB, or odd
                graph = bare.graph
            self._inferred = {
                value.name: tuple(_dims(value))
                for value in (*graph.value_info, *graph.input)
                if value.type.tensor_type.HasField("shape")
            }
        return self._inferred


def _dims(value: onnx.ValueInfoProto) -> Iterator[int | None]:
    for axis in value.type.tensor_type.shape.dim:
        yield axis.dim_value if axis.HasField("dim_value") else None
