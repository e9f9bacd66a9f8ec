"""Values outside of the table that they index, or of a type narrower than NumPy's."""

from functools import lru_cache

import numpy as np

from marship.contract import WIDENED, Array, TensorSpec


def outside(array: Array, spec: TensorSpec) -> str | None:
    """The message about a value outside of the table that it indexes; None if all are inside.

    A float is truncated to an index, so -0.5 is 0; NaN is outside. Likewise a value beyond those of
    a narrow type.
    """
    if not array.size:
        return None
    if spec.narrow and (problem := _beyond(array, spec)):
        return problem
    if spec.value_range is not None:
        low, high = spec.value_range
        least = np.minimum.reduce(array, axis=None).item()  # NaN, if there is one
        most = np.maximum.reduce(array, axis=None).item()
        first, last = (least, most) if array.dtype.kind != "f" else np.trunc((least, most))
        if not (low <= first and last <= high):
            return _out_of_range(spec.name, low, high, least if last <= high else most)
    for axis in {column.axis for column in spec.column_ranges}:
        if problem := _outside_columns(array, spec, axis):
            return problem
    return None


def _beyond(array: Array, spec: TensorSpec) -> str | None:
    kind = WIDENED[spec.narrow]
    wrong = (array < kind.low) | (array > kind.high)
    if kind.has_infinity:
        wrong &= np.isfinite(array)
    if not wrong.any():
        return None
    return (
        f"{spec.name} must hold values of {spec.narrow}, from {kind.low:g} to {kind.high:g}, got "
        f"{array[wrong][0]:g}."
    )


def _outside_columns(array: Array, spec: TensorSpec, axis: int) -> str | None:
    places, lows, highs = _limits(spec, axis)
    columns = np.moveaxis(array, axis, -1)[..., places]
    indices = np.trunc(columns)
    wrong = ~((indices >= lows) & (indices <= highs))
    if not wrong.any():
        return None
    first = tuple(np.argwhere(wrong)[0])
    place, low, high = (limit[first[-1]] for limit in (places, lows, highs))
    return _out_of_range(spec.column(axis, place), low, high, columns[first].item())


@lru_cache
def _limits(spec: TensorSpec, axis: int) -> tuple[Array, Array, Array]:
    """Places along an axis, and the smallest and largest index of each: int64, shape (places,)."""
    columns = [column for column in spec.column_ranges if column.axis == axis]
    table = np.array([(c.place, c.low, c.high) for c in columns], np.int64)
    return table[:, 0], table[:, 1], table[:, 2]


def _out_of_range(name: str, low: int, high: int, value: float) -> str:
    return f"{name} must hold values from {low} to {high}, got {value}."
