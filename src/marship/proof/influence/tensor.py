"""Where a tensor holds the rows of a call, and an operator at work on such tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import NodeProto

from marship.contract import Array

Place = tuple[int, int]
"""The axis that holds the rows, and how many of its elements belong to one row in turn."""


class Mixes(Exception):  # noqa: N818  a finding, not an error
    """An operator whose definition lets rows influence each other; its argument says how."""


class Unknown(Exception):  # noqa: N818  as above
    """An operator about which nothing is known."""


class TooLarge(Exception):  # noqa: N818  as above
    """A call whose tensors have too many elements to be followed one by one."""


@dataclass(frozen=True, slots=True)
class RowTensor:
    """A tensor of one call.

    Attributes:
        shape: Its shape.
        stride: How far the same element of two neighbouring rows is apart, in elements of the
            flattened tensor; None without rows. A reshape does not change it.
        is_data: Whether its values depend on the inputs' values.
        counts: Which elements depend on the number of rows; None if none does.
        is_position: Whether values depend on the place of a row in the call.
        value: Its value, if that is small and no data.
        leading: Of indices of several axes, those of the first axes, where the call's inputs do not
            change them: an array with a last axis of that many.
    """

    shape: tuple[int, ...]
    stride: int | None = None
    is_data: bool = False
    counts: Array | None = None
    is_position: bool = False
    value: Array | None = None
    leading: Array | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A node with its tensors.

    Attributes:
        node: The node.
        inputs: Its inputs, None for those that are left out.
        shapes: The shapes of its outputs.
        rows: Rows of the call: the number of requests in it.
        opset: The version of ONNX's operators.
    """

    node: NodeProto
    inputs: Sequence[RowTensor | None]
    shapes: Sequence[tuple[int, ...]]
    rows: int
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  of any type
        """The value of an attribute."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def place(self, number: int) -> Place | None:
        """Where the rows of an input are; None if it has none or is left out."""
        tensor = self.inputs[number] if number < len(self.inputs) else None
        if tensor is None or tensor.stride is None:
            return None
        return place_of(tensor.shape, tensor.stride, self.rows)

    def has_rows(self, start: int, but: Sequence[int] = ()) -> bool:
        """Whether an input from a number on has rows, or depends on the inputs' values."""
        return any(
            one is not None and number not in but and (one.stride is not None or one.is_data)
            for number, one in enumerate(self.inputs[start:], start)
        )

    def rank(self, number: int = 0) -> int:
        """The number of axes of an input."""
        return len(self._given(number).shape)

    def value(self, number: int) -> list[int] | None:
        """The whole numbers of an input that is a constant of the call; None if left out.

        Raises:
            Unknown: It is none.
        """
        if number >= len(self.inputs) or self.inputs[number] is None:
            return None
        found = self._given(number).value
        if found is None:
            raise Unknown
        return [int(one) for one in found.ravel()]

    def counted(self, number: int) -> set[int]:
        """The elements of an input's first axis that depend on the number of rows."""
        tensor = self.inputs[number] if number < len(self.inputs) else None
        if tensor is None or tensor.counts is None:
            return set()
        return {int(one) for one in np.atleast_1d(tensor.counts).nonzero()[0]}

    def _given(self, number: int) -> RowTensor:
        tensor = self.inputs[number] if number < len(self.inputs) else None
        if tensor is None:
            raise Unknown
        return tensor


def place_of(shape: Sequence[int], stride: int, rows: int) -> Place:
    """The axis in which rows of a stride are.

    Raises:
        Mixes: A row ends within an element of the axes: a reshape cut across rows.
    """
    step = 1
    for axis in reversed(range(len(shape))):
        whole = step * shape[axis]
        if step <= stride and stride * rows <= whole:
            if stride % step == 0 and whole % (stride * rows) == 0:
                return axis, stride // step
            break
        step = whole
    raise Mixes("reshapes across the rows of a call")


def stride_of(shape: Sequence[int], place: Place) -> int:
    """The stride of rows that are at a place."""
    axis, inner = place
    return inner * math.prod(shape[axis + 1 :])


Rule = Callable[[Step], list[Place]]
"""Where an operator leaves the rows in each of its outputs; raises Mixes or Unknown."""


def first(step: Step) -> Place:
    """Where the first input holds the rows, which no other one has.

    Raises:
        Unknown: It holds none, or another one has.
    """
    place = step.place(0)
    if place is None or step.has_rows(1):
        raise Unknown
    return place


def only(places: Sequence[Place]) -> list[Place]:
    """The one place of an output.

    Raises:
        Mixes: There are several.
        Unknown: There is none.
    """
    if len(set(places)) > 1:
        raise Mixes("combines different rows of a call")
    if not places:
        raise Unknown
    return [places[0]]


def different() -> NoReturn:
    """Raise that rows of the inputs do not belong together."""
    raise Mixes("combines different rows of a call")


def unknown() -> NoReturn:
    """Raise that nothing is known of an operator."""
    raise Unknown
