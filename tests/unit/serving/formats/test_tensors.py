"""Numbers in JSON become the same arrays whichever way they are converted."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.contract import TensorSpec
from marship.errors import InvalidInputError
from marship.serving.formats import tensors
from marship.serving.formats.tensors import to_array

FLOAT_TYPES = ("float32", "float64")
EDGES = [0, -0.0, 0.1, 1e-45, 5e-324, 3.4028235e38, 3.5e38, 1e308, 2**24 + 1, 16777217.5]
EDGES += [2**53, 2**53 + 1, 2**53 + 2**29 + 1, -(2**53) - 2**29 - 1, 2**63, 2**64 - 1, -(2**63)]
NUMBERS = st.one_of(st.sampled_from(EDGES), st.integers(-1000, 1000), st.floats(-1e6, 1e6))
OTHERS = st.sampled_from([None, "1", "", [], [1.0], {}, 1e300])
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def nested(values: list[Any], shape: list[int]) -> Any:
    """Values as lists of lists."""
    for size in reversed(shape[1:]):
        values = [values[i : i + size] for i in range(0, len(values), size)]
    return values


@st.composite
def even(draw: st.DrawFn) -> Any:
    """Evenly nested lists of numbers."""
    shape = draw(SHAPES)
    count = int(np.prod(shape))
    return nested(draw(st.lists(NUMBERS, min_size=count, max_size=count)), shape)


@st.composite
def nearly_even(draw: st.DrawFn) -> Any:
    """The same with one value replaced at any depth."""
    value = draw(even())
    place = value
    while isinstance(place[0], list) and draw(st.booleans()):
        place = place[draw(st.integers(0, len(place) - 1))]
    place[draw(st.integers(0, len(place) - 1))] = draw(OTHERS)
    return value


def outcome(value: Any, dtype: str, *, may_mix: bool) -> object:
    """Type, shape and bytes of the array, or the error's message."""
    try:
        array = to_array(value, TensorSpec("x", dtype, ("n",)), may_mix=may_mix)
    except InvalidInputError as error:
        return str(error)
    return array.dtype, array.shape, array.tobytes()


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@settings(max_examples=500, deadline=None)
@given(value=st.one_of(even(), nearly_even(), NUMBERS, OTHERS))
def test_numbers_without_booleans_are_converted_as_any_others(dtype: str, value: Any) -> None:
    """A text without booleans is converted faster, to the same bytes or the same error."""
    fast, general = (outcome(value, dtype, may_mix=may_mix) for may_mix in (False, True))
    assert fast == general


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("depth", [1, 2, 63, 64, 65, 500])
def test_any_depth_is_converted_or_refused_alike(dtype: str, depth: int) -> None:
    """NumPy has at most 64 axes; deeper lists are a client's error, in both ways."""
    value: Any = 1.5
    for _ in range(depth):
        value = [value]
    fast, general = (outcome(value, dtype, may_mix=may_mix) for may_mix in (False, True))
    assert fast == general


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_usual_numbers_take_the_fast_conversion(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's own conversion of lists is not needed for them."""
    monkeypatch.setattr(tensors.np, "asarray", None)
    array = to_array([[1, 0.5], [-2, 3e4]], TensorSpec("x", dtype, ("n", 2)), may_mix=False)
    assert array.tolist() == [[1, 0.5], [-2, 3e4]]
    assert array.dtype == dtype
