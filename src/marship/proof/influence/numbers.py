"""Operators that move elements by indices that a call's inputs do not change: rows are numbered.

The operator itself moves the numbers of the rows in place of their elements.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from marship.contract import Array
from marship.proof.influence.tensor import (
    Mixes,
    Place,
    RowTensor,
    Step,
    TooLarge,
    Unknown,
    place_of,
    stride_of,
)

MOVED = {
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Pad": (0,),
    "Scatter": (0, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Slice": (0,),
}
"""The inputs whose elements an operator moves; the others say where to."""
STRAYS = "makes sizes that do not follow the number of rows of a call"
_FILLED = {"Pad": 2}
"""The input with a value for new elements."""
_FILLED_BY_INPUT = 11
"""The version since which that is an input, and no attribute."""
_BITS = 40
"""Of a mark: sums of some thousands are exact, and equal only where the marks are."""
_NONE = -1
"""The number of an element that belongs to no row."""
_MOST_ELEMENTS = 1 << 24


def by_number(step: Step) -> list[Place]:
    """Where the rows are once an operator has moved them.

    Raises:
        Mixes: They are not in their order, or some are missing.
        Unknown: Indices depend on the inputs' values.
        TooLarge: There are too many elements.
    """
    step = _narrowed(step)
    feeds: dict[str, Array] = {}
    for number, tensor in enumerate(step.inputs):
        if tensor is None or number == _FILLED.get(step.node.op_type):
            continue
        if number in MOVED[step.node.op_type]:
            feeds[f"i{number}"] = _numbered(tensor, step.rows)
        elif tensor.value is None:
            raise Unknown
        else:
            feeds[f"i{number}"] = tensor.value
    marked = feeds | {f"i{number}": _marked(step, number) for number in _moving(step)}
    if step.attribute("reduction", b"none") == b"none":
        place, marks = _place(_moved(step, feeds, None), step), _moved(step, marked, None)
        return [_checked(place, marks, step.rows)]
    # elements that meet in one place must be of one row: the least of them is the greatest
    most = _moved(step, feeds, "max")
    for number in _moving(step):
        held = feeds[f"i{number}"]
        feeds[f"i{number}"] = np.where(held == _NONE, np.float32(step.rows), held)
    least = _moved(step, feeds, "min")
    if (np.where(least == step.rows, _NONE, least) != most).any():
        raise Mixes("adds different rows of a call")
    return [_checked(_place(most, step), _moved(step, marked, "add"), step.rows)]


def _checked(place: Place, marks: Array, rows: int) -> Place:
    """In each row must be the same of its elements at the same places, and the same constants."""
    if not alike(marks, place, rows):
        raise Mixes("treats rows of a call by their places")
    return place


def _narrowed(step: Step) -> Step:
    """The same with one element on the axes that are neither the rows' nor cut: it is cheaper."""
    kind, tensor, place = step.node.op_type, step.inputs[0], step.place(0)
    if kind not in ("Gather", "Slice") or tensor is None or place is None:
        return step
    rank, (out,) = len(tensor.shape), step.shapes
    if kind == "Gather":
        axis = step.attribute("axis", 0) % rank
        kept, new = {axis, place[0]}, step.rank(1)
    else:
        axes = step.value(3) or step.attribute("axes") or range(rank)
        kept, new, axis = {place[0], *(one % rank for one in axes)}, 1, rank - 1
    after = new - 1  # how far a Gather's indices move the axes behind it
    moved = {at + after * (at > axis) for at in range(rank) if at not in kept}
    shape = tuple(size if at in kept else 1 for at, size in enumerate(tensor.shape))
    narrow = replace(tensor, shape=shape, stride=stride_of(shape, place))
    shapes = [tuple(1 if at in moved else size for at, size in enumerate(out))]
    return replace(step, inputs=[narrow, *step.inputs[1:]], shapes=shapes)


