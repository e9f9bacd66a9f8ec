"""Operators that move elements, and make none: where they leave the rows (onnx.ai, Operators)."""

import math

import numpy as np

from marship.proof.influence.numbers import STRAYS, alike, by_number
from marship.proof.influence.sums import elementwise
from marship.proof.influence.tensor import (
    Mixes,
    Place,
    Step,
    Unknown,
    different,
    first,
    place_of,
    unknown,
)

_IMAGES = 4
"""Axes of a tensor of images: rows, channels, height and width."""


def reshape(step: Step) -> list[Place]:
    """All elements stay in their order."""
    tensor = step.inputs[0]
    if tensor is None or tensor.stride is None:
        raise Unknown
    if math.prod(tensor.shape) != math.prod(step.shapes[0]):
        raise Unknown
    if step.node.op_type == "Reshape":
        _check_size(step, _reshaped(step))
    is_open = len(step.inputs) == 1 and not step.attribute("axes")
    if step.node.op_type == "Squeeze" and is_open:
        raise Mixes("takes away the axis of the rows where there is one row")
    return [place_of(step.shapes[0], tensor.stride, step.rows)]


def transpose(step: Step) -> list[Place]:
    """Axes are permuted."""
    axis, inner = first(step)
    order = step.attribute("perm") or [*reversed(range(step.rank()))]
    return [([*order].index(axis), inner)]


def concat(step: Step) -> list[Place]:
    """One after the other along an axis, which may be that of the rows."""
    axis = step.attribute("axis", 0) % len(step.shapes[0])
    places = [step.place(number) for number in range(len(step.inputs))]
    kept = {place for place in places if place is not None}
    (place,) = kept if len(kept) == 1 else different()
    if place[0] == axis:
        whole = place[1] * step.rows
        for tensor in step.inputs:
            if tensor is None or tensor.stride is None or tensor.shape[axis] % whole:
                raise Mixes("puts rows beside those of a call")
    return [place]


def split(step: Step) -> list[Place]:
    """Parts along an axis, each of which holds all rows."""
    axis, inner = first(step)
    if axis == step.attribute("axis", 0) % step.rank():
        for shape in step.shapes:
            if not shape[axis] or shape[axis] % (inner * step.rows):
                raise Mixes("cuts between the rows of a call")
    sizes, cut = step.value(1), step.attribute("axis", 0) % step.rank()
    if sizes is not None and sizes != [shape[cut] for shape in step.shapes]:
        raise Mixes(STRAYS)
    return [(axis, inner)] * len(step.shapes)


def slices(step: Step) -> list[Place]:
    """A range of each axis; of the rows' axis with all rows, in their order."""
    axis, inner = first(step)
    axes = step.value(3) or step.attribute("axes")  # the attribute before opset 10
    axes = [one % step.rank() for one in axes or range(step.rank())]
    if any(axes[one] != axis for number in (1, 2) for one in step.counted(number)):
        raise Mixes("computes with the number of rows of a call")
    return by_number(step) if axis in axes else [(axis, inner)]


def gather(step: Step) -> list[Place]:
    """Elements by index along an axis."""
    axis = step.attribute("axis", 0) % step.rank()
    rows, indices = step.place(0), step.place(1)
    if rows is None and indices is not None:
        return [(axis + indices[0], indices[1])]
    if rows is not None and indices is None and rows[0] != axis:
        return [(rows[0] + (step.rank(1) - 1 if rows[0] > axis else 0), rows[1])]
    if rows is not None and _is_known(step):
        return by_number(step)
    raise Mixes("takes rows of a call by index")


def gather_elements(step: Step) -> list[Place]:
    """Elements by index along an axis, each at its own place on the others."""
    if step.place(0) is not None and _is_known(step):
        return by_number(step)
    places = {step.place(number) for number in (0, 1)} - {None}
    (place,) = places if len(places) == 1 else different()
    if place is None or place[0] == step.attribute("axis", 0) % step.rank():
        raise Mixes("takes rows of a call by index")
    if step.place(0) is None or step.place(1) is None:
        raise Unknown
    return [place]


def gather_nd(step: Step) -> list[Place]:
    """Elements by several indices; the first axes may belong together."""
    if step.place(0) is not None and _is_known(step):
        return by_number(step)
    rows, indices = step.place(0), step.place(1)
    joined = step.attribute("batch_dims", 0)
    if not joined and indices is not None and _is_own(step):
        return [indices]
    if rows is None and indices is not None and indices[0] < step.rank(1) - 1 and not joined:
        return [indices]
    if rows is not None and rows == indices and rows[0] < joined:
        return [rows]
    raise Unknown


def scatter(step: Step) -> list[Place]:
    """Elements are put where indices say."""
    if _is_known(step):
        return by_number(step)
    if step.node.op_type == "ScatterND":
        if not _is_own(step) or step.place(2) not in (None, step.place(1)):
            raise Unknown
        return [step.place(0) or unknown()]
    places = {step.place(number) for number in range(3)}
    (place,) = places if len(places) == 1 else different()
    if place is None or place[0] == step.attribute("axis", 0) % step.rank():
        raise Mixes("puts rows of a call by index")
    return [place]


