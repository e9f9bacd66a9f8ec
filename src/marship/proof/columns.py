"""Tracks which tensors of a graph hold an input's values: all of them, or those of some columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, numpy_helper

Range = tuple[int, int]
"""Smallest and largest index, inclusive."""

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

_ROUNDING = {"Ceil", "Floor", "Round"}
"""Operators that keep integers, and round fractions to a neighbouring integer."""

_ALIGNED = {"Identity", "Cast", "Add", "Sub", *_ROUNDING}
"""Operators that keep every value at its place, if the added operand has no more axes."""

_CUTS = ("starts", "ends", "axes", "steps")
"""The inputs of Slice, in order."""

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
"""Types that represent an index exactly; float32 up to 2^24 rows."""

_NARROW = {TensorProto.INT8, TensorProto.INT16, TensorProto.UINT8, TensorProto.UINT16}
"""Types in which a Cast wraps larger numbers: 256 becomes 0."""

Shift = tuple[int, int]
"""The smallest and the largest offset that was added to an input's values."""

_NO_SHIFT: Shift = (0, 0)

Place = tuple[int, int]
"""An axis of the input and an index along it."""

ALL: Place = (-1, -1)
"""In place of a column: all values of the input."""

Ranges = dict[Place, Range]


@dataclass(frozen=True, slots=True)
class InputValues:
    """The values of an input that a tensor holds.

    Attributes:
        shift: The offset that was added to the values.
        shifts: Further offsets by place; empty without any.
        sizes: The tensor's sizes, None if variable, while its axes are the input's; empty
            afterwards.
        axis: The axis of the input that was cut; -1 for none.
        places: Indices along that axis of which it holds all values.
    """

    shift: Shift
    sizes: tuple[int | None, ...] = ()
    axis: int = -1
    places: tuple[int, ...] = ()
    shifts: tuple[Shift, ...] = ()

    def ranges(self, size: int | None) -> Ranges:
        """The input's ranges that follow from indexing a table of that size with this tensor."""
        if size is None:
            return {}
        if self.axis < 0:
            return {ALL: _unshifted(size, self.shift)}
        found: Ranges = {}
        for number, place in enumerate(self.places):
            more = self.shifts[number] if self.shifts else _NO_SHIFT
            low, high = _unshifted(size, (self.shift[0] + more[0], self.shift[1] + more[1]))
            other = found.get((self.axis, place), (low, high))
            found[self.axis, place] = max(low, other[0]), min(high, other[1])
        return found

    def cut(
        self, axis: int, wanted: Sequence[int] | slice, *, keeps_axis: bool
    ) -> "InputValues | None":
        """The values at some indices along an axis; None if these are not columns."""
        axis += len(self.sizes) if axis < 0 else 0
        size = self.sizes[axis] if 0 <= axis < len(self.sizes) else None
        if size is None or self.axis not in (-1, axis):
            return None
        places = self.places if self.axis == axis else tuple(range(size))
        if isinstance(wanted, slice):
            numbers = list(range(size))[wanted]
        elif all(-size <= index < size for index in wanted):
            numbers = [index % size for index in wanted]
        else:
            return None
        kept = tuple(places[number] for number in numbers)
        shifts = tuple(self.shifts[number] for number in numbers) if self.shifts else ()
        sizes = (*self.sizes[:axis], len(kept), *self.sizes[axis + 1 :]) if keeps_axis else ()
        return InputValues(self.shift, sizes, axis, kept, shifts)

    def added(self, numbers: npt.NDArray[np.generic], sign: int) -> "InputValues":
        """The values plus these numbers: one for all, or one for each column."""
        low, high = sorted((sign * int(numbers.min()), sign * int(numbers.max())))
        shape = (1,) * (len(self.sizes) - numbers.ndim) + numbers.shape
        long = [axis for axis, size in enumerate(shape) if size > 1]
        if len(long) == 1 and len(shape) == len(self.sizes) and self.axis in (-1, long[0]):
            (axis,) = long
            columns = self.cut(axis, slice(None), keeps_axis=True)
            if columns is not None and len(columns.places) == shape[axis]:
                before = columns.shifts or (_NO_SHIFT,) * shape[axis]
                more = [sign * int(number) for number in numbers.reshape(-1)]
                shifts = tuple((b[0] + m, b[1] + m) for b, m in zip(before, more, strict=True))
                return replace(columns, shifts=shifts)
        sizes = self.sizes if numbers.ndim <= len(self.sizes) else ()
        return replace(self, shift=(self.shift[0] + low, self.shift[1] + high), sizes=sizes)


