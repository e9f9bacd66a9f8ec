"""What a tensor of a graph holds of an input: all its values, or all of some columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, numpy_helper

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

_ALIGNED = {"Identity", "Cast", "Add", "Sub"}
"""Operators that leave every value at its place, if what they add has no more axes."""

_CUTS = ("starts", "ends", "axes", "steps")
"""What Slice takes, in the order of its inputs."""

WHOLE = {
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

Shift = tuple[int, int]
"""The smallest and the largest number that was added to an input's values."""

Place = tuple[int, int]
"""An axis of the input and an index along it."""

ALL: Place = (-1, -1)
"""In place of a column: all values of the input."""

Ranges = dict[Place, Range]


@dataclass(frozen=True, slots=True)
class Held:
    """What a tensor holds of an input.

    Attributes:
        shift: What was added to the values.
        sizes: The tensor's sizes, None where they vary, while its axes are the input's; later
            nothing.
        axis: The axis of the input that was cut; -1 for none.
        places: Indices along that axis whose values it holds all of.
    """

    shift: Shift
    sizes: tuple[int | None, ...] = ()
    axis: int = -1
    places: tuple[int, ...] = ()

    def ranges(self, found: Range | None) -> Ranges:
        """What a range of this tensor's values means for the input."""
        if found is None:
            return {}
        if self.axis < 0:
            return {ALL: found}
        return {(self.axis, place): found for place in self.places}

    def cut(self, axis: int, wanted: Sequence[int] | slice, *, keeps_axis: bool) -> "Held | None":
        """What holds the wanted indices along an axis; None where that is not a column's."""
        axis += len(self.sizes) if axis < 0 else 0
        size = self.sizes[axis] if 0 <= axis < len(self.sizes) else None
        if size is None or self.axis not in (-1, axis):
            return None
        places = self.places if self.axis == axis else tuple(range(size))
        if isinstance(wanted, slice):
            kept = places[wanted]
        elif all(-size <= index < size for index in wanted):
            kept = tuple(places[index] for index in wanted)
        else:
            return None
        sizes = (*self.sizes[:axis], len(kept), *self.sizes[axis + 1 :]) if keeps_axis else ()
        return Held(self.shift, sizes, axis, kept)


def passed_on(
    node: NodeProto, known: Mapping[str, Held], constants: Mapping[str, TensorProto]
) -> dict[str, Held]:
    """Outputs that hold all of the input's values, or all of some columns, by name."""
    held = [known[name] for name in node.input if name in known]
    if not held or node.domain not in ("", "ai.onnx"):
        return {}
    if node.op_type == "Split":
        return _split(node, held[0], constants)
    found = _only_output(node, held, node.input[0] in known, constants)
    return {} if found is None else {node.output[0]: found}


def _only_output(
    node: NodeProto, held: Sequence[Held], first: bool, constants: Mapping[str, TensorProto]
) -> Held | None:
    if node.op_type == "Gather" and first:
        return _gathered(node, held[0], constants)
    if node.op_type == "Slice" and first:
        return _sliced(node, held[0], constants)
    if len(held) > 1:
        return None
    found: Held | None = held[0]
    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        found = held[0] if to in WHOLE else None
    elif node.op_type in ("Add", "Sub"):
        found = _added(node, held[0], constants)
    elif node.op_type not in _KEEPING:
        found = None
    if found is not None and node.op_type not in _ALIGNED:
        return replace(found, sizes=())
    return found


def _gathered(node: NodeProto, held: Held, constants: Mapping[str, TensorProto]) -> Held | None:
    """Columns that are taken out by constant indices."""
    indices = _constant(node.input[1], constants)
    if indices is None or indices.ndim > 1:
        return None
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return held.cut(axis, indices.reshape(-1).tolist(), keeps_axis=indices.ndim == 1)


def _sliced(node: NodeProto, held: Held, constants: Mapping[str, TensorProto]) -> Held | None:
    """Columns along one axis, if all others stay whole."""
    parts = {name: _given(node, place, name, constants) for place, name in enumerate(_CUTS, 1)}
    starts, ends = parts["starts"], parts["ends"]
    if starts is None or ends is None or None in parts.values():
        return None
    axes = parts["axes"] or list(range(len(starts)))
    steps = parts["steps"] or [1] * len(starts)
    found: Held | None = held
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if (start, step) == (0, 1) and end >= np.iinfo(np.int32).max:
            continue
        if step < 0 or found is None:
            return None
        found = found.cut(axis, slice(start, end, step), keeps_axis=True)
    return found


def _split(node: NodeProto, held: Held, constants: Mapping[str, TensorProto]) -> dict[str, Held]:
    """Columns that lie beside each other, in several outputs."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    sizes = _given(node, 1, "split", constants)
    size = held.sizes[axis] if -len(held.sizes) <= axis < len(held.sizes) else None
    if sizes is None or size is None:
        return {}
    ends = np.cumsum(sizes or [-(-size // len(node.output))] * len(node.output)).tolist()
    found = {}
    for output, start, end in zip(node.output, [0, *ends], ends, strict=False):
        part = held.cut(axis, slice(start, end), keeps_axis=True)
        if part is not None:
            found[output] = part
    return found


def _given(
    node: NodeProto, place: int, name: str, constants: Mapping[str, TensorProto]
) -> list[int] | None:
    """Integers of an input or, before opset 10 or 13, of an attribute; empty where left out.

    None where the input is computed in each call.
    """
    if place < len(node.input) and node.input[place]:
        value = _constant(node.input[place], constants)
        return None if value is None else value.reshape(-1).tolist()
    return next((list(a.ints) for a in node.attribute if a.name == name), [])


def _constant(name: str, constants: Mapping[str, TensorProto]) -> npt.NDArray[np.generic] | None:
    """A constant that the file itself holds."""
    tensor = constants.get(name)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return numpy_helper.to_array(tensor)


def _added(node: NodeProto, held: Held, constants: Mapping[str, TensorProto]) -> Held | None:
    names = [name for name in node.input if name in constants]
    added = _constant(names[0], constants) if len(names) == 1 else None
    if added is None or (node.op_type == "Sub" and node.input[1] not in constants):
        return None  # a constant minus the values turns their order around
    if added.dtype.kind not in "iuf" or added.size == 0 or not np.array_equal(added, added // 1):
        return None
    low, high = int(added.min()), int(added.max())
    if node.op_type == "Sub":
        low, high = -high, -low
    sizes = held.sizes if added.ndim <= len(held.sizes) else ()
    return replace(held, shift=(held.shift[0] + low, held.shift[1] + high), sizes=sizes)
