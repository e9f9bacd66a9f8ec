"""optimizing.fidelity: how close outputs are without labels, by output and in no unit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.contract import Array, TensorSpec
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
    spread = np.sqrt(np.square(want - want.mean(axis=0)).mean(axis=0))
    assert plain.error == pytest.approx(
        (np.sqrt(np.square(got - want).mean(axis=0)) / spread).max()
    )
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


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(3,), (4, 3), (3, 20), (3, 4, 5), (20, 3), (5, 5)]),
    scale=st.floats(300, 1e9),
    data=st.data(),
)
def test_columns_of_other_units_do_not_hide_each_other(
    seed: int, shape: tuple[int, ...], scale: float, data: st.DataObject
) -> None:
    """One column of any axis is ruined beside another in a larger unit, which is exact."""
    generator = np.random.default_rng(seed)
    axis = data.draw(st.integers(0, len(shape) - 1))
    small, large = data.draw(st.permutations(range(shape[axis])))[:2]
    want = generator.normal(size=(60, *shape))
    np.moveaxis(want, axis + 1, 0)[large] *= scale
    got = want.copy()
    ruined = np.moveaxis(got, axis + 1, 0)[small]
    ruined += 0.3 * generator.normal(size=ruined.shape)
    found = one(got, want)
    assert found.error is not None
    assert found.error > 0.1
    assert one(want + 1e-3 * (want - want.mean(axis=0)), want).error == pytest.approx(1e-3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    columns=st.integers(16, 80),
    few=st.integers(1, 15),
    factor=st.floats(8, 1e4),
    rows=st.integers(25, 300),
)
def test_many_columns_do_not_hide_a_few_in_a_smaller_unit(
    seed: int, columns: int, few: int, factor: float, rows: int
) -> None:
    """Twenty targets, four of them percentages: the noise is a trifle to the sixteen others."""
    generator = np.random.default_rng(seed)
    want = generator.normal(size=(rows, columns))
    small = generator.permutation(columns)[: min(few, columns // 2)]
    want[:, small] /= factor
    noise = 0.2 * generator.normal(size=want.shape) / factor
    found = one(want + noise, want)
    own = np.sqrt(np.square(noise).mean(axis=0)) / want.std(axis=0)
    assert (found.error or 0) >= own[small].max() - 1e-9
    assert (found.error or 0) > 0.1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(2, 2), (3, 3), (4, 4), (6, 6), (2, 3, 4), (5, 20)]),
    scale=st.floats(30, 1e6),
    rows=st.integers(20, 200),
)
def test_an_element_is_not_hidden_by_larger_ones_of_its_row_and_column(
    seed: int, shape: tuple[int, ...], scale: float, rows: int
) -> None:
    """A covariance's diagonal in a larger unit: each index of each axis holds a large element."""
    generator = np.random.default_rng(seed)
    want = generator.normal(size=(rows, *shape))
    is_large = sum(np.indices(shape)) % min(shape) == 0
    want[:, is_large] *= scale
    got = want.copy()
    place = np.argwhere(~is_large)[seed % (~is_large).sum()]
    got[(slice(None), *place)] = generator.normal(size=rows)
    assert (one(got, want).error or 0) > 0.4
    fixed = [TensorSpec("y", "float64", ("n", *shape))]
    assert (compare([{"y": got}], [{"y": want}], fixed)["y"].error or 0) > 0.4


def test_elements_of_maps_and_open_axes_are_no_columns() -> None:
    """A pixel that is always background, and the last token of texts, have no unit of their own."""
    generator = np.random.default_rng(0)
    for shape, stated in (((20, 20), (20, 20)), ((8, 5), ("tokens", 5))):
        want = generator.normal(size=(60, *shape))
        want[:, 0, 0] *= 1e-3
        got = want + 0.01 * generator.normal(size=want.shape)
        specs = [TensorSpec("y", "float64", ("n", *stated))]
        assert (compare([{"y": got}], [{"y": want}], specs)["y"].error or 0) < 0.05


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(1e-3, 1e12),
    share=st.floats(1e-12, 1e-2),
    off=st.floats(0.1, 5),
)
def test_a_spread_that_is_small_beside_its_size_counts(
    seed: int, size: float, share: float, off: float
) -> None:
    """Times, positions and pressures in double; the place of a constant changes nothing."""
    generator = np.random.default_rng(seed)
    noise, wrong = generator.normal(size=(2, 100, 3))
    want = size * (1 + share * noise)
    got = want + size * share * off * wrong
    plain = one(noise + off * wrong, noise).error
    assert one(got, want).error == pytest.approx(plain, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(1e-3, 1e9),
    rows=st.integers(8, 20_000),
    is_single=st.booleans(),
)
def test_rounding_is_no_spread(seed: int, size: float, rows: int, *, is_single: bool) -> None:
    """A constant that a float32 or a double network gives, also cast to double; it may round."""
    generator = np.random.default_rng(seed)
    kind = np.float32 if is_single else np.float64
    steps = generator.integers(-2, 3, size=(2, rows, 1))
    constant = kind(size) * (1 + steps * kind(np.finfo(kind).eps))
    got, want = (values.astype(kind).astype(np.float64) for values in constant)
    other = generator.normal(size=(rows, 1))
    assert (one(np.hstack([got, other]), np.hstack([want, other])).error or 0) < 1e-5
    assert (one(got + size, np.full_like(want, size)).error or 0) > 0.9


