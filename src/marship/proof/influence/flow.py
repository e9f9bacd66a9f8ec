"""Follows the rows of a call through a graph."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import NodeProto

from marship.contract import Array
from marship.proof import operators
from marship.proof.influence.lines import differs
from marship.proof.influence.loops import Body, is_steady
from marship.proof.influence.numbers import MOVED
from marship.proof.influence.rules import RULES
from marship.proof.influence.tensor import (
    Mixes,
    Place,
    RowTensor,
    Rule,
    Step,
    Unknown,
    place_of,
    stride_of,
)
from marship.proof.influence.trace import LOOPS, MOST_VALUES, Trace, used

_SHAPING = {
    "Expand": (1,),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2),
    "Split": (1,),
    "Tile": (1,),
}
"""The inputs of an operator that may state the number of rows, as a size."""
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.onnx.contrib"}
_ITERATIONS = 4
_UNKNOWN = "is not known to keep the rows of a call apart"
_RULE_FAULTS = (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)
"""Of a rule, where a node is not as the definition of its operator says."""


@dataclass(slots=True)
class Flow:
    """Follows the rows of a call through the graph.

    Attributes:
        trace: The call.
        other: One with another number of rows.
        tensors: What is known of each tensor, by name.
        mixing: Why rows influence each other, or may.
        lost: What depends on the inputs' values and is no array, such as a sequence.
        quiet: Tensors of a loop's body that lead to nothing but the condition for going on.
        is_main: Whether it is the main graph.
        is_usual: Whether its sizes are the usual ones; at others a tensor may be empty.
    """

    trace: Trace
    other: Trace
    tensors: dict[str, RowTensor] = field(default_factory=dict)
    mixing: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    quiet: set[str] = field(default_factory=set)
    is_main: bool = True
    is_usual: bool = True

    def walk(self) -> None:
        """Follow the rows from the inputs, which hold them on the first axis, to the outputs."""
        for name, array in self.trace.inputs.items():
            stride = array.size // self.trace.rows or None
            if stride is None:
                self.mixing.append(f"input {name} is empty, and shows nothing")
            self.tensors[name] = RowTensor(array.shape, stride, is_data=True)
        self._walk()
        for value in self.trace.model.graph.output:
            self._check(value.name)

    def _walk(self) -> None:
        for tensor in self.trace.model.graph.initializer:
            self.tensors.setdefault(tensor.name, _initial(tensor))
        for node in self.trace.model.graph.node:
            self._follow(node)
        for name, node in self.trace.conditions.items():
            held = self.tensors.get(name)
            if held is None or held.counts is not None or held.is_position:
                self._note(node, "chooses a branch by the number of rows of a call")

    def _check(self, name: str) -> None:
        """An output must have the rows where the inputs have them."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return
        if tensor.counts is not None:
            self.mixing.append(f"output {name} depends on the number of rows of a call")
        if tensor.stride is None:
            return
        if tensor.stride * self.trace.rows != math.prod(tensor.shape):
            self.mixing.append(f"output {name} does not hold the rows in their order")
        elif tensor.is_position:
            self.mixing.append(f"output {name} depends on the number of rows of a call")

    def _note(self, node: NodeProto, how: str) -> None:
        if not self.quiet.intersection(node.output):
            self.mixing.append(f"{operators.named(node)} {how}")

    def _follow(self, node: NodeProto) -> None:
        if used(node) & self.lost:
            self._note(node, _UNKNOWN)
            self.lost |= {*node.output}
            return
        inputs = [self.tensors.get(name) if name else None for name in node.input]
        captured = [self.tensors[name] for name in used(node) if name in self.tensors]
        is_shape = node.op_type in ("Shape", "Size")
        if not self.is_main and not is_steady(node, inputs, self.trace.data):
            self._note(node, "may make other sizes in each round of its loop")
        if not is_shape and any(tensor.is_data for tensor in captured):
            self._rows(node, inputs)
        else:
            self._known(node, captured, is_shape=is_shape)

    def _rows(self, node: NodeProto, inputs: Sequence[RowTensor | None]) -> None:
        """An operator on rows."""
        shapes = [self.trace.shapes.get(name, ()) for name in node.output]
        step = Step(node, inputs, shapes, self.trace.rows, self._opset)
        is_lost = any(one is not None and one.is_data and one.stride is None for one in inputs)
        is_position = _has_positions(step)
        places, how = self._placed(step, is_lost=is_lost)
        for number, name in enumerate(node.output):
            if name not in self.trace.shapes:
                self.lost |= {name} - {""}
            if name not in self.trace.shapes or name in self.lost:
                continue
            place = places[number] if number < len(places) else None
            is_empty = not self.is_usual and math.prod(self.trace.shapes[name]) == 0
            if not (how or is_lost or is_empty or self._keeps(name, place)):
                how = _UNKNOWN
            self.tensors[name] = self._made(name, place, not is_empty, is_position)
        if node.op_type == "Concat" and node.output[0] in self.tensors:
            made = self.tensors[node.output[0]]
            self.tensors[node.output[0]] = replace(made, leading=_leading(step))
        if how and not is_lost:  # what loses rows was noted where that happened
            self._note(node, how)

    def _placed(self, step: Step, *, is_lost: bool) -> tuple[Sequence[Place | None], str]:
        """Where the outputs hold the rows, and how the operator may mix them, if it does."""
        try:
            _check_counts(step)
            if is_lost:
                return [], ""
            if step.node.op_type in LOOPS:
                return self._loop(step.node), ""
            return self._rule(step.node)(step), ""
        except Mixes as found:
            return [], str(found)
        except (Unknown, *_RULE_FAULTS):
            return [], _UNKNOWN

    def _keeps(self, name: str, place: Place | None) -> bool:
        """Whether a tensor holds the rows at a place, and no other axis depends on their number."""
        mine, other = self.trace.shapes[name], self.other.shapes.get(name, ())
        if place is None or len(mine) != len(other) or not math.prod(mine):
            return False
        axis, inner = place
        if not 0 <= axis < len(mine):
            return False
        is_whole = mine[axis] % (inner * self.trace.rows) == 0
        grows = mine[axis] * self.other.rows == other[axis] * self.trace.rows
        others = zip(mine[:axis] + mine[axis + 1 :], other[:axis] + other[axis + 1 :], strict=True)
        return is_whole and grows and all(size == its for size, its in others)

    def _loop(self, node: NodeProto) -> list[Place | None]:
        """The outputs' places of a loop; where its author vouches for it, runs decide."""
        try:
            return self._followed(node)
        except (Mixes, Unknown, *_RULE_FAULTS):
            if not self._is_vouched:
                raise
            places = [self._guess(name) for name in node.output]
            self.lost |= {name for name, at in zip(node.output, places, strict=True) if not at}
            return places

    def _followed(self, node: NodeProto) -> list[Place | None]:
        """The outputs' places of a loop, whose body is followed by itself."""
        body = Body.of(node)
        outer = dict(zip(body.inputs(), body.given(), strict=True))
        outer |= {name: name for name in used(node) if name in self.tensors and name not in outer}
        data = {name for name, one in outer.items() if self.tensors[one].is_data}
        traces = body.traced(self.trace, data), body.traced(self.other, data)
        start = {}
        for name, array in traces[0].inputs.items():
            start[name] = RowTensor(array.shape, value=traces[0].values.get(name))
        for number, name in enumerate(body.inputs()):
            held = self.tensors[outer[name]]
            start[name] = body.placed(number, held, start[name].shape, self.trace.rows)
        for name in set(start) & set(self.tensors) - {*body.inputs()}:
            start[name] = self.tensors[name]
        inner = self._settled(body, traces, start)
        outputs = [*body.graph.output]
        if body.is_loop:
            self._check_condition(inner.tensors.get(outputs.pop(0).name))
        found = [inner.tensors[value.name] for value in outputs]
        places: list[Place | None] = []
        for number, one in enumerate(found):
            if one.is_position or one.counts is not None or (one.is_data and one.stride is None):
                raise Unknown
            if one.stride is None:
                places.append(None)
                self.lost.add(node.output[number])  # a counter, which tells how many rounds it took
            else:
                at = place_of(one.shape, one.stride, self.trace.rows)
                places.append(body.outer(number, at))
        return places

    def _check_condition(self, tensor: RowTensor | None) -> None:
        """A loop must go on for reasons of its own, the same for all rows."""
        if tensor is None or tensor.counts is not None or tensor.is_position:
            raise Mixes("goes on by the number of rows of a call")
        if tensor.is_data:
            raise Mixes(
                "goes on for all rows of a call by values of its rows, and its author does not "
                f"vouch for rows that are done ({operators.FINISHED_ROWS_STAY})"
            )

    def _settled(
        self, body: Body, traces: tuple[Trace, Trace], start: dict[str, RowTensor]
    ) -> "Flow":
        """The body's tensors, once what an iteration hands to the next is as what it got."""
        for _ in range(_ITERATIONS):
            inner = Flow(
                traces[0],
                traces[1],
                dict(start),
                quiet=body.condition_only(),
                is_main=False,
                is_usual=self.is_usual,
            )
            inner._walk()
            self.mixing += inner.mixing  # a state that lost its rows is silent in the next round
            changed = False
            for name, output in body.carried():
                before, after = start[name], inner.tensors[output]
                if before.shape != after.shape:
                    raise Unknown
                if _kind(before) == _kind(after):
                    continue
                start[name], changed = replace(after, value=None), True
            if not changed:
                return inner
        raise Unknown

    def _made(self, name: str, place: Place | None, is_data: bool, is_position: bool) -> RowTensor:
        shape = self.trace.shapes[name]
        is_right = place is not None and shape[place[0]] % (place[1] * self.trace.rows) == 0
        stride = stride_of(shape, place) or None if place is not None and is_right else None
        value = self.trace.values.get(name)
        return RowTensor(shape, stride, is_data=is_data, is_position=is_position, value=value)

    def _rule(self, node: NodeProto) -> Rule:
        if node.domain not in _DOMAINS or node.op_type not in RULES:
            raise Unknown
        return RULES[node.op_type]

    @property
    def _is_vouched(self) -> bool:
        properties = self.trace.model.metadata_props
        return any(one.key == operators.FINISHED_ROWS_STAY for one in properties)

    @property
    def _opset(self) -> int:
        opsets = self.trace.model.opset_import
        return next((one.version for one in opsets if one.domain in ("", "ai.onnx")), 1)

    def _guess(self, name: str) -> Place | None:
        """The first axis that grows with the number of rows."""
        mine, other = self.trace.shapes.get(name), self.other.shapes.get(name)
        if mine is None or other is None or len(mine) != len(other):
            return None
        for axis, (size, its) in enumerate(zip(mine, other, strict=True)):
            grows = size != its and size * self.other.rows == its * self.trace.rows
            if grows and size % self.trace.rows == 0:
                return axis, size // self.trace.rows
        return None

    def _known(self, node: NodeProto, inputs: Sequence[RowTensor], *, is_shape: bool) -> None:
        """An operator on what does not depend on the inputs' values, but may on their sizes.

        Its values at two numbers of rows tell what depends on that number.
        """
        varies = is_shape or any(
            one.stride is not None or one.counts is not None or one.is_position for one in inputs
        )
        for name in node.output:
            if name not in self.trace.shapes:
                self.lost |= {name} - {""} if varies else set()
                continue
            value, other = (one.values.get(name) for one in (self.trace, self.other))
            made = RowTensor(self.trace.shapes[name], value=value)
            if varies:
                made = self._compared(name, made, other)
            self.tensors[name] = made

    def _compared(self, name: str, made: RowTensor, other: Array | None) -> RowTensor:
        """What is known of a tensor whose value may depend on the number of rows."""
        place = self._guess(name)
        if place is not None:
            is_position = not self._keeps(name, place)
            if not is_position:
                is_position = not _is_filled(made, other, place)
            return replace(made, stride=stride_of(made.shape, place), is_position=is_position)
        if made.value is None or other is None or other.shape != made.shape:
            return replace(made, counts=np.ones(made.shape, bool))
        counts = np.asarray(differs(made.value, other))
        return replace(made, counts=counts if counts.any() else None)


