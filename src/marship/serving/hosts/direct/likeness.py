"""Whether two versions respond alike to one request."""

from http import HTTPStatus
from typing import Any

import numpy as np

from marship.serving.formats.golden import ValueBounds, value_of
from marship.serving.hosts.direct.trial import Likeness, TrialOrder, VersionResponse

MOST_BYTES = 1 << 20
"""Of a response that is compared: both are parsed, which takes milliseconds."""
_MOST_SHOWN = 80
_ALIKE = Likeness(differs=False)


def compare(new: VersionResponse, default: VersionResponse, order: TrialOrder) -> Likeness:
    """Compare the responses of two versions.

    JSON, JSON lines and npy are compared value by value, as golden requests are. Other bodies that
    are not the same bytes are not comparable: encrypted ones differ each time.

    Args:
        new: The new version's.
        default: The default version's.
        order: Says how far numbers may be apart.

    Returns:
        Places and distances in it, and nothing else of the responses.
    """
    found = known(new, default)
    return _of_bodies(new, default, order) if found is None else found


def known(new: VersionResponse, default: VersionResponse) -> Likeness | None:
    """What is to be seen without parsing; None where the bodies must be parsed."""
    if new.status != default.status:
        return Likeness(differs=True, place=f"status {new.status} in place of {default.status}")
    if new.status >= HTTPStatus.BAD_REQUEST:  # both refuse it; texts of errors have ids
        return _ALIKE
    if new.content_type != default.content_type:
        return Likeness(differs=True, place="another media type")
    if new.body is None or default.body is None:
        return Likeness(differs=None)
    return _ALIKE if new.body == default.body else None


def _of_bodies(new: VersionResponse, default: VersionResponse, order: TrialOrder) -> Likeness:
    got, want = (value_of(one.body or b"", one.content_type) for one in (new, default))
    if isinstance(got, bytes) or isinstance(want, bytes):
        return Likeness(differs=None)
    return _of_values(got, want, ValueBounds(order.absolute, order.relative))


def _of_values(got: Any, want: Any, bounds: ValueBounds) -> Likeness:  # noqa: ANN401  any JSON value
    first, largest = "", 0.0
    for place, one, other in bounds.differences(got, want):
        gap = _gap(one, other)
        largest = max(largest, gap or 0.0)
        by = "is another value" if gap is None else f"is off by {gap:.4g}"
        first = first or f"{place[:_MOST_SHOWN] or 'the response'} {by}"
    return Likeness(bool(first), largest, first)


def _gap(one: Any, other: Any) -> float | None:  # noqa: ANN401  any JSON value
    """How far two numbers or two arrays of numbers are apart; None of other things."""
    if not all(isinstance(value, int | float | np.ndarray) for value in (one, other)):
        return None
    found, wanted = np.asarray(one), np.asarray(other)
    if found.shape != wanted.shape or any(a.dtype.kind not in "iuf" for a in (found, wanted)):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(found.astype(np.float64) - wanted)
    finite = gaps[np.isfinite(gaps)]
    return float(finite.max()) if finite.size == gaps.size else None