SENTINELS = [-1e4, -1e9, float(np.finfo(np.float32).min), 1e30, -np.inf, np.nan]


@pytest.mark.parametrize("sentinel", SENTINELS)
@pytest.mark.parametrize("is_added", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), masked=st.floats(0.05, 0.95), parts=st.integers(1, 3))
def test_a_mask_neither_hides_an_error_nor_makes_one(
    sentinel: float, seed: int, *, is_added: bool, masked: float, parts: int
) -> None:
    """Token scores [N, T, C], masked by an addition or replaced: as if only the others counted."""
    generator = np.random.default_rng(seed)
    want = generator.normal(size=(60, 8, 5)).astype(np.float32)
    mask = generator.random((60, 8, 1)) < masked
    good, bad = (
        want + noise * generator.normal(size=want.shape).astype(np.float32)
        for noise in (0.001, 0.4)
    )
    shown = [
        np.where(mask, (a if is_added else 0) + np.float32(sentinel), a).astype(np.float32)
        for a in (want, good, bad)
    ]
    close, far = one(shown[1], shown[0], parts), one(shown[2], shown[0], parts)
    assert (close.error or 0) < 0.01
    assert (far.error or 0) > 0.3
    kept = ~mask[..., 0]
    hits = bad.argmax(axis=-1)[kept] == want.argmax(axis=-1)[kept]
    assert (far.counted, far.same) == (kept.sum(), hits.sum())
    lost = shown[0].copy()
    lost[tuple(np.argwhere(mask)[0, :2])] = 0
    assert (one(lost, shown[0]).error or 0) > 0.9


def test_what_hardly_varies_refuses_nothing_honest() -> None:
    """Classes that are never likely, features that are off or weak, a constant with rounding."""
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(200, 5)) - np.array([0, 0, 0, 0, 40])
    other = logits + 0.02 * generator.normal(size=logits.shape)
    other[:, 4] += 1
    shares = [np.exp(a) / np.exp(a).sum(axis=1, keepdims=True) for a in (other, logits)]
    assert (one(*shares).error or 0) < 0.05
    features = generator.normal(size=(200, 64)) * np.linspace(0.15, 1, 64)
    features[:, 7] = 0
    off = features + 0.01 * generator.normal(size=features.shape)
    assert (one(off, features).error or 0) < 0.05
    constant = np.stack([generator.normal(size=200), np.ones(200)], axis=1)
    constant = constant.astype(np.float32)
    assert (one(constant + np.float32([0, 6e-8]), constant).error or 0) < 0.05
    assert (one(constant + np.float32([0, 0.5]), constant).error or 0) > 0.4


def test_a_time_and_a_price_are_no_sentinels() -> None:
    """A column that is large throughout varies by little of its size, and that little counts."""
    generator = np.random.default_rng(0)
    want = np.stack([generator.random(100), 1.7e9 + 1e6 * generator.random(100)], axis=1)
    got = want.copy()
    got[:, 1] = 1.7e9 + 5e5
    assert (one(got, want).error or 0) > 0.9


@pytest.mark.parametrize(
    ("shape", "stated", "axis"),
    [
        ((40, 7, 3), None, 2),
        ((40, 3, 7), None, 1),
        ((40, 3, 7), ("n", "tokens", 7), 2),
        ((40, 3, 6, 6), None, 1),
        ((40, 6, 6, 3), ("n", "h", "w", 3), 3),
    ],
)
def test_top_classes_are_counted_along_the_axis_of_classes(
    shape: tuple[int, ...], stated: tuple[int | str, ...] | None, axis: int
) -> None:
    """Of outputs of any rank, place by place: one flip is counted as one."""
    want = np.random.default_rng(0).normal(size=shape)
    got = want.copy()
    first = np.moveaxis(got, axis, -1)[(0,) * (len(shape) - 1)]
    first[first.argmin()] = first.max() + 1e-6
    specs = [TensorSpec("y", "float32", stated)] if stated else []
    found = compare([{"y": got}], [{"y": want}], specs)["y"]
    places = want.size // shape[axis]
    assert (found.same, found.counted, found.is_class) == (places - 1, places, True)
    assert f"in 1 of {places} places of 40 real rows" in str(
        objection({"y": found}, Allowance(9.0, 1.0))
    )


def test_top_classes_of_calls_of_several_lengths_are_counted() -> None:
    """Tokens of texts, each asked alone: the scores have no length in common."""
    want = [{"y": np.random.default_rng(n).normal(size=(1, n, 3))} for n in (2, 5, 9)]
    found = compare([{"y": -call["y"]} for call in want], want)["y"]
    assert (found.same, found.counted, found.rows) == (0, 16, 3)


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
