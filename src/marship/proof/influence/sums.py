"""Operators that compute with elements: where they leave the rows (onnx.ai, Operators)."""

from collections.abc import Sequence
from dataclasses import replace

from marship.proof.influence.tensor import (
    Mixes,
    Place,
    RowTensor,
    Rule,
    Step,
    Unknown,
    first,
    only,
    stride_of,
    unknown,
)


def elementwise(step: Step) -> list[Place]:
    """Each output's element is made of the inputs' elements at the same place (broadcasting)."""
    rank = max((len(shape) for shape in step.shapes), default=0)
    of_data: dict[Place, None] = {}
    others: dict[Place, list[RowTensor]] = {}
    for number, tensor in enumerate(step.inputs):
        if tensor is not None and (place := step.place(number)) is not None:
            here = place[0] - len(tensor.shape) + rank, place[1]
            if tensor.is_data:
                of_data[here] = None
            else:
                others.setdefault(here, []).append(tensor)
    places = [*of_data] or [*others][:1]
    if len(places) > 1:
        raise Mixes("combines different rows of a call")
    for here, tensors in others.items():
        if here not in places and not all(_is_same_along(one, here[0] - rank) for one in tensors):
            raise Mixes("combines rows of a call with constants of others")
    return places * len(step.shapes)


def _is_same_along(tensor: RowTensor, axis: int) -> bool:
    """Whether all elements along an axis, counted from the last, are equal."""
    value = tensor.value
    return value is not None and bool((value == value.take([0], axis)).all())


def dropout(step: Step) -> list[Place]:
    """Nothing while it does not train: what it draws depends on a call's size."""
    if any(step.value(2) or ()) or step.attribute("is_test", 1) == 0:
        raise Mixes("draws at random for a whole call")
    return [first(step)] * len(step.shapes)


def reduce(step: Step) -> list[Place]:
    """Values along axes become one."""
    axis, inner = first(step)
    axes = step.attribute("axes")
    if axes is None:
        axes = step.value(1)
    if not axes and step.attribute("noop_with_empty_axes", 0):
        return [(axis, inner)]
    return [_without(step, axis, inner, axes or range(step.rank()))]


def pick(step: Step) -> list[Place]:
    """The index of the largest or smallest value along an axis."""
    axis, inner = first(step)
    return [_without(step, axis, inner, [step.attribute("axis", 0)])]


def _without(step: Step, axis: int, inner: int, axes: Sequence[int]) -> Place:
    gone = {one % step.rank() for one in axes}
    if axis in gone:
        raise Mixes("reduces over the rows of a call")
    if step.attribute("keepdims", 1):
        return axis, inner
    return axis - sum(one < axis for one in gone), inner


def along(default: int) -> Rule:
    """A rule of an operator that works along one axis, and changes no other."""

    def rule(step: Step) -> list[Place]:
        axis, inner = first(step)
        if axis == step.attribute("axis", default) % step.rank():
            raise Mixes("works along the rows of a call")
        return [(axis, inner)] * len(step.shapes)

    return rule


def along_input(step: Step) -> list[Place]:
    """An operator that works along the axis that its second input states."""
    axis, inner = first(step)
    axes = step.value(1)
    if axes is None or axis in {one % step.rank() for one in axes}:
        raise Mixes("works along the rows of a call")
    return [(axis, inner)]


def softmax(step: Step) -> list[Place]:
    """One axis since opset 13, all from an axis on before."""
    if step.opset >= 13:  # noqa: PLR2004
        return along(-1)(step)
    return from_axis(1)(step)


def from_axis(default: int) -> Rule:
    """A rule of an operator that works along all axes from one on."""

    def rule(step: Step) -> list[Place]:
        axis, inner = first(step)
        if axis >= step.attribute("axis", default) % max(step.rank(), 1):
            raise Mixes("works along the rows of a call")
        return [(axis, inner)] * len(step.shapes)

    return rule


def inner_axes(count: int) -> Rule:
    """A rule of an operator that works along the last axes, and changes no other."""

    def rule(step: Step) -> list[Place]:
        axis, inner = elementwise(step)[0]
        if axis >= step.rank() - count:
            raise Mixes("works along the rows of a call")
        return [(axis, inner)] * len(step.shapes)

    return rule


