"""Calls of any number of rows, worked out from two that ran.

Sizes, and all that is computed from them alone, are computed for that number; of tensors that
depend on the inputs' values there is the shape alone, which follows the number of rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from marship.contract import Array
from marship.proof.influence.tensor import Mixes, Unknown
from marship.proof.influence.trace import NARROW, Trace, session, used

_Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of a graph.

    Attributes:
        first: A call that ran.
        second: One with another number of rows.
        model: What of the graph depends on sizes alone; the sizes are its inputs.
        sizes: The nodes that tell sizes of tensors that depend on the inputs' values.
        opened: A session with it; None if it is empty.
        inner: Those of the bodies of its loops, by a loop's first output.
    """

    first: Trace
    second: Trace
    model: ModelProto
    sizes: Mapping[str, NodeProto]
    opened: Any
    inner: dict[str, "Calls"] = field(default_factory=dict)

    @classmethod
    def of(cls, first: Trace, second: Trace) -> "Calls":
        """Calls like two that ran."""
        nodes, sizes = [], {}
        for node in first.model.graph.node:
            if node.op_type in ("Shape", "Size") and node.input[0] in first.data:
                sizes[node.output[0]] = node
            elif not first.data.intersection(node.output):
                nodes.append(node)
        model = _model(first, nodes, sizes)
        opened = None
        if nodes:
            kinds = {v.name: v.type for v in session(model, first.libraries).get_outputs()}
            kept = [name for name, kind in kinds.items() if kind.startswith("tensor(")]
            del model.graph.output[:]
            model.graph.output.extend(
                onnx.ValueInfoProto(name=name) for name in kept if not NARROW.search(kinds[name])
            )
            opened = session(model, first.libraries)
        return cls(first, second, model, sizes, opened)

    def at(self, rows: int, outer: Mapping[str, Array] | None = None) -> Trace:
        """The call of a number of rows.

        Args:
            rows: The number of requests in it.
            outer: Values of the graph around it.

        Raises:
            Mixes: A size does not follow the number of rows.
            Unknown: It cannot be computed.
        """
        shapes = {
            name: self._follow(name, shape, self.second.shapes[name], rows)
            for name, shape in self.first.shapes.items()
            if name in self.second.shapes
        }
        inputs, given = {}, {}
        for name, array in self.first.inputs.items():
            shape = self._follow(name, array.shape, self.second.inputs[name].shape, rows)
            inputs[name] = np.broadcast_to(np.zeros((), array.dtype), shape)
            if name not in self.first.data:
                inputs[name] = given[name] = self._given(name, outer or {})
        feeds = {
            name: _told(node, (shapes | {k: v.shape for k, v in inputs.items()})[node.input[0]])
            for name, node in self.sizes.items()
        }
        values = given | feeds | self._computed(given | feeds)
        shapes |= {name: array.shape for name, array in values.items() if name in shapes}
        return Trace(
            self.first.model,
            rows,
            inputs,
            shapes,
            values,
            self.first.conditions,
            self.first.taken,
            {},
            self.first.libraries,
            self.first.data,
            self,
        )

    def _follow(self, name: str, one: _Shape, other: _Shape, rows: int) -> _Shape:
        """A shape at a number of rows, from those at two."""
        more = self.second.rows - self.first.rows
        grown = [(b - a) * (rows - self.first.rows) for a, b in zip(one, other, strict=False)]
        sizes = [a + by // more for a, by in zip(one, grown, strict=False)]
        if len(one) != len(other) or any(by % more for by in grown) or min(sizes, default=0) < 0:
            raise Mixes(f"tensor {name} has sizes that do not follow the number of rows of a call")
        return tuple(sizes)

    def _given(self, name: str, outer: Mapping[str, Array]) -> Array:
        """The value that a tensor of the graph around has."""
        if name in outer:
            return outer[name]
        one, other = self.first.inputs[name], self.second.inputs[name]
        if one.shape != other.shape or not np.array_equal(one, other):
            raise Unknown
        return one

    def _computed(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.opened is None:
            return {}
        taken = {value.name for value in self.opened.get_inputs()}
        names = [value.name for value in self.opened.get_outputs()]
        try:
            found = self.opened.run(names, {k: v for k, v in feeds.items() if k in taken})
        except Exception as error:  # its exceptions have no common base class
            raise Mixes("a size cannot be computed for each number of rows of a call") from error
        return dict(zip(names, found, strict=True))


def _model(trace: Trace, nodes: list[NodeProto], sizes: Mapping[str, NodeProto]) -> ModelProto:
    """The nodes that depend on no input's values, as a model."""
    wanted = set().union(*map(used, nodes))
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
        for name in sizes
        if name in wanted
    ]
    inputs += [value for value in trace.model.graph.input if value.name in wanted - trace.data]
    graph = onnx.helper.make_graph(
        nodes,
        "sizes",
        inputs,
        [onnx.ValueInfoProto(name=name) for node in nodes for name in node.output if name],
        [tensor for tensor in trace.model.graph.initializer if tensor.name in wanted],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[*trace.model.opset_import], ir_version=trace.model.ir_version
    )


def _told(node: NodeProto, shape: _Shape) -> Array:
    """What Shape or Size tells of a shape."""
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    ends = {one.name: one.i for one in node.attribute}
    return np.array(shape[ends.get("start", 0) : ends.get("end")], np.int64)
