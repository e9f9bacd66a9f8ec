"""How far a variant's outputs are from the exported model's, on real inputs without labels.

By output. A float output is measured by its error: the root of the mean square over rows of the
difference, relative to that of the exported model's own spread, its outputs less their mean over
the rows. So neither an output's unit nor a constant that is added to it counts; and it is the
worst column's, as `marship.optimizing.spread` tells them apart. Where a float output looks like
scores of classes (several columns), the share of those with the same top class is counted, too; of
whole numbers and text the share of rows that are equal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marship.contract import Array, Arrays, TensorSpec
from marship.optimizing import spread

FEWEST_ROWS = 8
"""Real rows without which no variant is judged by its outputs."""
SURE_Z = 1.645
"""Of the normal distribution at 95 %, one-sided."""
NORM = (
    "root mean square of the difference over that of the output less its mean over the rows, of "
    "the worst column"
)
NOT_PROVEN = (
    "This does not prove accuracy on labels, which nothing was compared with, nor anything about "
    "inputs unlike these."
)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a variant's outputs may differ by.

    Attributes:
        error: The largest relative error of a float output.
        agreement: The smallest share of rows with the same top class, or with equal values.
    """

    error: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How close one output of a variant is to the exported model's.

    Attributes:
        rows: The number of rows that were compared.
        error: The relative error of the worst column; None if the output has no floats.
        worst_row: The largest error of a row within a column, relative to the spread of all.
        same: Those with the same top class, or equal values; None if only the error counts.
        is_class: Whether `same` counts top classes.
        places: How many top classes were compared, where a row has several (one a token, one a
            pixel); None where rows are counted.
    """

    rows: int
    error: float | None = None
    worst_row: float | None = None
    same: int | None = None
    is_class: bool = False
    places: int | None = None

    @property
    def counted(self) -> int:
        """What `same` is a part of."""
        return self.rows if self.places is None else self.places

    @property
    def agreement(self) -> float | None:
        """The share that agrees."""
        return self.same / self.counted if self.same is not None and self.counted else None

    @property
    def shown_count(self) -> str:
        """`250 rows`, or `2000 places of 250 rows`."""
        rows = f"{self.rows} rows"
        return rows if self.places is None else f"{self.places} places of {rows}"

    @property
    def sure_agreement(self) -> float | None:
        """The share that agrees at 95 % confidence, for any number of rows like these.

        The lower end of the score interval (Wilson 1927, Probable Inference). Places of one row
        are alike, so that it is rows that count.
        """
        if self.agreement is None:
            return None
        share, n, z = self.agreement, self.rows, SURE_Z
        middle, half = (
            share + z**2 / (2 * n),
            z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)),
        )
        return max(0.0, (middle - half) / (1 + z**2 / n))


def compare(
    got: Sequence[Arrays], want: Sequence[Arrays], outputs: Sequence[TensorSpec] = ()
) -> dict[str, Fidelity]:
    """Compare the outputs of several calls with the exported model's, by output.

    Args:
        got: A variant's, by call.
        want: The exported model's for the same inputs.
        outputs: What the contract says of them: an axis of any size is not that of the classes.
    """
    shapes = {spec.name: spec.shape for spec in outputs}
    found = {}
    for name in want[0]:
        ours, theirs = ([call[name] for call in calls] for calls in (got, want))
        found[name] = _compared(ours, theirs, shapes.get(name))
    return found


def objection(found: Mapping[str, Fidelity], bounds: Allowance) -> str | None:
    """Why outputs are not close enough; None if they are."""
    for name, one in found.items():
        if one.error is not None and not one.error <= bounds.error:
            return (
                f"output {name} is off by {_shown(one.error, bounds.error)} of its spread on "
                f"{one.rows} real rows, more than {bounds.error:g}"
            )
        if one.same is not None and not one.same >= bounds.agreement * one.counted:
            other = "has another top class" if one.is_class else "has other values"
            places = "" if one.places is None else f"{one.places} places of "
            return (
                f"output {name} {other} in {one.counted - one.same} of {places}{one.rows} real "
                f"rows, more than {100 * (1 - bounds.agreement):.3g} %"
            )
    return None


def _shown(value: float, bound: float) -> str:
    """A figure with as many digits as tell it from its bound."""
    if not math.isfinite(value):
        return "any amount"
    return next(
        (text for n in range(2, 17) if float(text := f"{value:.{n}g}") > bound), repr(value)
    )


def labels(found: Mapping[str, Fidelity]) -> dict[str, Fidelity]:
    """The outputs that are no floats."""
    return {name: one for name, one in found.items() if one.error is None}


def _compared(
    got: Sequence[Array], want: Sequence[Array], shape: Sequence[int | str] | None
) -> Fidelity:
    rows = sum(_rows_of(array) for array in want)
    if any(a.shape != b.shape for a, b in zip(got, want, strict=True)):
        is_float = want[0].dtype.kind == "f"
        return Fidelity(rows, math.inf, math.inf) if is_float else Fidelity(rows, same=0)
    is_table = len({array.shape[1:] for array in want}) == 1 and want[0].ndim > 0
    if want[0].dtype.kind != "f":
        ours, theirs = (_joined(arrays, None if is_table else 0) for arrays in (got, want))
        return Fidelity(len(theirs), same=int(_equal_rows(ours, theirs).sum()))
    rows = rows if is_table else len(want)
    axis = _class_axis(want, shape)
    cut = None if is_table else axis
    ours, theirs = (_joined(arrays, cut).astype(np.float64) for arrays in (got, want))
    if theirs.size == 0:
        return Fidelity(rows, 0.0, 0.0)
    is_fixed = is_table and not any(isinstance(size, str) for size in (shape or ())[1:])
    error, worst = spread.errors(ours, theirs, is_fixed=is_fixed)
    if not axis:
        return Fidelity(rows, error, worst)
    same, counted = _same_top(ours, theirs, axis if is_table else 1)
    places = None if counted == rows else counted
    return Fidelity(rows, error, worst, same, is_class=True, places=places)


def _rows_of(array: Array) -> int:
    return len(array) if array.ndim else 1


def _class_axis(arrays: Sequence[Array], shape: Sequence[int | str] | None) -> int:
    """The axis of classes: the second or the last one, of one size; 0 if there is none.

    A size that the contract leaves open, or that differs between calls, is that of a sequence or a
    picture. Of two fixed ones the smaller is taken: classes before pixels, or after tokens.
    """
    first = arrays[0]
    if len({array.ndim for array in arrays}) > 1 or first.ndim <= 1:
        return 0
    stated = shape if shape is not None and len(shape) == first.ndim else first.shape
    sizes = {n: {array.shape[n] for array in arrays} for n in (first.ndim - 1, 1)}
    alike = [n for n, found in sizes.items() if len(found) == 1]
    fixed = [n for n in alike if not isinstance(stated[n], str)] or alike
    found = min(fixed, key=lambda n: first.shape[n], default=0)
    return found if first.shape[found] > 1 else 0


def _same_top(ours: Array, theirs: Array, axis: int) -> tuple[int, int]:
    """How many have the same top class, of how many; places that are masked do not count."""
    ours, theirs = (spread.as_columns(array, axis) for array in (ours, theirs))
    known = np.where(np.isfinite(theirs), theirs, np.nan)
    has_scores = ~(np.isnan(known) | spread.sentinels(known)).all(axis=-1)
    is_same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
    return int((is_same & has_scores).sum()), int(has_scores.sum())


def _joined(arrays: Sequence[Array], axis: int | None) -> Array:
    """All rows; along an axis of classes all places, or all values one by one where that is 0."""
    if axis is None:
        return np.concatenate(arrays)
    if axis == 0:
        return np.concatenate([array.ravel() for array in arrays])
    return np.concatenate(
        [np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]) for array in arrays]
    )


def _equal_rows(ours: Array, theirs: Array) -> Array:
    return np.array([np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)], dtype=bool)
