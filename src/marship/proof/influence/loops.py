"""The body of a loop as a model of its own, in its first iteration (onnx.ai, Loop and Scan)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from marship.contract import Array, Arrays
from marship.proof import operators
from marship.proof.influence.calls import Calls
from marship.proof.influence.tensor import Place, RowTensor, Unknown, place_of, stride_of
from marship.proof.influence.trace import Feed, Trace, run, used

_STATING = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Split": (1,),
    "Slice": (1, 2, 3, 4),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""The inputs of an operator whose values state the sizes of its outputs, or axes."""
_BY_VALUE = {"Compress", "NonZero", "Unique"}
"""Operators whose outputs have sizes that the values of any input make."""


@dataclass(frozen=True, slots=True)
class Body:
    """A loop's node with its body.

    Attributes:
        node: The node.
        graph: Its body.
    """

    node: NodeProto
    graph: GraphProto

    @classmethod
    def of(cls, node: NodeProto) -> "Body":
        """The body of a loop."""
        return cls(node, operators.subgraphs(node)[0])

    @property
    def is_loop(self) -> bool:
        """Whether it is a Loop, whose body also gets a number and a condition."""
        return self.node.op_type == "Loop"

    @property
    def scanned(self) -> int:
        """The number of inputs that a Scan goes through."""
        return 0 if self.is_loop else int(self._attribute("num_scan_inputs", 0))

    def given(self) -> list[str]:
        """The outer tensors that the body's inputs come from, but for a Loop's first two."""
        return [*self.node.input[2:]] if self.is_loop else [*self.node.input]

    def inputs(self) -> list[str]:
        """The body's inputs that come from them."""
        names = [value.name for value in self.graph.input]
        return names[2:] if self.is_loop else names

    def carried(self) -> list[tuple[str, str]]:
        """The body's inputs that an iteration hands to the next, each with its output."""
        outputs = [value.name for value in self.graph.output]
        outputs = outputs[1:] if self.is_loop else outputs
        states = len(self.inputs()) - self.scanned
        return [*zip(self.inputs()[:states], outputs, strict=False)]

    def axes(self) -> list[int | None]:
        """The axis that is gone through, for each of the inputs; None for a state."""
        states = len(self.inputs()) - self.scanned
        axes = self._attribute("scan_input_axes", None) or [0] * self.scanned
        return [None] * states + [int(axis) for axis in axes]

    def traced(self, trace: Trace, data: set[str]) -> Trace:
        """Run the first iteration by itself, or work it out where the call around it is worked out.

        Args:
            trace: The call of the model around it.
            data: The inputs whose values count as the user's.

        Raises:
            Unknown: It does not run so.
        """
        if trace.calls is not None:
            around, key = trace.calls, self.node.output[0]
            if key not in around.inner:
                around.inner[key] = Calls.of(
                    self.traced(around.first, data), self.traced(around.second, data)
                )
            return around.inner[key].at(trace.rows, trace.values)
        feeds = self._feeds(trace)
        outputs = [*self.graph.output]
        graph = onnx.helper.make_graph(
            _needed(self.graph, {value.name for value in outputs}),
            "body",
            [_described(name, array) for name, array in feeds.items()],
            outputs,
            [*self.graph.initializer],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[*trace.model.opset_import], ir_version=trace.model.ir_version
        )
        # what an iteration gets differs from the first one's
        varying = {value.name for value in self.graph.input}
        found = run(model, Feed(feeds, data | varying, trace.rows), trace.libraries)
        if found is None:
            raise Unknown
        return found

    def condition_only(self) -> set[str]:
        """The body's tensors that lead to nothing but the condition for going on."""
        if not self.is_loop:
            return set()
        needed = _needed(self.graph, {value.name for value in [*self.graph.output][1:]})
        kept = {name for node in needed for name in node.output}
        return {name for node in self.graph.node for name in node.output} - kept

    def placed(self, number: int, tensor: RowTensor, shape: Sequence[int], rows: int) -> RowTensor:
        """What is known of an input of the body, from the outer tensor."""
        axis = self.axes()[number]
        if tensor.stride is None:
            return RowTensor(
                tuple(shape),
                is_data=tensor.is_data,
                is_position=tensor.is_position,
                counts=None if tensor.counts is None else np.ones(shape, bool),
            )
        at, inner = place_of(tensor.shape, tensor.stride, rows)
        if axis is not None:
            if at == axis % len(tensor.shape):
                raise Unknown  # goes through the rows one after the other
            at -= at > axis % len(tensor.shape)
        stride = stride_of(shape, (at, inner))
        return RowTensor(
            tuple(shape), stride, is_data=tensor.is_data, is_position=tensor.is_position
        )

    def outer(self, number: int, place: Place) -> Place:
        """Where an output of the loop holds the rows, from the place in the body's output."""
        if number < len(self.carried()):
            return place
        axes = self._attribute("scan_output_axes", None)
        new = int(axes[number - len(self.carried())]) if axes else 0
        return place[0] + (new <= place[0]), place[1]

    def _feeds(self, trace: Trace) -> dict[str, Array]:
        feeds: dict[str, Array] = {}
        if self.is_loop:
            first, second = self.graph.input[0], self.graph.input[1]
            feeds[first.name] = np.zeros(_rank(first) * [1], np.int64)
            feeds[second.name] = np.ones(_rank(second) * [1], bool)
        for name, outer, axis in zip(self.inputs(), self.given(), self.axes(), strict=True):
            array = _array(trace.held, outer)
            feeds[name] = array if axis is None else np.take(array, 0, axis)
        own = {*feeds, *(one for node in self.graph.node for one in node.output)}
        own |= {tensor.name for tensor in self.graph.initializer}
        for name in set().union(*map(used, self.graph.node)) - own:
            feeds[name] = _array(trace.held, name)
        return feeds

    def _attribute(self, name: str, default: object) -> Any:  # noqa: ANN401  of any type
        for attribute in self.node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default


def _array(held: Arrays, name: str) -> Array:
    if name not in held:
        raise Unknown
    return held[name]


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _described(name: str, array: Array) -> onnx.ValueInfoProto:
    is_text = array.dtype.kind in "OU"
    kind = onnx.TensorProto.STRING if is_text else onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape)


def _needed(graph: GraphProto, wanted: set[str]) -> list[NodeProto]:
    """The nodes that lead to some tensors."""
    needed, names = [], set(wanted)
    for node in reversed(graph.node):
        if names.intersection(node.output):
            needed.append(node)
            names |= used(node)
    return needed[::-1]


def is_steady(node: NodeProto, inputs: Sequence[RowTensor | None], varying: set[str]) -> bool:
    """Whether a node of a body makes the same sizes in each round.

    Args:
        node: The node.
        inputs: What is known of its inputs.
        varying: The names of the body's tensors that may have another value in another round.
    """
    if node.op_type in _BY_VALUE:
        return not varying.intersection(node.input)
    stating = [at for at in _STATING.get(node.op_type, ()) if at < len(inputs)]
    held = [(node.input[at], inputs[at]) for at in stating]
    return not any(one and one.value is None and name in varying for name, one in held)