def determinant(step: Step) -> list[Place]:
    """Of the matrices on the last two axes."""
    axis, inner = first(step)
    if axis >= step.rank() - 2:
        raise Mixes("works along the rows of a call")
    return [(axis, inner)]


def first_axis(step: Step) -> list[Place]:
    """Rows of all inputs are on the first axis, and all else is made of one of its elements."""
    places = {place for number in range(len(step.inputs)) if (place := step.place(number))}
    if any(axis for axis, _ in places):
        raise Mixes("works along the rows of a call")
    if len(places) != 1:
        raise Unknown
    return [*places] * len(step.shapes)


def table(step: Step) -> list[Place]:
    """Operators of ai.onnx.ml: a row of features each; one axis alone is a single row."""
    if step.rank() == 1:
        raise Unknown
    return first_axis(step)


def words(step: Step) -> list[Place]:
    """Each word for itself, unless some are left out (StringNormalizer)."""
    if step.attribute("stopwords"):
        raise Mixes("leaves out words, and moves those of other rows")
    return [first(step)]


def features(step: Step) -> list[Place]:
    """Columns of a table of rows, or elements of a constant by the indices of each row."""
    indices = step.inputs[1]
    if step.place(0) is not None:
        axis, inner = first(step)
        if axis == step.rank() - 1:
            raise Mixes("takes rows of a call by index")
        return [(axis, inner)]
    if indices is None or indices.stride is None or step.has_rows(0, but=(1,)):
        raise Unknown
    return [(len(step.shapes[0]) - 1, indices.stride)]


def one_row(step: Step) -> list[Place]:
    """Rows stay on their axis, and nothing else has any."""
    return [first(step)] * len(step.shapes)


def spectrum(step: Step) -> list[Place]:
    """Fourier transforms of a signal: rows on the first axis, or along the axis that is stated."""
    axis, inner = first(step)
    is_short = step.node.op_type == "STFT"
    along = step.attribute("axis", 1)
    if not is_short and step.opset >= 20:  # noqa: PLR2004
        along = (step.value(2) or [-2])[0]
    if axis if is_short else axis == along % step.rank():
        raise Mixes("works along the rows of a call")
    return [(axis, inner)]


def batch_norm(step: Step) -> list[Place]:
    """Each channel for itself, over all rows of the call while it trains."""
    axis, inner = first(step)
    if step.attribute("training_mode", 0) and axis != 1:
        raise Mixes("normalizes over the rows of a call")
    return [(axis, inner)] * len(step.shapes)


def instance_norm(step: Step) -> list[Place]:
    """Over all axes but the first two."""
    axis, inner = first(step)
    if axis > 1:
        raise Mixes("normalizes over the rows of a call")
    return [(axis, inner)]


def mean_variance(step: Step) -> list[Place]:
    """Over the axes of an attribute; by default over rows, too."""
    axis, inner = first(step)
    if step.opset < 9:  # noqa: PLR2004  it had no axes, but channels to go across
        raise Unknown
    if axis in {one % step.rank() for one in step.attribute("axes") or (0, 2, 3)}:
        raise Mixes("normalizes over the rows of a call")
    return [(axis, inner)]


def matmul(step: Step, right: int = 1) -> list[Place]:
    """The product of matrices, of which the leading axes are a batch (numpy.matmul)."""
    _check_others(step, (0, right))
    left_place, right_place = step.place(0), step.place(right)
    rank = len(step.shapes[0])
    places = []
    if left_place is not None:
        axis, inner = left_place
        if axis == step.rank() - 1:
            raise Mixes("sums over the rows of a call")
        lost = step.rank(right) == 1
        places.append((axis - step.rank() + rank + lost, inner))
    if right_place is not None:
        axis, inner = right_place
        if axis == step.rank(right) - 2 or step.rank(right) == 1:
            raise Mixes("sums over the rows of a call")
        lost = step.rank() == 1 and axis < step.rank(right) - 2
        places.append((axis - step.rank(right) + rank + lost, inner))
    return only(places)


