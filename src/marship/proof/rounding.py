"""Which output differences are rounding errors: those in the last bits by the batch size."""

import numpy as np

from marship.contract import Array, Arrays
from marship.errors import ModelError
from marship.proof.comparison import RunModel

ROUNDING = 1e-3
"""Differences count as rounding below this share of an element's typical magnitude..."""
ROUNDING_OF_ROW = 1e-5
"""...or below this share of the row's largest element..."""
ROUNDING_OF_INPUT = 2.0**-22
"""...or below this share of its largest input: where terms cancel, only rounding is left."""
HALF_ROUNDING = 10.0
"""Factor of the limits for outputs of half precision."""

SHAKES, SHAKE = 8, 2.0**-21
"""How often, and by which share at most, inputs are changed to see what rounding makes of them."""
SHAKE_MARGIN = 64.0
"""A difference beyond this factor of what such a change causes is none of rounding..."""
SHAKE_MOST = 10.0
"""...nor is one beyond this factor of what the relative tolerance makes of the value and of a
magnitude..."""
SHAKE_USUAL = 0.9
"""...that this share of the output's distinct ones do not exceed."""


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


def beyond_rounding(
    run: RunModel, inputs: Arrays, got: Arrays, want: Arrays, *, rtol: float
) -> Arrays:
    """`got` with `want` in its place where another runtime differs from `run` by rounding alone.

    There, changes of the inputs' last digits, which `run` is to bear, change its own outputs as
    much: those of the element, or of its row and of its column.

    Args:
        run: The function that gave `want`.
        inputs: Its inputs.
        got: The other runtime's outputs.
        want: Its outputs.
        rtol: The relative tolerance.
    """
    generator = np.random.default_rng(0)
    floats = [k for k, v in want.items() if v.dtype.kind == "f" and got[k].shape == v.shape]
    squares = {name: np.zeros(want[name].shape) for name in floats}
    try:
        for _ in range(SHAKES):
            shaken = run({k: _shaken(array, generator) for k, array in inputs.items()})
            for name in floats:
                squares[name] += np.square(_apart(shaken[name], want[name]))
    except (ModelError, ValueError):  # such values may be refused, or give another shape
        return got
    most = SHAKE_MOST * rtol
    return got | {k: _replaced(got[k], want[k], squares[k] / SHAKES, most) for k in floats}


def _replaced(got: Array, want: Array, squares: Array, most: float) -> Array:
    sizes = np.abs(np.where(np.isfinite(want), want, 0.0)).astype(np.float64)
    usual = float(np.quantile(np.unique(sizes), SHAKE_USUAL)) if sizes.size else 0.0
    if squares.ndim > 1 and squares.any() and np.isfinite(squares).all():
        rows = squares.mean(axis=tuple(range(1, squares.ndim)), keepdims=True)
        columns = squares.mean(axis=tuple(range(squares.ndim - 1)), keepdims=True)
        squares = np.maximum(squares, rows * columns / squares.mean())
    limits = np.minimum(SHAKE_MARGIN * np.sqrt(squares), most * (sizes + usual))
    return np.where(_apart(got, want) <= limits, want, got)


def _shaken(array: Array, generator: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return array
    return (array * (1 + SHAKE * generator.choice((-1.0, 1.0), array.shape))).astype(array.dtype)


def _apart(one: Array, other: Array) -> Array:
    """How far two arrays are apart, float64; infinite where one alone is finite."""
    same_value = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return np.where(same_value, 0.0, np.nan_to_num(gap, nan=np.inf, posinf=np.inf))
