"""exporting.size_floats: sizes that come out otherwise in float32 than in Python are found."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from marship.errors import ModelError
from marship.exporting import capture, guards, size_floats
from marship.exporting.layout import Layout


class Cut(nn.Module):
    """The first rows of x, as many as a function of their number says."""

    def __init__(self, count: Callable[[int], int]) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x[:, : self.count(x.shape[1])].sum(1)


def found(count: Callable[[int], int], high: int) -> list[guards.Guard]:
    """The guards of a cut that is traced at size 30."""
    layout = Layout({"x": {1: "n"}}, {"n": (2, high)})
    program = capture._program(Cut(count), {"x": torch.zeros(2, 30, 3)}, layout, strict=False)
    return size_floats.of_floats(program.graph)


@settings(max_examples=10, deadline=None)
@given(hundredths=st.integers(11, 99))
def test_each_size_that_float32_rounds_otherwise_is_found(hundredths: int) -> None:
    """And no other one: NumPy's float32 is what ONNX Runtime computes with."""
    factor = hundredths / 100
    (guard,) = found(lambda n: math.floor(n * factor), 400)
    (symbol,) = guard.sizes
    got = [n for n in range(2, 401) if not guard.holds({symbol: n})]
    want = [
        n
        for n in range(2, 401)
        if math.floor(n * factor) != math.floor(np.float32(n) * np.float32(factor))
    ]
    assert got == want


def test_the_line_and_bounds_are_reported() -> None:
    """100 * 0.29 is 28.999999999999996, and 29 in float32."""
    layout = Layout({"x": {1: "n"}}, {"n": (2, 120)})
    with pytest.raises(ModelError, match=r"from 2 to 99 only.*test_size_floats.*--bounds n=2:99\."):
        guards.check(found(lambda n: math.floor(n * 0.29), 120), ["x"], layout, few=0)


@pytest.mark.parametrize(
    "count",
    [lambda n: math.ceil(n / 3), lambda n: math.ceil(n / 2), lambda n: n * 7 // 10],
    ids=["a third", "half", "whole numbers"],
)
def test_sizes_that_are_alike_in_float32_are_taken(count: Callable[[int], int]) -> None:
    """Division of whole numbers, and what needs no floats."""
    layout = Layout({"x": {1: "n"}}, {"n": (2, 500)})
    assert guards.check(found(count, 500), ["x"], layout, few=0) == []