def _check_counts(step: Step) -> None:
    """The number of rows must not be a value to compute with, but may be a size."""
    shaping = _SHAPING.get(step.node.op_type, ())
    for number, tensor in enumerate(step.inputs):
        if tensor is not None and tensor.counts is not None and number not in shaping:
            raise Mixes("computes with the number of rows of a call")


def _has_positions(step: Step) -> bool:
    """Whether the outputs' values depend on the places of rows in the call."""
    moved = MOVED.get(step.node.op_type)
    if moved and all(
        one is None or (not one.is_data and one.value is not None)
        for number, one in enumerate(step.inputs)
        if number not in moved
    ):
        held = [step.inputs[number] for number in moved if number < len(step.inputs)]
        if any(one is not None and one.stride is not None for one in held):
            return any(one is not None and one.is_position for one in held)
    given = [one for one in step.inputs if one is not None]
    if step.node.op_type in ("GatherND", "ScatterND") and step.place(0) is not None:
        # the rule holds those of the leading axes against the rows
        given = [one for one in given if one.leading is None]
    return any(one.is_position for one in given)


def _is_filled(made: RowTensor, other: Array | None, place: Place) -> bool:
    """Whether all rows are equal, and equal to those of another number of rows."""
    if made.value is None or other is None:
        return False
    axis, inner = place
    split = [
        value.reshape(*value.shape[:axis], -1, inner, *value.shape[axis + 1 :])
        for value in (made.value, other)
    ]
    first = split[1].take([0], axis)
    return not any(differs(value, first).any() for value in split)


def _kind(tensor: RowTensor) -> tuple[int | None, bool, bool, bool]:
    return tensor.stride, tensor.is_data, tensor.is_position, tensor.counts is not None


def _leading(step: Step) -> Array | None:
    """The first elements along the last axis, which are known, if no others hold places of rows."""
    known: list[Array] = []
    others = [one for one in step.inputs if one is not None]
    while others and (value := others[0].value) is not None:
        known.append(value)
        others.pop(0)
    is_last = step.attribute("axis") in (-1, len(step.shapes[0]) - 1)
    if not (is_last and known) or any(one.is_position for one in others):
        return None
    return np.concatenate(known, axis=-1)


def _initial(tensor: onnx.TensorProto) -> RowTensor:
    shape = tuple(tensor.dims)
    small = math.prod(shape) <= MOST_VALUES and tensor.data_type != onnx.TensorProto.STRING
    return RowTensor(shape, value=onnx.numpy_helper.to_array(tensor) if small else None)
