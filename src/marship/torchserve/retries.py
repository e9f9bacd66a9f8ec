"""Asking again: predictions that fail through no fault of their own, for a while.

A prediction changes nothing on the server, so it may be asked twice; nothing else is. Pauses
grow, and are drawn at random, lest all clients of a server that was away come back at once.
What was too slow is not asked again: that would only add to the load. What came too fast
(429) is, when the answer says after how long. A server that was away may be back before its
models: a model that is not there (404) is asked for again then, and only then.
"""

import random
import time
from collections.abc import Callable
from http import HTTPStatus

from marship.errors import NoAnswerError, NotRunningError
from marship.torchserve.calls import Answer, Call, Flow, Pause, is_death

RETRY_S = 20.0
"""Longer than a worker takes to come back after it was killed once."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
MOST_DEATHS = 2
"""A request may be what the workers die of."""

_BUSY_OR_AWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)


def persistent(call: Call, patience: "Patience", *, has_met: bool) -> Flow[Answer]:
    """Make a call, and again while there is patience, if its failure may pass.

    Args:
        call: What is asked.
        patience: One for all that a caller asks for at a time.
        has_met: Whether the server has answered before: one that never did is not waited for.

    Raises:
        NotRunningError: Nobody answers.
        NoAnswerError: The connection ended, or the answer takes too long.
    """
    while True:
        try:
            answer: Answer = yield call
        except NotRunningError:
            if not has_met or (pause := patience.after_loss()) is None:
                raise
        except NoAnswerError as error:
            if error.timed_out or (pause := patience.after_loss()) is None:
                raise
        else:
            if (pause := patience.after(answer)) is None:
                return answer
        yield pause


class Patience:
    """How long to wait before each further try, and when to stop.

    Args:
        retry_s: Seconds from the first failure; 0 asks once.
        on_retry: Called before each further try.
    """

    def __init__(self, retry_s: float, on_retry: Callable[[], None] | None = None) -> None:
        self._retry_s, self._pause_s, self._on_retry = retry_s, FIRST_PAUSE_S, on_retry
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
        self._end = self._end or now + self._retry_s
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
