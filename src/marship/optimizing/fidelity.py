"""How far a variant's outputs are from the exported model's, on real inputs without labels.

By output. A float output is measured by its error: the root of the mean square over rows of the
difference, relative to that of the exported model's own spread, its outputs less their mean over
the rows. So neither an output's unit nor a constant that is added to it counts. Where a float
output looks like scores of classes (a row of numbers for each input row), the share of rows with
the same top class is counted, too; of whole numbers and text the share of rows that are equal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marship.contract import Array, Arrays

FEWEST_ROWS = 8
"""Real rows without which no variant is judged by its outputs."""
SURE_Z = 1.645
"""Of the normal distribution at 95 %, one-sided."""
SCORES_AXES = 2
NORM = "root mean square of the difference over that of the output less its mean over the rows"
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
        error: The relative error; None if the output has no floats.
        worst_row: The largest error of a row, relative to the spread of all.
        same: Rows with the same top class, or equal values; None if only the error counts.
        is_class: Whether `same` counts top classes.
    """

    rows: int
    error: float | None = None
    worst_row: float | None = None
    same: int | None = None
    is_class: bool = False

    @property
    def agreement(self) -> float | None:
        """The share of rows that agree."""
        return self.same / self.rows if self.same is not None and self.rows else None

    @property
    def sure_agreement(self) -> float | None:
        """The share that agrees at 95 % confidence, for any number of rows like these.

        The lower end of the score interval (Wilson 1927, Probable Inference).
        """
        if self.agreement is None:
            return None
        share, n, z = self.agreement, self.rows, SURE_Z
        middle, half = (
            share + z**2 / (2 * n),
            z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)),
        )
        return max(0.0, (middle - half) / (1 + z**2 / n))


def compare(got: Sequence[Arrays], want: Sequence[Arrays]) -> dict[str, Fidelity]:
    """Compare the outputs of several calls with the exported model's, by output.

    Args:
        got: A variant's, by call.
        want: The exported model's for the same inputs.
    """
    return {
        name: _compared([call[name] for call in got], [call[name] for call in want])
        for name in want[0]
    }


def objection(found: Mapping[str, Fidelity], bounds: Allowance) -> str | None:
    """Why outputs are not close enough; None if they are."""
    for name, one in found.items():
        if one.error is not None and not one.error <= bounds.error:
            return (
                f"output {name} is off by {_shown(one.error, bounds.error)} of its spread on "
                f"{one.rows} real rows, more than {bounds.error:g}"
            )
        if one.same is not None and not one.same >= bounds.agreement * one.rows:
            other = "has another top class" if one.is_class else "has other values"
            return (
                f"output {name} {other} in {one.rows - one.same} of {one.rows} real rows, more "
                f"than {100 * (1 - bounds.agreement):.3g} %"
            )
    return None


def _shown(value: float, bound: float) -> str:
    """A figure with as many digits as tell it from its bound."""
    if not math.isfinite(value):
        return "any amount"
    return next(
        (text for n in range(2, 17) if float(text := f"{value:.{n}g}") > bound), repr(value)
    )


def _compared(got: Sequence[Array], want: Sequence[Array]) -> Fidelity:
    rows = sum(_rows_of(array) for array in want)
    if any(a.shape != b.shape for a, b in zip(got, want, strict=True)):
        is_float = want[0].dtype.kind == "f"
        return Fidelity(rows, math.inf, math.inf) if is_float else Fidelity(rows, same=0)
    is_table = len({array.shape[1:] for array in want}) == 1 and want[0].ndim > 0
    ours, theirs = _joined(got, is_table=is_table), _joined(want, is_table=is_table)
    if theirs.dtype.kind != "f":
        return Fidelity(len(theirs), same=int(_equal_rows(ours, theirs).sum()))
    error, worst = _errors(ours.astype(np.float64), theirs.astype(np.float64))
    if not (is_table and theirs.ndim == SCORES_AXES and theirs.shape[1] > 1):
        return Fidelity(rows if is_table else len(want), error, worst)
    same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    return Fidelity(rows, error, worst, same, is_class=True)


def _rows_of(array: Array) -> int:
    return len(array) if array.ndim else 1


def _joined(arrays: Sequence[Array], *, is_table: bool) -> Array:
    """All rows of a table; else all values, one by one."""
    return np.concatenate(arrays if is_table else [array.ravel() for array in arrays])


def _equal_rows(ours: Array, theirs: Array) -> Array:
    return np.array([np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)], dtype=bool)


def _errors(ours: Array, theirs: Array) -> tuple[float, float]:
    """The error over all rows, and the largest of a row, both over the spread of all."""
    if theirs.size == 0:
        return 0.0, 0.0
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.where(same, 0.0, ours - theirs).reshape(len(theirs), -1)
    known = np.where(np.isfinite(theirs), theirs, np.nan).reshape(len(theirs), -1)
    known = known[:, ~np.isnan(known).all(axis=0)]
    power = np.nanmean(np.square(known - np.nanmean(known, axis=0))) if known.size else 0.0
    if power == 0:  # the output never changes: what is off counts by its size
        power = np.nanmean(np.square(known)) if known.size else 0.0
    by_row = np.nan_to_num(np.square(off).mean(axis=1), nan=np.inf, posinf=np.inf)
    error, worst = (math.sqrt(value) for value in (by_row.mean(), by_row.max()))
    if error == 0:
        return 0.0, 0.0
    spread = math.sqrt(power)
    return (error / spread, worst / spread) if spread else (math.inf, math.inf)
