"""Values at each number of rows: where they follow that number in a straight line."""

from collections.abc import Sequence

import numpy as np

from marship.contract import Array

_FEWEST = 3
"""Points of which one may be off a line."""


def straight(values: Sequence[Array]) -> list[int]:
    """Of a value at one row, at two and so on: 1 where it is on the line of those at two and three.

    Of a truth: something that differs where the value does. Of a value that grows with the rows:
    whether these are on a line.

    Examples:
        >>> straight([np.array(n % 4) for n in range(1, 8)])
        [1, 1, 1, 0, 0, 0, 0]
    """
    if any(one.shape != values[0].shape for one in values):
        return [_is_even(one, rows) for rows, one in enumerate(values, 1)]
    held = np.stack(values).reshape(len(values), -1)
    if held.dtype.kind == "b":
        return [hash(one.tobytes()) for one in held]
    if held.dtype.kind not in "iuf" or len(held) < _FEWEST:
        return [1] * len(held)
    held = held.astype(np.float64)
    with np.errstate(all="ignore"):
        line = held[1] + (held[2] - held[1]) * (np.arange(len(held)) - 1)[:, None]
        return [int(_is_near(one, there)) for one, there in zip(held, line, strict=True)]


def _is_even(array: Array, rows: int) -> int:
    axis = next((at for at, size in enumerate(array.shape) if size and size % rows == 0), None)
    if axis is None or array.dtype.kind not in "biuf" or rows < _FEWEST:
        return 1
    split = np.moveaxis(array, axis, 0).reshape(rows, -1).astype(np.float64)
    with np.errstate(all="ignore"):
        steps = np.diff(split, axis=0)
        return int(_is_near(steps, steps[0]))


def _is_near(array: Array, other: Array) -> bool:
    return bool(np.isclose(array, other, rtol=1e-6, equal_nan=True).all())


def differs(value: Array, other: Array) -> Array:
    """Where two values are not the same; two that are no number are."""
    found = np.asarray(value != other)
    if value.dtype.kind == "f":
        found &= ~(np.isnan(value) & np.isnan(other))
    return found
