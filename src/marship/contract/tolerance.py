"""By how much arrays differ, and by how much they may."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]
"""Arrays by name."""

SMALL, LARGE = 0.1, 100.0
"""Outputs that are nowhere larger than the first get a smaller `atol`, in proportion; those that go
beyond the second a larger one: float32 is off by a millionth of its largest terms."""
LOW_SHARE, LOW_LARGE = 0.1, 3.0
"""A larger `atol` needs values of which all but the first share are beyond the second. Else a few
large ones, as -1e9 for what is not allowed, would excuse any difference in the others."""
FAR = 1e4
"""Magnitudes beyond this factor of the median say nothing of the others."""
MOST_LOOKED_AT = 1 << 18
"""Values of one array, evenly spread: sorting all of a large picture takes seconds."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much two arrays of one output may differ.

    They agree where `|got - want| <= atol * factor + rtol * |want|`, element by element.

    Attributes:
        factors: By output, the factor of `atol`; 1 for all others. Outputs of 1e-5 are not right
            because they are within 1e-4, nor is float noise wrong among outputs of 1e6.
    """

    atol: float = 1e-4
    rtol: float = 1e-3
    factors: Mapping[str, float] = field(default_factory=dict)

    def absolute(self, output: str) -> float:
        """The absolute tolerance of an output: what it may be off by where it is zero."""
        return self.atol * self.factors.get(output, 1.0)

    def scaled(self, results: Iterable[Tensors]) -> "Tolerance":
        """The tolerance scaled to the typical magnitude of these reference outputs.

        An output that is zero throughout keeps `atol`: nothing says how large it can be.
        """
        seen: dict[str, list[npt.NDArray[Any]]] = {}
        for outputs in results:
            for name, array in outputs.items():
                if array.dtype.kind == "f":
                    seen.setdefault(name, []).append(_magnitudes(array))
        factors = {name: _factor(np.unique(np.concatenate(of))) for name, of in seen.items()}
        return replace(self, factors={k: factor for k, factor in factors.items() if factor != 1})

    def __str__(self) -> str:
        """`0.0001 + 0.001 x |value|`, as messages show it."""
        others = "".join(f", for {name} {self.absolute(name):.2g} + ..." for name in self.factors)
        return f"{self.atol:g} + {self.rtol:g} x |value|{others}"


def _magnitudes(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The distinct finite magnitudes above zero, float64, ascending."""
    looked_at = array.ravel()[:: array.size // MOST_LOOKED_AT | 1]  # odd: of every column
    sizes = np.unique(np.abs(looked_at[np.isfinite(looked_at)])).astype(np.float64)
    return sizes[sizes > 0]


def _factor(sizes: npt.NDArray[Any]) -> float:
    """The factor of `atol` for an output with these distinct magnitudes, ascending.

    Distinct, since a value that stands for "none" is repeated.
    """
    if sizes.size == 0:
        return 1.0
    low, middle = (sizes[int(share * (sizes.size - 1))] for share in (LOW_SHARE, 0.5))
    largest = float(sizes[sizes <= FAR * middle][-1])
    if largest < SMALL:
        return largest / SMALL
    return max(1.0, min(float(sizes[-1]) / LARGE, float(low) / LOW_LARGE))


def largest_difference(got: Tensors, want: Tensors) -> tuple[float, float]:
    """The largest absolute and the largest relative difference over all tensors of `want`.

    A NaN on one side only, or a different shape, counts as an infinite difference. Relative
    differences are divided by `|want|`; where that is zero there is none.
    """
    absolute = relative = 0.0
    for name, wanted in want.items():
        found = got[name]
        if found.shape != wanted.shape:
            return float("inf"), float("inf")
        if wanted.dtype.kind not in "fc":
            if not np.array_equal(found, wanted):
                return float("inf"), float("inf")
            continue
        if wanted.size == 0:
            continue
        same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            gap = np.where(same, 0.0, np.abs(found.astype(np.float64) - wanted))
            share = np.where(same | (wanted == 0), 0.0, gap / np.abs(wanted.astype(np.float64)))
        absolute = max(absolute, float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max()))
        relative = max(relative, float(np.nan_to_num(share, nan=np.inf, posinf=np.inf).max()))
    return absolute, relative


def used_share(got: Tensors, want: Tensors, tolerance: Tolerance) -> float:
    """By how much arrays that agree differ, as a share of the tolerance, 0 to 1.

    Example:
        >>> used_share({"y": np.array([1.0005])}, {"y": np.array([1.0])}, Tolerance(0.0, 1e-3))
        0.5
    """
    largest = 0.0
    for name, wanted in want.items():
        if wanted.dtype.kind != "f" or not wanted.size or got[name].shape != wanted.shape:
            continue  # these are equal, or do not agree
        may = tolerance.absolute(name) + tolerance.rtol * np.abs(wanted.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            used = np.abs(got[name].astype(np.float64) - wanted) / may
        largest = max(largest, float(np.nan_to_num(used, nan=0.0).max()))
    return round(largest, 6)


def agree(got: Tensors, want: Tensors, tolerance: Tolerance) -> bool:
    """Whether every element of `got` is within `tolerance` of `want`."""
    return all(
        got[name].shape == wanted.shape
        and (
            np.allclose(
                got[name],
                wanted,
                atol=tolerance.absolute(name),
                rtol=tolerance.rtol,
                equal_nan=True,
            )
            if wanted.dtype.kind in "fc"
            else np.array_equal(got[name], wanted)
        )
        for name, wanted in want.items()
    )
