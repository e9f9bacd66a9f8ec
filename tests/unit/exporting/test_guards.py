"""exporting.guards: what a trace assumes of sizes is found, judged over the bounds, and told."""

import contextlib
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from marship.errors import ModelError
from marship.exporting import capture, guards
from marship.exporting.layout import Layout

pytestmark = pytest.mark.slow

Forward = Callable[[torch.Tensor], torch.Tensor]


class Module(nn.Module):
    """A function as a module; its input is called x."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return self.function(x)


def traced(
    function: Forward, low: int, high: int | None, *, traced_at: int, axis: int = 1
) -> list[guards.Doubt]:
    """Trace a function of x, shape (3, size, 2) or (size, 4, 2), and judge what was assumed."""
    name = "size" if axis else "batch"
    shape = (3, traced_at, 2) if axis else (traced_at, 4, 2)
    layout = Layout({"x": {axis: name}}, {name: (low, high)})
    inputs = {"x": torch.zeros(shape)}
    with guards.recorded() as found:
        try:
            capture._program(Module(function), inputs, layout, strict=False)
        except torch._dynamo.exc.UserError:
            guards.check(found, ["x"], layout, few=0)
            raise
    return guards.check(found, ["x"], layout)


def padded(x: torch.Tensor) -> torch.Tensor:
    """Padded to a multiple of 4."""
    missing = (4 - x.shape[1] % 4) % 4
    if missing > 0:
        x = nn.functional.pad(x, (0, 0, 0, missing), value=1.0)
    return x.sum(1)


def long_apart(x: torch.Tensor) -> torch.Tensor:
    """Another rule above a size."""
    return x * 2 if x.shape[1] > 64 else x


def large_batch_apart(x: torch.Tensor) -> torch.Tensor:
    """Another rule for large batches."""
    return x * 2 if x.shape[0] > 64 else x


def rooted(x: torch.Tensor) -> torch.Tensor:
    """A size as Python's int."""
    side = int(math.sqrt(x.shape[1]))
    return x.reshape(x.shape[0], side, -1)


def halved(x: torch.Tensor) -> torch.Tensor:
    """Two halves, which must be equal."""
    first, second = x.chunk(2, dim=1)
    return first * second


@pytest.mark.parametrize(
    ("function", "low", "high", "at", "says"),
    [
        (padded, 4, 64, 64, r"at multiples of 4 only, because of `if missing > 0:` \(test_guards"),
        (long_apart, 1, 100, 100, r"from 65 to 100 only, .*state --bounds size=65:100\."),
        (long_apart, 1, 100, 50, r"from 1 to 64 only, .*state --bounds size=1:64\."),
        (long_apart, 1, None, 70, r"from 65 on only, .*state --bounds size=65:\."),
        (rooted, 4, 16, 16, r"at 16 only, because of `side = int\(math"),
        (halved, 2, 8, 8, r"at multiples of 2 only, because of `first, second = x\.chunk"),
    ],
)
def test_sizes_that_the_trace_left_out_are_reported_with_the_line(
    function: Forward, low: int, high: int | None, at: int, says: str
) -> None:
    """What holds, which line made it so, and bounds that would hold."""
    with pytest.raises(ModelError, match=says) as caught:
        traced(function, low, high, traced_at=at)
    assert "\n" not in str(caught.value)


def test_the_bounds_that_are_advised_hold_the_example() -> None:
    """Others would be refused in their turn, however long they are."""

    def by_turns(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] // 64 % 2 else x

    layout = Layout({"x": {1: "size"}}, {"size": (1, 200)}, {}, {"size": 9})
    with guards.recorded() as found, contextlib.suppress(torch._dynamo.exc.UserError):
        capture._program(Module(by_turns), {"x": torch.zeros(3, 9)}, layout, strict=False)
    with pytest.raises(ModelError, match=r"--bounds size=1:63\."):
        guards.check(found, ["x"], layout)