def _numbered(tensor: RowTensor, rows: int) -> Array:
    size = math.prod(tensor.shape)
    if size > _MOST_ELEMENTS:
        raise TooLarge
    if tensor.stride is None:
        if tensor.is_data:
            raise Unknown
        return np.full(tensor.shape, _NONE, np.float32)
    numbers = np.arange(size) // tensor.stride % rows
    return numbers.reshape(tensor.shape).astype(np.float32)


def _moving(step: Step) -> list[int]:
    return [at for at in MOVED[step.node.op_type] if at < len(step.inputs) and step.inputs[at]]


def _marked(step: Step, number: int) -> Array:
    """Marks of an input's elements, the same in each row; of a constant's by their values."""
    tensor = step.inputs[number]
    if tensor is None:
        raise Unknown
    size = math.prod(tensor.shape)
    places = np.arange(size)
    if tensor.stride is not None:
        whole = tensor.stride * step.rows
        places = places // whole * tensor.stride + places % tensor.stride
    elif tensor.value is not None:
        places = np.unique(tensor.value, return_inverse=True)[1].ravel()
    marks = np.random.default_rng(number).integers(1, 1 << _BITS, size).astype(np.float64)
    return marks[places].reshape(tensor.shape)


def alike(array: Array, place: Place, rows: int) -> bool:
    """Whether all rows at a place of an array are equal."""
    axis, inner = place
    shape = array.shape
    turns = shape[axis] // (rows * inner)
    split = array.reshape(*shape[:axis], turns, rows, inner, *shape[axis + 1 :])
    return bool((split == split.take([0], axis + 1)).all())


def _moved(step: Step, feeds: dict[str, Array], reduction: str | None) -> Array:
    import onnxruntime

    node = NodeProto()
    node.CopyFrom(step.node)
    del node.input[:], node.output[:]
    named = [f"i{number}" if f"i{number}" in feeds else "" for number in range(len(step.inputs))]
    filled = _FILLED.get(node.op_type)
    initial = []
    if filled is not None and step.opset >= _FILLED_BY_INPUT:
        named += [""] * (filled + 1 - len(named))
        named[filled] = "none"
        initial.append(onnx.numpy_helper.from_array(np.array(_NONE, feeds["i0"].dtype), "none"))
    node.input.extend(named)
    node.output.append("moved")
    for attribute in [*node.attribute]:
        if attribute.name in ("reduction", "value"):
            node.attribute.remove(attribute)
    if filled is not None and not initial:
        node.attribute.append(onnx.helper.make_attribute("value", float(_NONE)))
    opset = step.opset
    if reduction is not None:
        node.attribute.append(onnx.helper.make_attribute("reduction", reduction))
        opset = max(opset, 18)
    graph = onnx.helper.make_graph(
        [node],
        "moved",
        [onnx.helper.make_tensor_value_info(k, _kind(v), v.shape) for k, v in feeds.items()],
        [onnx.helper.make_tensor_value_info("moved", _kind(feeds["i0"]), None)],
        initial,
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal
    options.intra_op_num_threads = 1
    try:
        session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found: Array = session.run(None, feeds)[0]
    except Exception as error:  # its exceptions have no common base class
        raise Unknown from error
    return found


def _kind(array: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _place(moved: Array, step: Step) -> Place:
    """Where the numbered rows are."""
    if moved.shape != step.shapes[0]:
        raise Mixes(STRAYS)
    rows, flat = step.rows, moved.ravel()
    starts = [int(np.argmax(flat == number)) for number in (0, 1)]
    if any(flat.size == 0 or flat[at] != number for number, at in enumerate(starts)):
        raise Mixes("takes some rows of a call")
    stride = starts[1] - starts[0]
    is_whole = stride > 0 and flat.size % (stride * rows) == 0
    wanted = np.arange(flat.size) // max(stride, 1) % rows
    if not is_whole or (flat != np.where(flat == _NONE, _NONE, wanted)).any():
        raise Mixes("takes rows of a call by index, or in another order")
    return place_of(moved.shape, stride, rows)
