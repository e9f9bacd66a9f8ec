"""Widens tensors at the border of an ONNX file whose types NumPy lacks: bfloat16, float8, int4.

Each becomes one of a type that holds all its values, float32 or int8, with a Cast beside it: so
proofs, batches, golden cases and JSON see numbers alone, and workers need no package for the types.
Values that the narrow type holds pass both ways without a change; others are rounded to nearest.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from marship.contract import WIDENED
from marship.proof.operators import subgraphs

_NARROW: Mapping[int, tuple[str, int]] = {
    TensorProto.BFLOAT16: ("bfloat16", 13),
    TensorProto.FLOAT8E4M3FN: ("float8_e4m3fn", 19),
    TensorProto.FLOAT8E4M3FNUZ: ("float8_e4m3fnuz", 19),
    TensorProto.FLOAT8E5M2: ("float8_e5m2", 19),
    TensorProto.FLOAT8E5M2FNUZ: ("float8_e5m2fnuz", 19),
    TensorProto.FLOAT8E8M0: ("float8_e8m0fnu", 24),
    TensorProto.INT4: ("int4", 21),
    TensorProto.UINT4: ("uint4", 21),
    TensorProto.INT2: ("int2", 25),
    TensorProto.UINT2: ("uint2", 25),
}
"""Their names, and the version of ONNX's operators from which Cast takes them."""
_FLOATS = {"saturate": 0}
"""Of Cast to float8: requests beyond the largest are refused, and infinity must stay what it is."""
_SCALES = {"saturate": 0, "round_mode": "nearest"}
"""Of Cast to a type that has powers of two alone."""


def widened(model: ModelProto) -> dict[str, str]:
    """Widen inputs and outputs of narrow types, in place.

    Returns:
        The narrow type of each tensor that was widened, by name.
    """
    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    found: dict[str, str] = {}
    names = _Names(graph)
    casts: tuple[list[NodeProto], list[NodeProto]] = [], []
    for casts_here, values in zip(casts, (inputs, graph.output), strict=True):
        for value in values:
            narrow = value.type.tensor_type.elem_type
            name, since = _NARROW.get(narrow, ("", 0))
            if not name or opset < since:
                continue
            found[value.name] = name
            if value.name not in names.inner:  # else an input that is an output, too
                casts_here.append(_cast(value, names, narrow, goes_in=values is inputs))
            value.type.tensor_type.elem_type = _wide(name)
    if not found:
        return found
    _rename(graph, names.inner)
    nodes = [*casts[0], *graph.node, *casts[1]]
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def _wide(name: str) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(WIDENED[name].dtype))


class _Names:
    """New names for the tensors of narrow types, which stay within the graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.inner: dict[str, str] = {}
        self._taken = set(_all_names(graph))

    def add(self, name: str) -> str:
        """A name that no other tensor has."""
        new = f"{name}_narrow"
        while new in self._taken:
            new += "_"
        self._taken.add(new)
        self.inner[name] = new
        return new


def _cast(value: ValueInfoProto, names: _Names, narrow: int, *, goes_in: bool) -> NodeProto:
    """The Cast beside an input or an output, which is used by another name within the graph."""
    inner = names.add(value.name)
    wide = _wide(_NARROW[narrow][0])
    if not goes_in:
        return onnx.helper.make_node("Cast", [inner], [value.name], to=wide)
    name = _NARROW[narrow][0]
    rules = _SCALES if "e8m0" in name else _FLOATS if name.startswith("float8") else {}
    return onnx.helper.make_node("Cast", [value.name], [inner], to=narrow, **rules)


def _all_names(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from (*node.input, *node.output)
        for body in subgraphs(node):
            yield from _all_names(body)
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever nodes and subgraphs use or make them."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for body in subgraphs(node):
            _rename(body, names)
            for value in body.output:
                value.name = names.get(value.name, value.name)
