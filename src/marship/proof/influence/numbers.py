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
_NONE = -1
"""The number of an element that belongs to no row."""
MOST_ELEMENTS = 1 << 24


def by_number(step: Step) -> list[Place]:
    """Where the rows are once an operator has moved them.

    Raises:
        Mixes: They are not in their order, or some are missing.
        Unknown: Indices depend on the inputs' values, or there are too many elements.
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
    reduction = step.attribute("reduction", b"none")
    if reduction == b"none":
        return [_place(_moved(step, feeds, None), step)]
    # elements that meet in one place must be of one row: the least of them is the greatest
    most = _moved(step, feeds, "max")
    for number in MOVED[step.node.op_type]:
        held = feeds[f"i{number}"]
        feeds[f"i{number}"] = np.where(held == _NONE, np.float32(step.rows), held)
    least = _moved(step, feeds, "min")
    if (np.where(least == step.rows, _NONE, least) != most).any():
        raise Mixes("adds different rows of a call")
    return [_place(most, step)]


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
    if size > MOST_ELEMENTS:
        raise Unknown
    if tensor.stride is None:
        if tensor.is_data:
            raise Unknown
        return np.full(tensor.shape, _NONE, np.float32)
    numbers = np.arange(size) // tensor.stride % rows
    return numbers.reshape(tensor.shape).astype(np.float32)


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
        initial.append(onnx.numpy_helper.from_array(np.array(_NONE, np.float32), "none"))
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
        [onnx.helper.make_tensor_value_info("moved", onnx.TensorProto.FLOAT, None)],
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
