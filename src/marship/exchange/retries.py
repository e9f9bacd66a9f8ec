"""Retries of predictions after transient failures, within a time budget.

Only predictions are retried: they change nothing on the server. Backoff is exponential with
jitter, so that clients do not return all at once after an outage. A timeout is not retried: that
would only add to the load, and kill one more worker each time if it exceeded the model's
response timeout. A rate limit (429) is retried if the response has Retry-After. A server may be
back before its models are: after an outage, and only then, an unknown model (404) is retried.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

from marship.errors import (
    NoAnswerError,
    NotRunningError,
    ResponseTimeoutError,
    ScaledToZeroError,
)
from marship.exchange.calls import Call, Flow, HttpResponse, Pause

RETRY_S = 20.0
"""Longer than a worker takes to restart after it was killed once."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
MOST_DEATHS = 2
"""Retries after crashes: the request itself may be what crashes the workers."""

_BUSY_OR_AWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)


class Crash(Enum):
    """How a worker ended while it handled a request."""

    DIED = auto()
    """It crashed, or the server killed it for exceeding the model's response timeout."""
    SCALED_DOWN = auto()


@dataclass(frozen=True, slots=True)
class Crashes:
    """What an engine knows of workers that ended.

    Attributes:
        of: How the worker ended, by the response; None if it did not.
        limit_s: Looks up a model's response timeout in seconds; None if it is unknown.
        check_workers: Looks up whether a model that has no worker will get one; raises if not.
    """

    of: Callable[[HttpResponse], Crash | None]
    limit_s: Callable[[Call], Flow[float | None]]
    check_workers: Callable[[Call, HttpResponse], Flow[None]]


def persistent(
    call: Call, policy: "RetryPolicy", *, has_met: bool, crashes: Crashes
) -> Flow[HttpResponse]:
    """Make a call, and retry transient failures while the policy allows.

    Args:
        call: The call.
        policy: One for all calls of one operation.
        has_met: Whether the server has responded before: one that never did is not waited for.
        crashes: How the engine reports workers that crashed.

    Raises:
        ResponseTimeoutError: The worker exceeded the model's response timeout.
        ScaledToZeroError: The model has no workers, and none are wanted.
        NotRunningError: No server listens.
        NoAnswerError: The connection was lost or timed out.
    """
    while True:
        started_at = time.monotonic()
        try:
            response: HttpResponse = yield call
        except (NotRunningError, NoAnswerError) as error:
            is_final = error.timed_out if isinstance(error, NoAnswerError) else not has_met
            if is_final or (pause := policy.after_loss()) is None:
                raise
        else:
            crash = crashes.of(response)
            if call.is_retryable and crash is Crash.DIED:
                took_s = time.monotonic() - started_at
                limit_s = yield from crashes.limit_s(call)
                _check_time(call, took_s, limit_s)
                if limit_s is None and took_s >= policy.retry_s:
                    return response  # it may have timed out, and would again
            if policy.is_first_refusal(call, response):
                yield from crashes.check_workers(call, response)
            if (pause := policy.after(response, has_crashed=crash is not None)) is None:
                return response
        yield pause


def _check_time(call: Call, took_s: float, limit_s: float | None) -> None:
    """Distinguish a worker that was killed for its response timeout from one that crashed.

    Raises:
        ResponseTimeoutError: The elapsed time exceeds the limit.
    """
    if limit_s is not None and took_s >= limit_s:
        raise ResponseTimeoutError(
            f"{call.path} must get a response within the response timeout of {limit_s:g} s, got "
            f"none after {took_s:.1f} s, and the server killed the worker. Send less at "
            "a time, or package the model with a longer --response-timeout-s."
        )


class RetryPolicy:
    """The delay before each retry, and when to give up.

    Args:
        retry_s: Seconds from the first failure; 0 disables retries.
        on_retry: Called before each retry.
    """

    def __init__(self, retry_s: float, on_retry: Callable[[], None] | None = None) -> None:
        self.retry_s, self._pause_s, self._on_retry = retry_s, FIRST_PAUSE_S, on_retry
        self._end: float | None = None
        self._deaths, self._was_away, self._was_refused = 0, False, False

    def is_first_refusal(self, call: Call, response: HttpResponse) -> bool:
        """Whether it is the first response that says that the server is busy or away."""
        is_refusal = call.is_retryable and response.status in _BUSY_OR_AWAY
        is_first = is_refusal and not self._was_refused
        self._was_refused |= is_refusal
        return is_first

    def after_loss(self) -> Pause | None:
        """The delay after a lost connection; None to give up."""
        self._was_away = True
        return self.next_pause()

    def after(self, response: HttpResponse, *, has_crashed: bool) -> Pause | None:
        """The delay after a response; None if it is final, or to give up."""
        is_away = response.status in _BUSY_OR_AWAY
        if is_away and response.error.get("code") == ScaledToZeroError.code:
            return None
        after_s = _retry_after_s(response)
        if has_crashed:
            self._deaths += 1
            return self.next_pause(after_s or 0.0) if self._deaths <= MOST_DEATHS else None
        is_limit = response.status == HTTPStatus.TOO_MANY_REQUESTS and after_s is not None
        is_early = self._was_away and response.status == HTTPStatus.NOT_FOUND
        if is_limit or is_early or is_away:
            return self.next_pause(after_s or 0.0)
        return None

    def next_pause(self, least_s: float = 0.0) -> Pause | None:
        """The next delay; None if it would end after the time budget."""
        now = time.monotonic()
        self._end = self._end or now + self.retry_s
        seconds = max(least_s, self._pause_s * random.uniform(0.5, 1))  # noqa: S311  no secret
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if now + seconds >= self._end:
            return None
        if self._on_retry:
            self._on_retry()
        return Pause(seconds)


def _retry_after_s(response: HttpResponse) -> float | None:
    """The seconds of the Retry-After header (RFC 9110, 10.2.3); dates are not supported."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
