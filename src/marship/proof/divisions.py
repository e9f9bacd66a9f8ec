"""Guards divisions of whole numbers by values that are known only at a run.

The smallest int32 or int64 divided by -1 has no result in its type. On x86 it is a SIGFPE, which
ends the process: so a client's value could end a worker. NumPy gives the smallest number itself, as
ONNX Runtime does for int8 and int16; so does a guarded Div: it divides by 1 and changes the sign.
STFT divides by its frame length, and is given -1 for 0, which ONNX Runtime refuses. It refuses a
divisor of 0 on its own, and Mod takes all values: found by trying, with ONNX Runtime 1.32.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from marship.proof.indices import note_constant
from marship.proof.operators import inlined, subgraphs

_TRAPPING = (TensorProto.INT32, TensorProto.INT64)
_LEAST_OPSET = 9
"""Of Where."""
_DIVISORS = {"Div": 1, "STFT": 3}
"""The place of the divisor among an operator's inputs."""


def guarded(model: ModelProto) -> int:
    """Guard divisions of int32 and int64 whose divisor is no harmless constant, in place.

    Returns:
        How many were guarded; those whose type cannot be inferred are left as they are.
    """
    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    nodes = [*model.graph.node, *(node for own in model.functions for node in own.node)]
    if opset < _LEAST_OPSET or not any(map(_divides, nodes)):
        return 0
    whole = inlined(model)
    guard = _Guard(_types(whole))
    guard.rewrite(whole.graph, {})
    if guard.count:
        model.CopyFrom(whole)
    return guard.count


def guard_file(path: Path) -> None:
    """Guard the divisions of an ONNX file, in place; external weights are not read."""
    model = onnx.load(str(path), load_external_data=False)
    if guarded(model):
        onnx.save(model, str(path))


def _divides(node: NodeProto) -> bool:
    """Whether it divides, or holds a node in a subgraph that does."""
    inner = (one for body in subgraphs(node) for one in body.node)
    return _divisor(node) != "" or any(map(_divides, inner))


def _divisor(node: NodeProto) -> str:
    """The name of its divisor; empty if it does not divide."""
    place = _DIVISORS.get(node.op_type, 0) if node.domain in ("", "ai.onnx") else 0
    return node.input[place] if 0 < place < len(node.input) else ""


def _types(model: ModelProto) -> dict[str, int]:
    """The element types of tensors, also of those within subgraphs, by name."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # over 2 GB, or invalid
        graph = model.graph
    return dict(_graph_types(graph))


def _graph_types(graph: GraphProto) -> Iterator[tuple[str, int]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name, value.type.tensor_type.elem_type
    for node in graph.node:
        for body in subgraphs(node):
            yield from _graph_types(body)


class _Guard:
    """Rewrites graphs; `count` divisions so far."""

    def __init__(self, types: Mapping[str, int]) -> None:
        self._types = types
        self.count = 0

    def rewrite(self, graph: GraphProto, outer: Mapping[str, TensorProto]) -> None:
        constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
        nodes: list[NodeProto] = []
        for node in graph.node:
            note_constant(node, constants)
            for body in subgraphs(node):
                self.rewrite(body, constants)
            nodes += self._guarded(node, constants)
        del graph.node[:]
        graph.node.extend(nodes)

    def _guarded(self, node: NodeProto, constants: Mapping[str, TensorProto]) -> list[NodeProto]:
        divisor = _divisor(node)
        names = (divisor, *node.input, *node.output) if node.op_type == "Div" else (divisor,)
        kind = next(filter(None, map(self._types.get, names)), 0)
        if kind not in _TRAPPING or _is_harmless(constants.get(divisor)):
            return [node]
        self.count += 1
        return _div(node, kind) if node.op_type == "Div" else _stft(node, kind)


def _is_harmless(constant: TensorProto | None) -> bool:
    if constant is None or constant.data_location == TensorProto.EXTERNAL:
        return False
    return not np.isin(numpy_helper.to_array(constant), (0, -1)).any()


def _constant(name: str, kind: int, value: int) -> NodeProto:
    tensor = helper.make_tensor("", kind, (), [value])
    return helper.make_node("Constant", [], [name], value=tensor)


def _stft(node: NodeProto, kind: int) -> list[NodeProto]:
    """Nodes that give it a frame length of -1 in place of 0."""
    length, result = node.input[3], node.output[0]
    zero, minus, is_zero, safe = (f"{result}_{n}" for n in ("zero", "minus", "is_zero", "safe"))
    made = [
        _constant(zero, kind, 0),
        _constant(minus, kind, -1),
        helper.make_node("Equal", [length, zero], [is_zero]),
        helper.make_node("Where", [is_zero, minus, length], [safe]),
    ]
    node.input[3] = safe
    return [*made, node]


def _div(node: NodeProto, kind: int) -> list[NodeProto]:
    """Nodes that divide by 1 in place of -1, and change the sign."""
    (number, divisor), (result,) = node.input, node.output
    parts = ("one", "minus", "is_minus", "safe", "quotient", "sign")
    one, minus, is_minus, safe, quotient, sign = (f"{result}_{part}" for part in parts)
    return [
        _constant(one, kind, 1),
        _constant(minus, kind, -1),
        helper.make_node("Equal", [divisor, minus], [is_minus]),
        helper.make_node("Where", [is_minus, one, divisor], [safe]),
        helper.make_node("Div", [number, safe], [quotient]),
        helper.make_node("Where", [is_minus, minus, one], [sign]),
        helper.make_node("Mul", [quotient, sign], [result]),
    ]
