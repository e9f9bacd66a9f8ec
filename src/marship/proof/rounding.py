"""Which differences between outputs are rounding: what a batch's size changes in the last bits."""

import numpy as np

from marship.contract import Array, Arrays

ROUNDING = 1e-3
"""Of an element's usual size: no difference below it counts, nor does one of..."""
ROUNDING_OF_ROW = 1e-5
"""...this share of the row's largest element, nor..."""
ROUNDING_OF_INPUT = 2.0**-22
"""...this share of its largest input: outputs that cancel out to nothing are rounding only."""
HALF_ROUNDING = 10.0
"""How many times more is allowed to outputs of half precision."""


def limits_of(sizes: Array, largest_input: float, *, half: bool) -> Array:
    """How far elements of such sizes may be off, float64.

    Args:
        sizes: The usual size of an element, by its place along the last axis.
        largest_input: The largest number that the row was computed from.
        half: Whether the output is of half precision.
    """
    largest = sizes.max() if sizes.size else 0.0
    limits = ROUNDING * sizes + ROUNDING_OF_ROW * largest + ROUNDING_OF_INPUT * largest_input
    return np.asarray(limits * (HALF_ROUNDING if half else 1.0))


def largest_float(part: Arrays) -> float:
    """The largest finite number of a part's float inputs; 1 where it has none."""
    floats = [array for array in part.values() if array.dtype.kind == "f" and array.size]
    finite = [np.abs(array[np.isfinite(array)]).max(initial=0.0) for array in floats]
    return float(max(finite, default=1.0))


def column_sizes(array: Array) -> Array:
    """float64: the largest finite element along the last axis's places; all, where it is one."""
    if array.dtype.kind not in "fc":
        return np.zeros(1)
    sizes = np.abs(array).astype(np.float64)
    sizes = np.where(np.isfinite(sizes), sizes, 0.0)
    columns = sizes.reshape(-1, sizes.shape[-1] if sizes.ndim > 1 else 1)
    return np.asarray(columns.max(axis=0, initial=0.0))


def gap_of(got: Array, want: Array, limits: Array) -> tuple[float, float, bool]:
    """Largest difference, the same relative to an element's size, and whether it is too large.

    Elements that are not finite alone are passed over: what overflows may overflow otherwise.
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
    """Whether two arrays are the same to the bit, NaN included."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