def _is_own(step: Step) -> bool:
    """Whether each row's indices of several axes lead to itself, by those of the leading axes."""
    rows, indices, tensor = step.place(0), step.place(1), step.inputs[1]
    if rows is None or indices is None or tensor is None or tensor.leading is None:
        return False
    (axis, inner), (at, own) = rows, indices
    if axis >= tensor.leading.shape[-1] or at == len(tensor.shape) - 1:
        return False
    led = tensor.leading[..., axis] % _shape(step, 0)[axis]
    # which of its row's elements it is must not depend on the row, nor must the other indices
    within = [np.delete(tensor.leading, axis, axis=-1), led % inner, led // (inner * step.rows)]
    if not all(alike(one, indices, step.rows) for one in within):
        return False
    numbers = np.arange(tensor.shape[at]) // own % step.rows
    shape = [1] * (len(tensor.shape) - 1)
    shape[at] = -1
    return bool((led // inner % step.rows == numbers.reshape(shape)).all())


def _is_known(step: Step) -> bool:
    """Whether the second input does not depend on the inputs' values."""
    indices = step.inputs[1]
    return indices is not None and indices.value is not None


def expand(step: Step) -> list[Place]:
    """Axes of one element, and new ones, are repeated; those of a number of rows are theirs."""
    place = elementwise(step)
    if counted := step.counted(1):
        (size,) = _shape(step, 1)
        if counted - {place[0][0] - len(step.shapes[0]) + size}:
            raise Mixes("repeats values by the number of rows of a call")
    _check_size(step, np.broadcast_shapes(_shape(step, 0), step.value(1) or ()))
    return place


def tile(step: Step) -> list[Place]:
    """Axes are repeated."""
    if step.counted(1):
        raise Mixes("repeats values by the number of rows of a call")
    return [first(step)]


def pad(step: Step) -> list[Place]:
    """Values before and after; none beside the rows, nor fewer."""
    axis, inner = first(step)
    pads = step.attribute("pads") or step.value(1)  # the attribute before opset 11
    axes = [one % step.rank() for one in step.value(3) or range(step.rank())]
    if axis not in axes:
        return [(axis, inner)]
    at = axes.index(axis)
    if pads is None or pads[at] or pads[at + len(axes)]:
        return by_number(step)
    return [(axis, inner)]


def one_hot(step: Step) -> list[Place]:
    """A new axis with one value set."""
    axis, inner = first(step)
    new = step.attribute("axis", -1) % len(step.shapes[0])
    return [(axis + (new <= axis), inner)]


def reverse(step: Step) -> list[Place]:
    """Steps of each row in the other order."""
    axis, inner = step.place(0) or unknown()
    if step.place(1) not in (None, (0, inner)):
        raise Unknown
    if axis != step.attribute("batch_axis", 1):
        raise Mixes("works along the rows of a call")
    return [(axis, inner)]


def resize(step: Step) -> list[Place]:
    """Axes that keep their size are not changed, in images of as many axes as ONNX Runtime knows.

    With fewer axes, or rows elsewhere than on the first, it counts the rows' axis among those of
    the image, and reads the next row with a weight of 0, which is NaN where that is infinite.
    """
    axis, inner = first(step)
    if step.attribute("mode", b"nearest") != b"nearest" and (axis or step.rank() < _IMAGES):
        raise Mixes("computes with other rows of a call, with a weight of 0")
    if step.attribute("coordinate_transformation_mode") == b"tf_crop_and_resize":
        raise Unknown
    if step.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise Unknown
    if not _keeps_size(step, axis):
        raise Mixes("resizes the axis of the rows of a call")
    axes = _resized(step)
    counted = {axes[at] for number in (2, 3) for at in step.counted(number)}
    if counted - {axis}:
        raise Mixes("computes with the number of rows of a call")
    sizes = step.value(3)
    if sizes and [step.shapes[0][one] for one in axes] != sizes:
        raise Mixes(STRAYS)
    return [(axis, inner)]


def _resized(step: Step) -> list[int]:
    return [one % step.rank() for one in step.attribute("axes") or range(step.rank())]


def _keeps_size(step: Step, axis: int) -> bool:
    """Whether a Resize states the size that an axis has, or that it is scaled by 1."""
    axes = _resized(step)
    if axis not in axes:
        return True
    at, sizes = axes.index(axis), step.value(3)
    if sizes:
        return sizes[at] == _shape(step, 0)[axis]
    scales = step.attribute("scales")  # of Upsample before opset 9
    if scales is None:
        last = min(len(step.inputs), 3) - 1  # the third input since opset 11
        tensor = step.inputs[last]
        scales = None if tensor is None else tensor.value
    if scales is None:
        raise Unknown
    return bool(scales[at] == 1)


def _reshaped(step: Step) -> tuple[int, ...]:
    """What a Reshape makes of its sizes, of which 0 is kept and -1 is the rest."""
    whole, keeps = _shape(step, 0), not step.attribute("allowzero", 0)
    wanted = step.attribute("shape") if len(step.inputs) == 1 else step.value(1)
    sizes = [whole[at] if keeps and not one else one for at, one in enumerate(wanted or ())]
    rest = math.prod(one for one in sizes if one != -1)
    return tuple(math.prod(whole) // max(rest, 1) if one == -1 else one for one in sizes)


def _check_size(step: Step, shape: tuple[int, ...]) -> None:
    """The size that a call is computed to have must be the one that is told."""
    if shape != step.shapes[0]:
        raise Mixes(STRAYS)


def _shape(step: Step, number: int) -> tuple[int, ...]:
    tensor = step.inputs[number]
    return () if tensor is None else tensor.shape