def quantized_matmul(step: Step) -> list[Place]:
    """Each factor has a scale and a zero point behind it."""
    return matmul(step, right=3)


def fused_matmul(step: Step) -> list[Place]:
    """The same with a factor, and its first factor transposed or not (com.microsoft)."""
    if step.attribute("transBatchA", 0) or step.attribute("transBatchB", 0):
        raise Unknown
    left, right = (_transposed(step, number, name) for number, name in enumerate(("A", "B")))
    return matmul(replace(step, inputs=[left, right]))


def _transposed(step: Step, number: int, name: str) -> RowTensor | None:
    tensor, place = step.inputs[number], step.place(number)
    if tensor is None or not step.attribute(f"trans{name}", 0) or len(tensor.shape) == 1:
        return tensor
    rank = len(tensor.shape)
    order = [*range(rank - 2), rank - 1, rank - 2]
    shape = tuple(tensor.shape[axis] for axis in order)
    moved = None if place is None else stride_of(shape, (order.index(place[0]), place[1]))
    return replace(tensor, shape=shape, stride=moved)


def _check_others(step: Step, known: Sequence[int]) -> None:
    """Scales, zero points and lengths must be the same for all rows."""
    if step.has_rows(0, but=known):
        raise Unknown


def gemm(step: Step) -> list[Place]:
    """The product of two matrices, either transposed, plus a third."""
    places = []
    for number, name, kept in ((0, "transA", 0), (1, "transB", 1)):
        place = step.place(number)
        if place is not None:
            axis = 1 - place[0] if step.attribute(name, 0) else place[0]
            if axis != kept:
                raise Mixes("sums over the rows of a call")
            places.append((axis, place[1]))
    added = step.place(2)
    if added is not None:
        places.append((added[0] - step.rank(2) + 2, added[1]))
    return only(places)


def einsum(step: Step) -> list[Place]:
    """Sums of products by the letters of the axes."""
    equation = step.attribute("equation").decode().replace(" ", "")
    if "." in equation or "->" not in equation:
        raise Unknown  # of ellipses each term may have other axes
    terms, result = equation.split("->")
    found = []
    for number, term in enumerate(terms.split(",")):
        place = step.place(number)
        if place is not None:
            if term[place[0]] not in result:
                raise Mixes("sums over the rows of a call")
            found.append((result.index(term[place[0]]), place[1]))
    return only(found)


def pool(step: Step) -> list[Place]:
    """Each element of the first two axes for itself."""
    place = first(step)
    if place[0] > 1:
        raise Mixes("works along the rows of a call")
    if len(step.shapes) > 1:
        raise Mixes("numbers the elements of a whole call")  # Indices of MaxPool
    return [place]


def convolution(step: Step) -> list[Place]:
    """Each element of the first axis for itself; weights are constants."""
    place = first(step)
    if place[0]:
        raise Mixes("works along the rows of a call")
    return [place]


def recurrent(step: Step) -> list[Place]:
    """Steps are on the first axis and rows on the second, or the other way round."""
    axis, inner = step.place(0) or unknown()
    by_rows = step.attribute("layout", 0)
    if axis != (0 if by_rows else 1):
        raise Mixes("works along the rows of a call")
    state = 0 if by_rows else 1
    lengths, states = 4, (5, 6)
    _check_others(step, (0, lengths, *states))
    if step.place(lengths) not in (None, (0, inner)):
        raise Mixes("combines different rows of a call")
    if any(step.place(number) not in (None, (state, inner)) for number in states):
        raise Mixes("combines different rows of a call")
    return [(0 if by_rows else 2, inner), (state, inner), (state, inner)][: len(step.shapes)]


def loss(step: Step) -> list[Place]:
    """A value a row, unless they are reduced to one."""
    if step.attribute("reduction", b"mean") != b"none":
        raise Mixes("reduces over the rows of a call")
    return first_axis(step)


def attention(step: Step) -> list[Place]:
    """Rows are on the first axis; keys and values in one tensor of five axes on the second."""
    joined = 5  # axes: keys and values, rows, heads, steps, width
    _, inner = first_axis(step)[0]
    return [(int(len(shape) == joined), inner) for shape in step.shapes]
