"""optimizing.fidelity: how close outputs are without labels, by output and in no unit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.contract import Array
from marship.optimizing.fidelity import Allowance, Fidelity, compare, objection

ALLOWED = Allowance(error=0.05, agreement=0.99)


def one(got: Array, want: Array, parts: int = 1) -> Fidelity:
    """The comparison of one output, in calls of equal size."""
    cut = [np.array_split(array, parts) for array in (got, want)]
    calls = [[{"y": part} for part in side] for side in cut]
    return compare(calls[0], calls[1])["y"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-100, 100),
    parts=st.integers(1, 5),
)
def test_the_error_has_no_unit(seed: int, scale: float, shift: float, parts: int) -> None:
    """Another scale or a constant beside it changes nothing, nor does the division into calls."""
    generator = np.random.default_rng(seed)
    want = generator.normal(size=(20, 3))
    got = want + 0.1 * generator.normal(size=want.shape)
    plain, moved = one(got, want), one(scale * (got + shift), scale * (want + shift), parts)
    assert plain.error is not None
    assert moved.error == pytest.approx(plain.error, rel=1e-6)
    spread = np.sqrt(np.square(want - want.mean(axis=0)).mean())
    assert plain.error == pytest.approx(np.sqrt(np.square(got - want).mean()) / spread)
    assert plain.worst_row is not None
    assert plain.worst_row >= plain.error


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 300), data=st.data(), agreement=st.floats(0, 1))
def test_flips_of_the_top_class_are_counted(
    rows: int, data: st.DataObject, agreement: float
) -> None:
    """Each of them, and the variant is refused just where they are more than allowed."""
    flipped = data.draw(st.integers(0, rows))
    want = np.tile([0.0, 1.0, 1.0 + 1e-3], (rows, 1)) + np.arange(rows)[:, None]
    got = want.copy()
    got[:flipped, 1] += 2e-3
    found = one(got, want)
    assert (found.same, found.is_class) == (rows - flipped, True)
    told = objection({"y": found}, Allowance(math.inf, agreement))
    assert (told is None) == (rows - flipped >= agreement * rows)
    if told is not None:
        assert f"in {flipped} of {rows} real rows" in told


def test_outputs_of_other_scales_do_not_hide_each_other() -> None:
    """The small one is ruined beside one a million times as large, and is named."""
    generator = np.random.default_rng(0)
    want = [
        {"large": 1e6 * generator.normal(size=(50, 1)), "small": generator.normal(size=(50, 1))}
    ]
    got = [{"large": want[0]["large"] + 1, "small": np.zeros((50, 1))}]
    found = compare(got, want)
    assert found["large"].error is not None
    assert found["large"].error < 1e-5
    assert found["small"].error == pytest.approx(1, abs=0.05)
    assert "output small is off by" in str(objection(found, ALLOWED))


def test_a_constant_that_is_added_does_not_hide_a_loss() -> None:
    """Temperatures in kelvin: all of what varies is lost, at 0.3 % of the values."""
    want = 300 + np.random.default_rng(0).normal(size=(50, 1))
    assert (one(np.full((50, 1), 300.0), want).error or 0) > 0.9


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (np.array([[1.0, np.nan]]), np.array([[1.0, 2.0]])),
        (np.array([[1.0, np.inf]]), np.array([[1.0, 2.0]])),
        (np.array([[1.0, 2.0]]), np.array([[1.0, np.nan]])),
        (np.zeros((2, 2)), np.zeros((1, 2))),
        (np.array([[1e-9]]), np.zeros((1, 1))),
    ],
    ids=["NaN", "infinity", "NaN lost", "more rows", "zeros"],
)
def test_what_cannot_be_measured_is_off_by_any_amount(got: Array, want: Array) -> None:
    """No number is made up, and the reason can be read."""
    found = one(got, want)
    assert found.error == math.inf
    assert "off by any amount" in str(objection({"y": found}, ALLOWED))


def test_equal_outputs_agree_whatever_they_are() -> None:
    """NaN and infinity at the same places, nothing at all, one value throughout."""
    odd = np.array([[np.nan, 1.0], [np.inf, 2.0], [3.0, -np.inf]])
    for array in (odd, np.zeros((0, 4)), np.full((5, 2), 7.0), np.full(5, np.nan)):
        found = one(array, array.copy())
        assert found.error == 0
        assert objection({"y": found}, Allowance(0, 1)) is None


@pytest.mark.parametrize(
    "values", [[1, 2, 3, 4], ["a", "ü", "a\0", ""], [True, False, True, True]], ids=str
)
def test_whole_numbers_and_texts_are_equal_or_not(values: list[object]) -> None:
    """By row; there is no error of a text."""
    want = np.array(values, dtype=object if isinstance(values[0], str) else None)
    got = want.copy()
    got[-1] = values[0] if values[0] != values[-1] else values[1]
    found = one(got, want)
    assert (found.error, found.same, found.is_class) == (None, 3, False)
    assert "has other values in 1 of 4 real rows, more than 1 %" in str(
        objection({"y": found}, ALLOWED)
    )


def test_outputs_of_several_sizes_are_compared_value_by_value() -> None:
    """Texts of other lengths have no rows in common; their values count all the same."""
    want = [{"y": np.arange(float(n))} for n in (2, 5)] + [{"y": np.ones((1, 3))}]
    got = [{"y": call["y"] + 0.01} for call in want]
    found = compare(got, want)["y"]
    assert found.rows == 3
    assert 0 < (found.error or 0) < 0.05
    assert found.same is None


@given(rows=st.integers(1, 10_000), data=st.data())
def test_few_rows_promise_less(rows: int, data: st.DataObject) -> None:
    """What is sure lies below the share that was found, and grows with the rows."""
    same = data.draw(st.integers(0, rows))
    few, more = Fidelity(rows, same=same), Fidelity(10 * rows, same=10 * same)
    assert few.sure_agreement is not None
    assert more.sure_agreement is not None
    assert few.agreement is not None
    assert 0 <= few.sure_agreement <= more.sure_agreement + 1e-12 <= few.agreement + 2e-12
    if same == rows == 25:
        assert few.sure_agreement == pytest.approx(0.902, abs=1e-3)


@given(error=st.floats(0.05, 10), digits=st.integers(0, 12))
def test_the_figure_that_decides_is_shown_beyond_its_bound(error: float, digits: int) -> None:
    """0.0500001 is not printed as 0.05, more than 0.05."""
    value = 0.05 + (error - 0.05) * 10.0**-digits
    told = objection({"y": Fidelity(9, value, value)}, ALLOWED)
    if value <= 0.05:
        assert told is None
    else:
        assert float(str(told).split("off by ")[1].split()[0]) > 0.05
