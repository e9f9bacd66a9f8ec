"""Draining: waiting until a version that gets no new requests has finished its old ones.

TorchServe unregisters a version with requests in flight, which then never get a response. It
reports how many are queued, not how many are running: so the queue must be empty and the workers'
processes idle, and then a last request is sent, which a single worker takes after all others.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import psutil

from marship.engines.engine import DRAIN_S, ModelStatus
from marship.engines.home import WORKERS_SOCKET
from marship.engines.metrics import of_versions
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.status import describe
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotRunningError,
    ServerError,
    TokenError,
)
from marship.exchange.calls import Call, Flow, Pause, Step, Work, path

QUIET_S = 1.0
_DIRECT_S, _MOST_BYTES = 20.0, 1 << 16
_AGAIN_S = 0.5  # workers have registered with the next acceptor by then
_POLL_S = 0.25
_TAKEN = "ts_inference_requests_total"
_IDLE_SHARE = 0.05  # of one core: a worker's metrics thread wakes periodically


def drain(access: Access, name: str, version: str, *, timeout_s: float = DRAIN_S) -> Flow[None]:
    """Wait until no request is queued or running; another version must be the default.

    A request that waits without using the CPU is noticed with a single worker, not with several.
    For a remote server, running requests of several workers are not noticed.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Requests remain after the timeout.
    """
    end = time.monotonic() + timeout_s
    cpu_use = _CpuUse(is_local=access.is_local)
    quiet_since = time.monotonic()
    while True:
        (status,) = yield from describe(access, name, version)
        now = time.monotonic()
        if cpu_use.is_spent(status) or status.waiting:
            quiet_since = now
        if now - quiet_since >= QUIET_S or not status.workers:
            break
        if now > end:
            raise ServerError(
                f"{name} {version} must respond to its open requests within {timeout_s:g} s, got "
                f"{status.waiting} requests waiting and workers still busy."
            )
        yield Pause(_POLL_S)
    if status.workers:
        yield from _send_last(access, name, version)


def is_quiet(access: Access, before: ModelStatus, pids: Sequence[int]) -> Flow[bool]:
    """Whether workers have nothing to do that came through TorchServe's own address.

    For a second no such request came, none was queued, and these workers did not use the CPU: a
    call that only waits for something else is not noticed.

    Args:
        access: The server's addresses.
        before: The version.
        pids: The workers, which got no direct requests meanwhile.
    """
    came = yield from _came(access, before.name)
    chosen = replace(before, workers=tuple(w for w in before.workers if w.pid in pids))
    cpu_use = _CpuUse(is_local=access.is_local)
    cpu_use.is_spent(chosen)
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end:
        yield Pause(_POLL_S)
        (now,) = yield from describe(access, before.name, before.version)
        if now.waiting or cpu_use.is_spent(chosen):
            return False
    return came == (yield from _came(access, before.name))


def _came(access: Access, name: str) -> Flow[float]:
    """How many requests of a model TorchServe has taken."""
    response = yield from access.authorized(Call("metrics", "GET", "/metrics"))
    found = of_versions(response.body.decode("utf-8")).items()
    return sum(sums.get(_TAKEN, 0.0) for (model, _), sums in found if model == name)


@contextmanager
def taken_off(
    access: Access, name: str, version: str | None, pids: Sequence[int] | None = None
) -> Iterator[Step]:
    """A step that lets workers finish clients' direct requests, and refuses new ones.

    Its result is whether they have finished.

    TorchServe kills a worker that it ends at once. Workers that still live when the block ends
    serve clients again. For a remote server, and without an acceptor, nothing is done.

    Args:
        access: The server's addresses.
        name: The model.
        version: Its version; None is the default one.
        pids: The workers that will end; None is all.
    """
    request = {"kind": "drain", "model": name, "version": version, "pids": pids}
    lines = ExitStack()

    def wait() -> bool:
        record = access.home.running() if access.is_local else None
        if record is None or record.acceptor is None:
            return True
        end = time.monotonic() + _DIRECT_S
        with suppress(OSError):  # no acceptor, or requests that take longer: they get a status
            while time.monotonic() < end:
                line = lines.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                line.settimeout(max(_POLL_S, end - time.monotonic()))
                line.connect(f"{record.tmp}/{WORKERS_SOCKET}")
                if _are_drained(line, request):
                    return True
                lines.close()  # the acceptor died: the next one knows of no drain
                time.sleep(_AGAIN_S)
        return False

    with lines:
        yield Work(wait)


def _are_drained(line: socket.socket, request: Mapping[str, object]) -> bool:
    """Whether the acceptor says that workers have nothing left; False where it dies instead."""
    try:
        line.send(json.dumps(request).encode() + b"\n")
        return bool(line.recv(_MOST_BYTES))
    except ConnectionError:
        return False


def _send_last(access: Access, name: str, version: str) -> Flow[None]:
    """Send TorchServe's DESCRIBE through the queue, which is never batched with other requests."""
    where = path("models", name, version)
    try:
        yield from access.authorized(Call("management", "GET", where, {"customized": "true"}))
    except (NotRunningError, NoAnswerError, TokenError):
        raise
    except MarshipError:  # any response will do: few handlers implement it
        return


class _CpuUse:
    """Tracks the CPU time that workers use."""

    def __init__(self, *, is_local: bool) -> None:
        self._is_local = is_local
        self._seconds: dict[int, float] = {}
        self._at = time.monotonic()

    def is_spent(self, status: ModelStatus) -> bool:
        """Whether a worker used the CPU since the last call, or is new."""
        if not self._is_local:
            return False
        now = time.monotonic()
        before, self._seconds = self._seconds, {w.pid: _used_s(w.pid) for w in status.workers}
        idle_s, self._at = _IDLE_SHARE * (now - self._at), now
        return any(used - before.get(pid, 0) > idle_s for pid, used in self._seconds.items())


def _used_s(pid: int) -> float:
    if pid < 1:  # TorchServe's word for a worker that it has not started yet
        return 0.0
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system
