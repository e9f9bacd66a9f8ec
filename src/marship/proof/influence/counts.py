"""Which elements of what no input's values change depend on the number of rows."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

from marship.contract import Array
from marship.proof.influence.rules import RULES
from marship.proof.influence.sums import elementwise
from marship.proof.influence.tensor import RowTensor, Step, Unknown

_MOVING = {
    *("Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"),
    *("Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
}
"""Operators that move the elements of their inputs, as they are."""


def counts_of(step: Step) -> list[Array | None]:
    """A mask of each output, from those of the inputs; all where nothing is known."""
    if step.node.op_type in ("ConstantOfShape", "Range"):
        return [None] * len(step.shapes)
    flags = [None if one is None else _flags(one) for one in step.inputs]
    try:
        if step.node.op_type in _MOVING:
            return _moved(step, flags)
        if RULES.get(step.node.op_type) is not elementwise:
            raise Unknown
        given = [flag for flag in flags if flag is not None]
        (shape,) = step.shapes
        return [np.broadcast_to(np.logical_or.reduce(np.broadcast_arrays(*given)), shape)]
    except Exception:
        return [np.ones(shape, bool) for shape in step.shapes]


def _moved(step: Step, flags: Sequence[Array | None]) -> list[Array | None]:
    node = step.node
    moved = len(step.inputs) if node.op_type == "Concat" else 1
    if any(flag is not None and flag.any() for flag in flags[moved:]):
        raise Unknown
    if node.op_type == "Cast":
        return [flags[0]]
    feeds, single = {}, NodeProto()
    single.CopyFrom(node)
    for number, name in enumerate(node.input):
        tensor, flag = step.inputs[number], flags[number]
        if name and tensor is not None and flag is not None:
            feeds[name] = flag.astype(np.int64) if number < moved else tensor.value
    graph = onnx.helper.make_graph(
        [single],
        "moved",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output],
    )
    opsets = [onnx.helper.make_opsetid("", step.opset)]
    run = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
    return [np.asarray(one, bool) for one in run.run(None, feeds)]


def _flags(tensor: RowTensor) -> Array:
    return np.zeros(tensor.shape, bool) if tensor.counts is None else tensor.counts
