"""When a typed client sends a request again, as marship's own client does."""

import random
import time

RETRY_S = 20.0
"""Longer than a worker takes to start again after it was killed once."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 3.0
_MOST_DEATHS = 2
"""Retries after crashes: the request itself may be what crashes the workers."""
_NOT_FOUND, _TOO_MANY, _AWAY = 404, 429, (502, 503)


class Retries:
    """The pauses before further tries of one request: random, growing, and within a time.

    Args:
        retry_s: Seconds from the first failure; 0 is none.
    """

    def __init__(self, retry_s: float) -> None:
        self._retry_s, self._pause_s = retry_s, _FIRST_PAUSE_S
        self._end: float | None = None
        self._deaths, self._was_away = 0, False

    def after_loss(self) -> float | None:
        """The pause where no server listens, in seconds; None to give up."""
        self._was_away = True
        return self._next(0.0)

    def after(self, status: int, code: str, retry_after_s: float | None) -> float | None:
        """The pause after a response that is an error, in seconds; None if it is final.

        Args:
            status: Of HTTP.
            code: The error's.
            retry_after_s: When to come again, if the response says so.
        """
        if code == "scaled_to_zero":
            return None
        if code == "worker_died":
            self._deaths += 1
            if self._deaths > _MOST_DEATHS:
                return None
        is_limit = status == _TOO_MANY and retry_after_s is not None
        is_early = status == _NOT_FOUND and self._was_away  # it may be back before its models
        if status in _AWAY or is_limit or is_early:
            return self._next(retry_after_s or 0.0)
        return None

    def _next(self, least_s: float) -> float | None:
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._retry_s
        seconds = max(least_s, self._pause_s * random.uniform(0.5, 1))  # noqa: S311  no secret
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return seconds if now + seconds < self._end else None
