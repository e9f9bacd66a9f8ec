"""How far floats are off, in units of how much they vary, column by column.

An output may hold figures of several units side by side, as three probabilities and a price, so
each column is measured against its own spread: along every axis but the first, all values of one
index are a column. Of an output of few figures each is a column by itself, too, as a matrix of
covariances has units along both axes. The worst column counts. What hardly varies has no spread to
be measured against, and values that stand for something else (a mask's -1e9) are no part of one.
"""

import numpy as np

from marship.contract import Array

ROUNDING = 8
"""Steps of the type (the distance of 1 to the next number): a column whose spread is less, at its
values' size, does not vary. Rounding alone would be about 0.05 of it."""
MANY, ALIKE, GAP = 16, 10.0, 3.0
"""So many spreads are of features or classes in one unit, if all lie within a factor of 10 and none
is three times the next smaller one; columns of a table in another unit stand apart."""
MOST_FIGURES, LEAST_VALUES = 256, 8
"""So many elements of a fixed shape are each a column, if they have this many values. Of larger
outputs, as maps of pixels, some always are a quiet background."""
LEAST_SHARE = 0.1
"""Of the spread of all probabilities: a class that varies less is one that is never likely."""
LEAST_SENTINEL, FAR, NARROW, MOST_SENTINELS = 1e3, 100.0, 0.01, 4
"""A sentinel is at least this large, and this many times as large as what it is no part of; all
within one hundredth of each other are the same one, and there are at most four in a column."""


def errors(ours: Array, theirs: Array, *, is_fixed: bool = True) -> tuple[float, float]:
    """The error of the worst column, and the largest of a row within a column.

    Args:
        ours: float64, shape (rows, ...).
        theirs: What they should be, the same shape; its spread is the unit.
        is_fixed: Whether an element means the same in every row, so that it may be a column.

    Example:
        >>> theirs = np.array([[0.0, 1e6], [1.0, 3e6]])  # a probability and a price
        >>> errors(theirs + [[0.5, 0.0]], theirs)
        (1.0, 1.0)
    """
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if same.all():
        return 0.0, 0.0
    if not (np.isfinite(ours) & np.isfinite(theirs))[~same].all():
        return np.inf, np.inf
    off = np.where(same, 0.0, np.where(same, 0.0, ours) - np.where(same, 0.0, theirs))
    known = np.where(np.isfinite(theirs), theirs, np.nan)
    parts = [(as_columns(off, n), as_columns(known, n)) for n in axes_of(theirs)]
    are_shares = [_are_shares(columns) for _, columns in parts]
    if is_fixed and theirs.ndim > len(("rows", "columns")) and theirs[0].size <= MOST_FIGURES:
        parts.append(_figures(off, known))
        are_shares.append(any(are_shares))
    found = [
        _of_columns(*part, are_shares=is_so) for part, is_so in zip(parts, are_shares, strict=True)
    ]
    return max(one[0] for one in found), max(one[1] for one in found)


def _figures(off: Array, known: Array) -> tuple[Array, Array]:
    """Each element as a column, shape (rows, 1, columns); those with few values are left out."""
    columns = known.reshape(len(known), 1, -1)
    usual = ~np.isnan(columns) & ~sentinels(columns)
    enough = usual.sum(axis=(0, 1)) >= LEAST_VALUES
    return off.reshape(columns.shape)[..., enough], columns[..., enough]


def axes_of(array: Array) -> range:
    """The axes along which columns are told apart; of plain rows the missing second one."""
    return range(1, max(2, array.ndim))


def as_columns(array: Array, axis: int) -> Array:
    """Shape (rows, places, columns), the columns along an axis other than the first."""
    if array.ndim == 1:
        return array[:, None, None]
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(len(array), -1, array.shape[axis])


def sentinels(theirs: Array) -> Array:
    """Where values stand for something else, as a mask's -1e9: bool, shape as `theirs`.

    Args:
        theirs: Shape (rows, places, columns), NaN where they are not finite.
    """
    sizes = np.abs(np.nan_to_num(theirs))
    found = np.zeros(theirs.shape, dtype=bool)
    most, least = sizes.max(axis=(0, 1)), sizes.min(axis=(0, 1))
    for column in np.flatnonzero((most >= LEAST_SENTINEL) & (least * FAR <= most)):
        found[..., column] = _far_ones(sizes[..., column])
    return found & ~np.isnan(theirs)


