"""Sizes that a model takes are found by runs, and no size that it takes is refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import ModelError
from marship.proof.cases import batches, sizes_to_try
from marship.proof.trials import MOST_LEAST_SIZE, keeping, with_least_sizes

PLANE = Contract((TensorSpec("x", "float32", ("n", "h", "w")),), (), ("m.onnx",), "", 20)


def model(takes: Callable[..., bool]) -> Callable[[Arrays], Arrays]:
    """A model that takes inputs of some sizes only."""

    def run(inputs: Arrays) -> Arrays:
        if not takes(*inputs["x"].shape):
            raise ModelError("refused")
        return {}

    return run


def image(*shape: int) -> Arrays:
    """An example of one shape."""
    return {"x": np.ones(shape, np.float32)}


@given(steps=st.tuples(st.sampled_from((1, 2, 3, 4, 8, 16)), st.sampled_from((1, 2, 5, 8, 32))),
       least=st.tuples(st.integers(1, 3), st.integers(1, 2)))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_multiples_and_least_sizes_are_found(
    steps: tuple[int, int], least: tuple[int, int]
) -> None:
    """With two axes that each have a step and a least multiple: exactly the model's sizes pass."""
    assume(math.lcm(*steps) * max(least) <= MOST_LEAST_SIZE)
    lows = [step * count for step, count in zip(steps, least, strict=True)]

    def takes(_: int, h: int, w: int) -> bool:
        return h >= lows[0] and w >= lows[1] and not h % steps[0] and not w % steps[1]

    found = with_least_sizes(PLANE, model(takes))
    for axis, step, low in zip("hw", steps, lows, strict=True):
        allowed = [n for n in range(1, 130) if found.takes_size(axis, n)]
        assert allowed == [n for n in range(1, 130) if n >= low and not n % step]
    for sizes in sizes_to_try(found, None):
        assert takes(1, sizes["h"], sizes["w"])


@pytest.mark.parametrize("step", [1, 20, 32, 160])
def test_larger_sizes_are_found_from_an_example(step: int) -> None:
    """Sizes of which none is among those that are drawn: 320 and more, multiples of a number."""

    def takes(_: int, h: int, w: int) -> bool:
        return min(h, w) >= 320 and not h % step and not w % step

    found = with_least_sizes(PLANE, model(takes), image(1, 640, 480 if 480 % step == 0 else 640))
    assert found.bounds == {"h": (320, None), "w": (320, None)}
    assert found.steps == ({"h": step, "w": step} if step > 1 else {})


def test_an_axis_of_one_size_is_bound_to_the_examples() -> None:
    """Such a graph states a variable axis, and has one in name only."""
    found = with_least_sizes(PLANE, model(lambda _, h, w: h == 100 and w > 2), image(2, 100, 50))
    assert found.bounds == {"h": (100, 100), "w": (3, None)}


@pytest.mark.parametrize(
    "takes",
    [
        lambda _, h, w: h == w and h % 16 == 0,
        lambda _, h, w: h in (100, 103, 200) and w == h,
        lambda _, h, w: h in (70, 73) and w == 70,
        lambda _, h, w: (h - 4) % 16 == 0 and (w - 4) % 16 == 0,
    ],
)
def test_no_size_that_the_model_takes_is_refused(takes: Callable[..., bool]) -> None:
    """Axes that are equal, or sizes that no rule explains: such a request reaches the model."""
    example = image(1, 100, 100) if takes(1, 100, 100) else image(1, 70, 70)
    found = with_least_sizes(PLANE, model(takes), example)
    taken = [(h, w) for h in range(1, 210) for w in (h, 70) if takes(1, h, w)]
    assert taken
    for h, w in taken:
        if h >= example["x"].shape[1]:
            assert found.takes_size("h", h)
            assert found.takes_size("w", w)


@pytest.mark.parametrize("number", [2, 4, 6, 8])
def test_what_axes_must_be_together_is_no_rule_for_each(number: int) -> None:
    """A reshape into rows of four takes any height beside a width that is a multiple of four."""
    found = with_least_sizes(PLANE, model(lambda n, h, w: n * h * w % number == 0))
    assert (found.bounds, found.steps) == ({}, {})


def test_a_request_of_the_example_is_never_refused() -> None:
    """A rule that one of them breaks is dropped."""
    stated = Contract(PLANE.inputs, (), ("m.onnx",), "", 20, None, {"h": (16, 16)},
                      steps={"h": 16, "w": 16})  # fmt: skip
    kept = keeping(stated, [image(1, 16, 32), image(1, 24, 16)])
    assert (kept.bounds, kept.steps) == ({}, {"w": 16})


def test_rows_that_come_in_pairs() -> None:
    """The batch, too, may be a multiple of a number."""
    found = with_least_sizes(PLANE, model(lambda n, *_: n % 2 == 0))
    assert (found.bounds, found.steps) == ({"n": (2, None)}, {"n": 2})
    assert batches(found) == [{"n": 2}, {"n": 4}, {"n": 14}]


def test_integers_that_may_be_indices_do_not_bound_sizes() -> None:
    """Edges between nodes: a graph of one node has edges of the first one only."""
    specs = (
        TensorSpec("x", "float32", ("nodes", 4)),
        TensorSpec("edges", "int64", (2, "count")),
    )
    contract = Contract(specs, (), ("m.onnx",), "", 20)

    def run(inputs: Arrays) -> Arrays:
        if inputs["edges"].max() >= len(inputs["x"]):
            raise ModelError("refused")
        return {}

    example = {"x": np.ones((7, 4), np.float32), "edges": np.array([[0, 6, 3], [5, 1, 2]])}
    assert with_least_sizes(contract, run).bounds == {}
    assert with_least_sizes(contract, run, example).bounds == {}


def test_what_runs_at_no_size_is_told_with_sizes_reason_and_flag() -> None:
    """In one line."""
    with pytest.raises(ModelError, match=r"refused .*sizes from 1 to 64 of h, w\. .*--example"):
        with_least_sizes(PLANE, model(lambda *_: False))
