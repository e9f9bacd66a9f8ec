"""Operators that move elements, and make none: where they leave the rows (onnx.ai, Operators)."""

import math

from marship.proof.influence.sums import elementwise
from marship.proof.influence.tensor import (
    Mixes,
    Place,
    Step,
    Unknown,
    different,
    first,
    first_shape,
    place_of,
)


def reshape(step: Step) -> list[Place]:
    """All elements stay in their order."""
    tensor = step.inputs[0]
    if tensor is None or tensor.stride is None:
        raise Unknown
    if math.prod(tensor.shape) != math.prod(step.shapes[0]):
        raise Unknown
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
    return [(axis, inner)] * len(step.shapes)


def slices(step: Step) -> list[Place]:
    """A range of each axis; of the rows' axis with all rows, in their order."""
    axis, inner = first(step)
    shape, size = first_shape(step), step.shapes[0][axis]
    starts, axes, strides = step.value(1), step.value(3), step.value(4)
    if starts is None:  # before opset 10 they are attributes
        starts, axes = step.attribute("starts"), step.attribute("axes")
    axes = [one % len(shape) for one in axes or range(len(starts))]
    if axis not in axes:
        return [(axis, inner)]
    number = axes.index(axis)
    whole = inner * step.rows
    start = starts[number] % shape[axis] if starts[number] < 0 else starts[number]
    if start % whole or size % whole or (strides is not None and strides[number] != 1):
        raise Mixes("takes some rows of a call, or takes them in another order")
    return [(axis, inner)]


def gather(step: Step) -> list[Place]:
    """Elements by index along an axis."""
    axis = step.attribute("axis", 0) % step.rank()
    rows, indices = step.place(0), step.place(1)
    if rows is None and indices is not None:
        return [(axis + indices[0], indices[1])]
    if rows is None or (indices is not None and rows[0] == axis):
        raise Mixes("takes rows of a call by index")
    if rows[0] == axis:
        raise Mixes("takes some rows of a call")
    if indices is not None:
        raise Mixes("combines different rows of a call")
    return [(rows[0] + (step.rank(1) - 1 if rows[0] > axis else 0), rows[1])]


def gather_elements(step: Step) -> list[Place]:
    """Elements by index along an axis, each at its own place on the others."""
    (place,) = {step.place(number) for number in (0, 1)} - {None} or different()
    if place is None or place[0] == step.attribute("axis", 0) % step.rank():
        raise Mixes("takes rows of a call by index")
    if step.place(0) is None or step.place(1) is None:
        raise Unknown
    return [place]


def gather_nd(step: Step) -> list[Place]:
    """Elements by several indices; the first axes may belong together."""
    rows, indices = step.place(0), step.place(1)
    joined = step.attribute("batch_dims", 0)
    if rows is None and indices is not None and indices[0] < step.rank(1) - 1 and not joined:
        return [indices]
    if rows is not None and rows == indices and rows[0] < joined:
        return [rows]
    raise Unknown


def expand(step: Step) -> list[Place]:
    """Axes of one element, and new ones, are repeated; those of a number of rows are theirs."""
    place = elementwise(step)
    shape = step.inputs[1]
    if shape is not None and shape.counts is not None:
        counted = {int(one) for one in shape.counts.nonzero()[0]}
        if counted - {place[0][0] - len(step.shapes[0]) + len(shape.counts)}:
            raise Mixes("repeats values by the number of rows of a call")
    return place


def tile(step: Step) -> list[Place]:
    """Axes are repeated."""
    repeats = step.inputs[1]
    if repeats is not None and repeats.counts is not None:
        raise Mixes("repeats values by the number of rows of a call")
    return [first(step)]


def pad(step: Step) -> list[Place]:
    """Values before and after; none beside the rows."""
    place = first(step)
    if step.shapes[0][place[0]] != first_shape(step)[place[0]]:
        raise Unknown
    return [place]


def one_hot(step: Step) -> list[Place]:
    """A new axis with one value set."""
    axis, inner = first(step)
    new = step.attribute("axis", -1) % len(step.shapes[0])
    return [(axis + (new <= axis), inner)]


def reverse(step: Step) -> list[Place]:
    """Steps of each row in the other order."""
    axis, inner = first(step)
    if axis != step.attribute("batch_axis", 1):
        raise Mixes("works along the rows of a call")
    return [(axis, inner)]


def resize(step: Step) -> list[Place]:
    """Axes that keep their size are not changed."""
    axis, inner = first(step)
    if first_shape(step)[axis] != step.shapes[0][axis]:
        raise Mixes("resizes the axis of the rows of a call")
    return [(axis, inner)]