def _far_ones(sizes: Array) -> Array:
    """The few values of a column that are far larger than all others; none if there are others."""
    found = np.zeros(sizes.shape, dtype=bool)
    for _ in range(MOST_SENTINELS):
        most = sizes[~found].max()
        found |= sizes >= (1 - NARROW) * most
        if found.all():
            break
        if most >= max(LEAST_SENTINEL, FAR * sizes[~found].max()):
            return found
    return np.zeros(sizes.shape, dtype=bool)


def _of_columns(off: Array, theirs: Array, *, are_shares: bool) -> tuple[float, float]:
    """The worst column's error and the largest of a row; sentinels count by their own size."""
    odd = sentinels(theirs)
    kept = np.where(odd, np.nan, theirs)
    center = _mean(kept, 0)
    center += _mean(kept - center, 0)  # a sum of many doubles is off by more than their rounding
    spread, size = (np.sqrt(_mean(np.square(v), (0, 1))) for v in (kept - center, kept))
    units = _units(spread, size, spread > ROUNDING * _step(kept) * size, are_shares=are_shares)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(off == 0, 0.0, off / units)
    scaled = np.square(np.where(np.isnan(kept), np.nan, scaled))
    far = np.abs(off[odd] / theirs[odd]).max(initial=0.0)
    by_column, by_row = _mean(scaled, (0, 1)), _mean(scaled, 1)
    error, row = (float(np.sqrt(found.max(initial=0.0))) for found in (by_column, by_row))
    return max(error, far), max(row, far)


def _mean(values: Array, axis: int | tuple[int, ...]) -> Array:
    """The mean of what is no NaN; 0 where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    return np.asarray(np.where(known, values, 0.0).sum(axis=axis) / np.maximum(count, 1))


def _are_shares(theirs: Array) -> bool:
    """Whether columns are probabilities that sum to 1, as a softmax gives them."""
    with np.errstate(invalid="ignore"):
        total = theirs.sum(axis=-1)
    return bool((theirs >= 0).all() and np.allclose(total, 1, atol=1e-3))


def _step(theirs: Array) -> Array:
    """The type's distance of 1 to the next number, by column: that of float32 for all that fits.

    Doubles are often a float32 network's outputs that were cast.
    """
    with np.errstate(over="ignore"):
        is_single = np.isnan(theirs) | (theirs.astype(np.float32) == theirs)
    steps = (np.finfo(kind).eps for kind in (np.float32, np.float64))
    return np.where(is_single.all(axis=(0, 1)), *steps)


def _units(spread: Array, size: Array, varies: Array, *, are_shares: bool) -> Array:
    """What each column's differences are divided by: its spread, where it varies.

    What does not vary counts by its size, at least by the smallest spread of another column.
    """
    if not varies.any():
        return size
    units = np.where(varies, spread, np.maximum(size, spread[varies].min()))
    if are_shares:
        units = np.maximum(units, LEAST_SHARE * np.sqrt(np.square(spread).mean()))
    return _evened(units)


def _evened(units: Array) -> Array:
    """Units with those of many that are alike raised to the middle one.

    The worst of many features by its own unit would be luck. What is larger by a gap is in another
    unit, and would hide a column.
    """
    ordered = np.sort(units)
    gaps = np.flatnonzero(ordered[1:] > GAP * ordered[:-1]) + 1
    first = np.searchsorted(ordered, units / ALIKE)
    end = np.searchsorted(ordered, units * ALIKE, side="right")
    next_gap = np.append(gaps, len(ordered))[
        np.searchsorted(gaps, np.searchsorted(ordered, units), side="right")
    ]
    end = np.minimum(end, next_gap)
    middle = ordered[(first + end) // 2]
    return np.asarray(np.where(end - first >= MANY, np.maximum(units, middle), units))
