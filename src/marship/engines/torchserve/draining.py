"""Waiting until a version that gets no more requests has answered those that it had.

TorchServe unregisters a version with requests in it, and none of them is ever answered. It
tells how many wait, not how many run: so the queue must be empty and the workers' processes
idle, and then a question goes through the queue, which a lone worker takes after all others.
"""

import time

import psutil

from marship.engines.engine import DRAIN_S, ModelStatus
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.status import describe
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotRunningError,
    ServerError,
    TokenError,
)
from marship.exchange.calls import Call, Flow, Pause, path

QUIET_S = 1.0
_POLL_S = 0.25
_IDLE_SHARE = 0.05  # of one processor: a worker's thread for metrics wakes now and then


def drain(access: Access, name: str, version: str, *, timeout_s: float = DRAIN_S) -> Flow[None]:
    """Wait until no request waits or runs; another version must be the default already.

    Work that uses no processor is seen in a version's only worker, not in one of several. Where
    the server's processes are not at hand, running requests of several workers are not seen.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Requests are left when the time is over.
    """
    end = time.monotonic() + timeout_s
    effort = _Effort(is_local=access.is_local)
    quiet_since = time.monotonic()
    while True:
        (status,) = yield from describe(access, name, version)
        now = time.monotonic()
        if effort.is_spent(status) or status.waiting:
            quiet_since = now
        if now - quiet_since >= QUIET_S or not status.workers:
            break
        if now > end:
            raise ServerError(
                f"{name} {version} must answer what it was asked within {timeout_s:g} s, got "
                f"{status.waiting} requests waiting and workers still busy."
            )
        yield Pause(_POLL_S)
    if status.workers:
        yield from _ask_last(access, name, version)


def _ask_last(access: Access, name: str, version: str) -> Flow[None]:
    """Send TorchServe's DESCRIBE through the queue: never in one batch with other requests."""
    where = path("models", name, version)
    try:
        yield from access.authorized(Call("management", "GET", where, {"customized": "true"}))
    except (NotRunningError, NoAnswerError, TokenError):
        raise
    except MarshipError:  # any answer will do: hardly a handler knows the question
        return


class _Effort:
    """The processor time that workers use."""

    def __init__(self, *, is_local: bool) -> None:
        self._is_local = is_local
        self._seconds: dict[int, float] = {}
        self._at = time.monotonic()

    def is_spent(self, status: ModelStatus) -> bool:
        """Whether a worker did something since the last call, or is new."""
        if not self._is_local:
            return False
        now = time.monotonic()
        before, self._seconds = self._seconds, {w.pid: _used_s(w.pid) for w in status.workers}
        idle_s, self._at = _IDLE_SHARE * (now - self._at), now
        return any(used - before.get(pid, 0) > idle_s for pid, used in self._seconds.items())


def _used_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system