def _unshifted(size: int, shift: Shift) -> Range:
    """The range of values that index a table of that size after shifting; the widest one."""
    return -shift[1], size - 1 - shift[0]


def passed_on(
    node: NodeProto, known: Mapping[str, InputValues], constants: Mapping[str, TensorProto]
) -> dict[str, InputValues]:
    """Outputs that hold all of the input's values, or all values of some columns, by name."""
    held = [known[name] for name in node.input if name in known]
    if not held or node.domain not in ("", "ai.onnx"):
        return {}
    if node.op_type == "Split":
        return _split(node, held[0], constants)
    found = _only_output(node, held, node.input[0] in known, constants)
    return {} if found is None else {node.output[0]: found}


def _only_output(
    node: NodeProto, held: Sequence[InputValues], first: bool, constants: Mapping[str, TensorProto]
) -> InputValues | None:
    if node.op_type == "Gather" and first:
        return _gathered(node, held[0], constants)
    if node.op_type == "Slice" and first:
        return _sliced(node, held[0], constants)
    if len(held) > 1:
        return None
    found: InputValues | None = held[0]
    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        found = held[0] if to in WHOLE - _NARROW else None
    elif node.op_type in ("Add", "Sub"):
        found = _added(node, held[0], constants)
    elif node.op_type not in _KEEPING | _ROUNDING:
        found = None
    if found is not None and node.op_type not in _ALIGNED:
        return replace(found, sizes=())
    return found


def _gathered(
    node: NodeProto, held: InputValues, constants: Mapping[str, TensorProto]
) -> InputValues | None:
    """Columns selected by constant indices."""
    indices = _constant(node.input[1], constants)
    if indices is None or indices.ndim > 1:
        return None
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return held.cut(axis, indices.reshape(-1).tolist(), keeps_axis=indices.ndim == 1)


def _sliced(
    node: NodeProto, held: InputValues, constants: Mapping[str, TensorProto]
) -> InputValues | None:
    """Columns along one axis, if all others are complete."""
    parts = {name: _given(node, place, name, constants) for place, name in enumerate(_CUTS, 1)}
    starts, ends = parts["starts"], parts["ends"]
    if starts is None or ends is None or None in parts.values():
        return None
    axes = parts["axes"] or list(range(len(starts)))
    steps = parts["steps"] or [1] * len(starts)
    found: InputValues | None = held
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if (start, step) == (0, 1) and end >= np.iinfo(np.int32).max:
            continue
        if found is None:
            return None
        found = found.cut(axis, slice(start, end, step), keeps_axis=True)
    return found


def _split(
    node: NodeProto, held: InputValues, constants: Mapping[str, TensorProto]
) -> dict[str, InputValues]:
    """Adjacent columns, in several outputs."""
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
    """Integers of an input or, before opset 10 or 13, of an attribute; empty if omitted.

    None if the input is computed at run time.
    """
    if place < len(node.input) and node.input[place]:
        value = _constant(node.input[place], constants)
        return None if value is None else value.reshape(-1).tolist()
    return next((list(a.ints) for a in node.attribute if a.name == name), [])


def _constant(name: str, constants: Mapping[str, TensorProto]) -> npt.NDArray[np.generic] | None:
    """A constant stored in the file."""
    tensor = constants.get(name)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return numpy_helper.to_array(tensor)


def _added(
    node: NodeProto, held: InputValues, constants: Mapping[str, TensorProto]
) -> InputValues | None:
    names = [name for name in node.input if name in constants]
    added = _constant(names[0], constants) if len(names) == 1 else None
    if added is None or (node.op_type == "Sub" and node.input[1] not in constants):
        return None  # a constant minus the values reverses their order
    if added.dtype.kind not in "iuf" or added.size == 0 or not np.array_equal(added, added // 1):
        return None
    return held.added(added, -1 if node.op_type == "Sub" else 1)