def test_a_rule_for_large_batches_bounds_the_batch() -> None:
    """The batch has no limit of its own, and gets one."""
    with pytest.raises(ModelError, match=r"from 1 on, .* from 1 to 64 only, .*batch=1:64\."):
        traced(large_batch_apart, 1, None, traced_at=3, axis=0)


def test_a_rule_for_even_batches_names_no_far_range() -> None:
    """Without a limit only a few far sizes are tried, and those that hold are no range."""

    def even_apart(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] % 2 else x

    with pytest.raises(ModelError, match=r"at multiples of 2 plus 1 only, .*state --fixed-batch\."):
        traced(even_apart, 1, None, traced_at=3, axis=0)


def test_a_guard_outside_of_the_bounds_is_none() -> None:
    """With the bounds that the message gives the same model is taken."""
    assert traced(long_apart, 1, 64, traced_at=50) == []
    assert traced(long_apart, 65, 100, traced_at=100) == []


def test_few_sizes_that_are_left_out_are_to_be_tried() -> None:
    """One is neither refused nor passed over: a rule for it may be the same in effect."""
    (doubt,) = traced(lambda x: x[:, :1] if x.shape[1] == 1 else x, 1, 20, traced_at=20)
    assert (doubt.axis, doubt.sizes) == ("size", {1})
    assert "test_guards.py" in str(doubt.place)


def test_a_computed_size_of_one_is_tried_at_a_few_sizes() -> None:
    """Torch sets size 1 apart: all sizes up to a frame's are one frame, and a few stand for all."""

    def framed(x: torch.Tensor) -> torch.Tensor:
        frames = (x.shape[1] + 49) // 50
        return x[:, :1] if frames == 1 else x

    (doubt,) = traced(framed, 1, 200, traced_at=200)
    assert (doubt.axis, doubt.sizes) == ("size", {1, 26, 50})


def test_axes_that_must_be_equal_are_named() -> None:
    """Two names that are one size in effect."""
    layout = Layout({"x": {1: "h", 2: "w"}}, {"h": (2, 9), "w": (2, 9)})
    with guards.recorded() as found, pytest.raises(torch._dynamo.exc.UserError):
        capture._program(
            Module(lambda x: x + x.mT), {"x": torch.zeros(3, 9, 9)}, layout, strict=False
        )
    with pytest.raises(ModelError, match="axes h and w must vary independently"):
        guards.check(found, ["x"], layout)


@settings(max_examples=25, deadline=None)
@given(step=st.integers(2, 12), at=st.integers(2, 5), edge=st.integers(30, 90))
def test_every_branch_on_a_size_is_found(step: int, at: int, edge: int) -> None:
    """For multiples of any number and any threshold, on either side."""

    def stepped(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] % step == 0 else x

    def split(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] >= edge else x

    with pytest.raises(ModelError, match=f"multiples of {step} only"):
        traced(stepped, 1, 99, traced_at=step * at)
    with pytest.raises(ModelError, match=rf"--bounds size={edge}:99\."):
        traced(split, 1, 99, traced_at=99)
    with pytest.raises(ModelError, match=rf"--bounds size=1:{edge - 1}\."):
        traced(split, 1, 99, traced_at=edge - 1)


def test_what_is_traced_alike_for_all_sizes_leaves_nothing() -> None:
    """No guard is invented."""
    assert traced(lambda x: (x - x.mean(1, keepdim=True)).sum(1), 1, None, traced_at=5) == []


def test_the_line_reported_is_one_of_forward() -> None:
    """Where torch knows no line it gives Python's stack, which begins with marship's caller."""

    def tabled(x: torch.Tensor) -> torch.Tensor:
        return x * {8: 1.0, 16: 2.0}.get(x.shape[1], 0.5)

    layout = Layout({"x": {1: "size"}}, {"size": (2, 40)})
    with guards.recorded() as found, contextlib.suppress(torch._dynamo.exc.UserError):
        capture._program(Module(tabled), {"x": torch.zeros(3, 16, 2)}, layout, strict=True)
    with pytest.raises(ModelError, match=r"because of `return x \* \{8: 1\.0"):
        guards.check(found, ["x"], layout)
