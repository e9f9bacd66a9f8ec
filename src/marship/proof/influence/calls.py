"""Calls of any number of rows, worked out from two that ran.

Sizes, and all that is computed from them alone, are computed for that number; of tensors that
depend on the inputs' values there is the shape alone, which follows the number of rows.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from onnx.reference import ReferenceEvaluator

from marship.contract import Array
from marship.proof import operators
from marship.proof.influence.lines import bends
from marship.proof.influence.numbers import MOVED, STRAYS
from marship.proof.influence.tensor import Mixes, TooLarge, Unknown
from marship.proof.influence.trace import NARROW, Trace, session, used

_PUT_TOGETHER = {"Concat", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_SIZED = {*MOVED, "Expand", "Reshape", "Resize", "Split", "Tile"}
"""Operators whose values may say what size they make."""
_LARGEST = 1 << 26
"""Values that a call may have that are computed from sizes alone."""
_FEWEST = 3
_FEW_VALUES = 64
"""Of a value that is looked at for all numbers of rows, though another takes too much memory."""
_MOST_VALUES = 1 << 24
"""Values that are computed for all numbers of rows."""
_MOST_NODES = 1 << 20
"""Nodes that are run for all numbers of rows."""
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
        known: The shapes of both calls' arrays, by name.
        inner: Those of the bodies of its loops, by a loop's first output.
    """

    first: Trace
    second: Trace
    model: ModelProto
    sizes: Mapping[str, NodeProto]
    opened: Any
    known: Mapping[str, tuple[_Shape, _Shape]]
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
            opened = session(model, first.libraries) if model.graph.output else None
        shapes = [
            {name: array.shape for name, array in one.inputs.items()} | dict(one.shapes)
            for one in (first, second)
        ]
        known = {
            name: (shape, shapes[1][name]) for name, shape in shapes[0].items() if name in shapes[1]
        }
        return cls(first, second, model, sizes, opened, known)

    def at(self, rows: int, outer: Mapping[str, Array] | None = None) -> Trace:
        """The call of a number of rows.

        Args:
            rows: The number of requests in it.
            outer: Values of the graph around it.

        Raises:
            Mixes: A size does not follow the number of rows.
            Unknown: It cannot be computed.
            TooLarge: It would take too much memory.
        """
        computed = [value.name for value in self.opened.get_outputs()] if self.opened else []
        size = sum(math.prod(self._shape(name, rows)) for name in computed if name in self.known)
        if size > _LARGEST:
            raise TooLarge
        shapes = {name: self._shape(name, rows) for name in self.first.shapes.keys() & self.known}
        inputs = {
            name: np.broadcast_to(np.zeros((), array.dtype), self._shape(name, rows))
            for name, array in self.first.inputs.items()
        }
        values = self._values(rows, outer or {}, None)
        inputs |= {name: values[name] for name in inputs.keys() & values.keys()}
        shapes |= {name: values[name].shape for name in shapes.keys() & values.keys()}
        first = self.first
        return replace(
            first, rows=rows, inputs=inputs, shapes=shapes, values=values, held={}, calls=self
        )

    def changing(self, most: int, around: "Calls | None" = None) -> set[int]:
        """The numbers of rows up to one at which values are otherwise than at any before.

        There is none where all values follow the number of rows in a straight line. A value that
        bends or, if it is a truth, changes, makes one, and so does a constant bound of rows.

        Args:
            most: How many rows to try; fewer where that would take long.
            around: Of a loop's body, the calls of the graph around it.
        """
        found = {size + by for size in self._bounds() if size < most for by in (0, 1)}
        for inner in self.inner.values():
            with contextlib.suppress(Unknown):  # it takes what the first iteration alone has
                found |= inner.changing(most, self)
        names = self._sized()
        small = [name for name in names if self._is_fixed(name)]
        for some in (small, [name for name in names if name not in small]):
            leading = self._leading_to(some)
            size = sum(
                math.prod(self.known[name][1])
                for name in leading
                if name in self.known and not self._is_fixed(name)
            )
            few = min(most, _MOST_NODES // max(len(leading), 1))
            few = min(few, math.isqrt(2 * _MOST_VALUES * self.second.rows // max(size, 1)))
            if some and few > _FEWEST:
                found |= self._bends(some, few, around)
        return found

    def _bends(self, names: Sequence[str], most: int, around: "Calls | None") -> set[int]:
        opened = self._for(names)
        values: dict[str, list[Array]] = {name: [] for name in names}
        for rows in range(1, most + 1):
            outer = {} if around is None else around._values(rows, {}, None)
            for name, value in self._values(rows, outer, names, opened).items():
                if name in values:
                    values[name].append(value)
        kinds: dict[bytes, int] = {}
        for at, kind in enumerate(np.transpose([bends(values[name]) for name in names])):
            kinds.setdefault(kind.tobytes(), at + 1)
        return {*kinds.values()}

    def _leading_to(self, names: Sequence[str]) -> set[str]:
        """Some values with all that they are computed from, which takes memory, too."""
        found = {*names}
        for node in reversed(self.model.graph.node):
            if found.intersection(node.output):
                found |= used(node)
        return found

    def _for(self, names: Sequence[str]) -> Any:  # noqa: ANN401  a session
        """A session that computes no more than some values."""
        model = ModelProto()
        model.CopyFrom(self.model)
        wanted = self._leading_to(names)
        nodes = [node for node in model.graph.node if wanted.intersection(node.output)]
        del model.graph.node[:], model.graph.output[:]
        model.graph.node.extend(nodes)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return session(model, self.first.libraries)

    def _is_fixed(self, name: str) -> bool:
        one, other = self.known.get(name, ((0,), (0,)))
        return one == other and math.prod(one) <= _FEW_VALUES

    def _bounds(self) -> set[int]:
        """The whole numbers, as they are and without their sign, at which slices begin and end."""
        stored = {tensor.name: tensor for tensor in self.first.model.graph.initializer}
        found: set[int] = set()
        for node in self.first.model.graph.node:
            if node.op_type != "Slice":
                continue
            for name in node.input[1:3]:
                value = self.first.values.get(name)
                if name in stored:
                    value = onnx.numpy_helper.to_array(stored[name])
                found |= set() if value is None else {abs(int(one)) for one in value.ravel()}
            for attribute in node.attribute:
                if attribute.name in ("starts", "ends"):
                    found |= {abs(one) for one in attribute.ints}
        return found - {0}

    def check_sizes(self, trace: Trace) -> None:
        """Hold the sizes of a worked out call against what operators make of its values.

        Raises:
            Mixes: One has another size.
        """
        graph, sized = self.first.model.graph, self._from_sizes()
        stored = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type not in _SIZED or not sized.intersection(node.input):
                continue
            feeds = {}
            for name in {*node.input} - {""}:
                if name in stored:
                    feeds[name] = onnx.numpy_helper.to_array(stored[name])
                elif name in trace.values:
                    feeds[name] = trace.values[name]
                else:
                    feeds[name] = np.zeros(self._shape(name, trace.rows), np.float32)
            for name, made in zip(node.output, _made(node, feeds, trace.model), strict=False):
                if made.shape != trace.shapes.get(name, made.shape):
                    raise Mixes(f"{operators.named(node)} {STRAYS}")

    def _from_sizes(self) -> set[str]:
        """The names of all that is computed from sizes."""
        found = {*self.sizes}
        for node in self.model.graph.node:
            if node.op_type in ("Shape", "Size") or found & used(node):
                found.update(node.output)
        return found

    def _sized(self) -> list[str]:
        """The values that are computed from sizes, but for those that only put such together."""
        kept = {value.name for value in self.opened.get_outputs()} if self.opened else set()
        kept &= self._from_sizes()
        nodes = [node for node in self.model.graph.node if node.op_type not in _PUT_TOGETHER]
        return [name for node in nodes for name in node.output if name in kept]

    def _values(
        self,
        rows: int,
        outer: Mapping[str, Array],
        names: Sequence[str] | None,
        opened: Any = None,  # noqa: ANN401  a session
    ) -> dict[str, Array]:
        """Some values that no input changes, or all."""
        given = {
            name: self._given(name, outer)
            for name in self.first.inputs
            if name not in self.first.data
        }
        for name, node in self.sizes.items():
            given[name] = _told(node, self._shape(node.input[0], rows))
        return given | _run(opened or self.opened, given, names)

    def _shape(self, name: str, rows: int) -> _Shape:
        """A shape at a number of rows, from those at two."""
        if name not in self.known:
            raise Unknown
        one, other = self.known[name]
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


def _run(
    opened: Any,  # noqa: ANN401  a session
    feeds: Mapping[str, Array],
    names: Sequence[str] | None,
) -> dict[str, Array]:
    if opened is None:
        return {}
    taken = {value.name for value in opened.get_inputs()}
    names = names or [value.name for value in opened.get_outputs()]
    try:
        found = opened.run(names, {k: v for k, v in feeds.items() if k in taken})
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


def _made(node: NodeProto, feeds: Mapping[str, Array], model: ModelProto) -> list[Array]:
    """What an operator makes of what it gets; nothing if it cannot be run by itself."""
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output],
    )
    single = onnx.helper.make_model(graph, opset_imports=[*model.opset_import])
    try:
        return [np.asarray(one) for one in ReferenceEvaluator(single).run(None, dict(feeds))]
    except Exception:
        return []
