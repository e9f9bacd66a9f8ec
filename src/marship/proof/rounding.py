"""Which output differences are rounding errors: those in the last bits by the batch size."""

import numpy as np

from marship.contract import Array, Arrays

ROUNDING = 1e-3
"""Differences count as rounding below this share of an element's typical magnitude..."""
ROUNDING_OF_ROW = 1e-5
"""...or below this share of the row's largest element..."""
ROUNDING_OF_INPUT = 2.0**-22
"""...or below this share of its largest input: where terms cancel, only rounding is left."""
HALF_ROUNDING = 10.0
"""Factor of the limits for outputs of half precision."""


def limits_of(sizes: Array, largest_input: float, *, half: bool) -> Array:
    """The largest difference that counts as rounding, by element, float64.

    Args:
        sizes: The typical magnitude of an element, by its place along the last axis.
        largest_input: The largest input value of the row.
        half: Whether the output is of half precision.
    """
    largest = sizes.max() if sizes.size else 0.0
    limits = ROUNDING * sizes + ROUNDING_OF_ROW * largest + ROUNDING_OF_INPUT * largest_input
    return np.asarray(limits * (HALF_ROUNDING if half else 1.0))


def largest_float(part: Arrays) -> float:
    """The largest finite number of a part's float inputs; 1 without any."""
    floats = [array for array in part.values() if array.dtype.kind == "f" and array.size]
    finite = [np.abs(array[np.isfinite(array)]).max(initial=0.0) for array in floats]
    return float(max(finite, default=1.0))


def column_sizes(array: Array) -> Array:
    """The largest finite magnitude by place along the last axis, float64."""
    if array.dtype.kind not in "fc" or array.size == 0:
        return np.zeros(1)
    sizes = np.abs(array).astype(np.float64)
    sizes = np.where(np.isfinite(sizes), sizes, 0.0)
    columns = sizes.reshape(-1, sizes.shape[-1] if sizes.ndim > 1 else 1)
    return np.asarray(columns.max(axis=0, initial=0.0))


def gap_of(got: Array, want: Array, limits: Array) -> tuple[float, float, bool]:
    """The largest difference, absolute and relative to the magnitude, and whether it is too large.

    Elements that are not finite when run alone are ignored: overflow may differ.
    """
    counted = np.isfinite(want)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(got.astype(np.complex128) - want.astype(np.complex128))
    gap = np.where(counted, np.nan_to_num(gap, nan=np.inf, posinf=np.inf), 0.0)
    if gap.size == 0:
        return 0.0, 0.0, False
    over = bool((gap > limits + np.finfo(np.float32).tiny).any())
    shares = gap / np.maximum(limits / ROUNDING, np.finfo(np.float32).tiny)
    return float(gap.max()), float(shares.max()), over


def same(one: Array, other: Array) -> bool:
    """Whether two arrays are equal to the bit, including NaN."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
