"""Values at each number of rows: where they follow that number in a straight line."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from marship.contract import Array

_FEWEST = 3
"""Points of which one may be off a line."""
_EXACT = 4
"""Steps of a type between numbers that may be equal but for rounding."""


def bends(values: Sequence[Array]) -> list[int]:
    """Of a value at one row, at two and so on: 1 where it is off the line of the two before.

    Of a truth: something that differs where the value does. Of a value that grows with the rows:
    whether one more changes those before, or is not one step further.

    Examples:
        >>> bends([np.array(n % 4) for n in range(1, 8)])
        [0, 0, 0, 1, 1, 0, 0]
    """
    if any(one.shape != values[0].shape for one in values):
        return [0, *(_is_turned(*two) for two in pairwise(values))]
    held = np.stack(values).reshape(len(values), -1)
    if held.dtype.kind == "b":
        return [hash(one.tobytes()) for one in held]
    if held.dtype.kind not in "iuf" or len(held) < _FEWEST:
        return [0] * len(held)
    return [0, 0, *_is_bent(held).any(axis=1).astype(int).tolist()]


def _is_bent(held: Array) -> Array:
    """Where the third of three neighbours is off the line of the first two."""
    if held.dtype.kind == "u":
        held = held.astype(np.int64)
    with np.errstate(all="ignore"):
        bend = held[2:] - 2 * held[1:-1] + held[:-2]
        if held.dtype.kind != "f":
            return np.asarray(bend != 0)
        size = np.abs(held[2:]) + np.abs(held[:-2])
        is_off = np.abs(bend) > _EXACT * np.finfo(held.dtype).eps * size
        return np.asarray(is_off | ~np.isfinite(held[2:]))


def _is_turned(before: Array, after: Array) -> int:
    """Whether a value that grows along an axis does not just get one more row of its line."""
    axes = [at for at, size in enumerate(after.shape) if size != before.shape[at : at + 1][0]]
    if len(axes) != 1 or after.dtype.kind not in "biuf":
        return 0
    held, old = (np.moveaxis(one, axes[0], 0) for one in (after, before))
    if old.shape[0] > held.shape[0] or differs(held[: len(old)], old).any():
        return 1
    last = held[-_FEWEST:].reshape(len(held[-_FEWEST:]), -1)
    if held.dtype.kind == "b":
        return int(len(last) > 1 and (last[-1] != last[-2]).any())
    return int(len(last) == _FEWEST and _is_bent(last).any())


def differs(value: Array, other: Array) -> Array:
    """Where two values are not the same; two that are no number are."""
    found = np.asarray(value != other)
    if value.dtype.kind == "f":
        found &= ~(np.isnan(value) & np.isnan(other))
    return found
