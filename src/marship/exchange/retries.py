"""Asking again: predictions that fail through no fault of their own, for a while.

A prediction changes nothing on the server, so it may be asked twice; nothing else is. Pauses
grow, with jitter, so that clients of a server that was away do not all come back at once.
A timeout is not retried: that would only add to the load, and end a worker each
time where it was too slow for the model's responseTimeout. What came too fast
(429) is, when the answer says after how long. A server that was away may be back before its
models: an unknown model (404) is retried then, and only then.
"""

import random
import time
from collections.abc import Callable
from http import HTTPStatus

from marship.errors import NoAnswerError, NotRunningError, ResponseTimeoutError
from marship.exchange.calls import Answer, Call, Flow, Pause, is_death, may_be_timeout

RETRY_S = 20.0
"""Longer than a worker takes to come back after it was killed once."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
MOST_DEATHS = 2
"""A request may be what the workers die of."""

_BUSY_OR_AWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)


Limit = Callable[[Call], Flow[float | None]]
"""Finds out how many seconds a worker has for a prediction; None where nobody says."""


def persistent(
    call: Call, policy: "RetryPolicy", *, has_met: bool, response_timeout_s: Limit
) -> Flow[Answer]:
    """Make a call, and again while the policy allows, if its failure may pass.

    Args:
        call: What is asked.
        policy: One for all that a caller asks for at a time.
        has_met: Whether the server has answered before: one that never did is not waited for.
        response_timeout_s: Asked where a worker died, of which that may be the reason.

    Raises:
        ResponseTimeoutError: The worker took longer than it may.
        NotRunningError: Nobody answers.
        NoAnswerError: The connection ended, or the answer takes too long.
    """
    while True:
        began = time.monotonic()
        try:
            answer: Answer = yield call
        except NotRunningError:
            if not has_met or (pause := policy.after_loss()) is None:
                raise
        except NoAnswerError as error:
            if error.timed_out or (pause := policy.after_loss()) is None:
                raise
        else:
            if call.repeats and may_be_timeout(answer):
                took_s = time.monotonic() - began
                limit_s = yield from response_timeout_s(call)
                _check_time(call, took_s, limit_s)
                if limit_s is None and took_s >= policy.retry_s:
                    return answer  # as it may have been too slow, and would be again
            if (pause := policy.after(answer)) is None:
                return answer
        yield pause


def _check_time(call: Call, took_s: float, limit_s: float | None) -> None:
    """Tell a worker that was ended for being too slow from one that crashed.

    Raises:
        ResponseTimeoutError: It had the time that it may have.
    """
    if limit_s is not None and took_s >= limit_s:
        raise ResponseTimeoutError(
            f"{call.path} must be answered within the model's responseTimeout of {limit_s:g} s, "
            f"got none after {took_s:.1f} s, and TorchServe ended the worker. Ask for less at a "
            "time, or package the model with a longer --response-timeout-s."
        )


class RetryPolicy:
    """How long to wait before each further try, and when to stop.

    Args:
        retry_s: Seconds from the first failure; 0 asks once.
        on_retry: Called before each further try.
    """

    def __init__(self, retry_s: float, on_retry: Callable[[], None] | None = None) -> None:
        self.retry_s, self._pause_s, self._on_retry = retry_s, FIRST_PAUSE_S, on_retry
        self._end: float | None = None
        self._deaths, self._was_away = 0, False

    def after_loss(self) -> Pause | None:
        """Nobody answered; None where the time is over."""
        self._was_away = True
        return self.next_pause()

    def after(self, answer: Answer) -> Pause | None:
        """None for what is an answer, or was tried often enough."""
        after_s = _retry_after_s(answer)
        is_limit = answer.status == HTTPStatus.TOO_MANY_REQUESTS and after_s is not None
        is_early = self._was_away and answer.status == HTTPStatus.NOT_FOUND
        if is_limit or is_early or answer.status in _BUSY_OR_AWAY:
            return self.next_pause(after_s or 0.0)
        if not is_death(answer):
            return None
        self._deaths += 1
        return self.next_pause() if self._deaths <= MOST_DEATHS else None

    def next_pause(self, least_s: float = 0.0) -> Pause | None:
        """None where the time is over before the pause is."""
        now = time.monotonic()
        self._end = self._end or now + self.retry_s
        seconds = max(least_s, self._pause_s * random.uniform(0.5, 1))  # noqa: S311  no secret
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if now + seconds >= self._end:
            return None
        if self._on_retry:
            self._on_retry()
        return Pause(seconds)


def _retry_after_s(answer: Answer) -> float | None:
    """The seconds that the header asks for (RFC 9110, 10.2.3); a date in it is not read."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
