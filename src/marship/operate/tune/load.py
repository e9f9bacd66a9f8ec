"""Requests to an endpoint: at a rate, or by clients that wait for their responses.

At a rate (open loop) requests are due at times that were drawn before, exponentially apart,
whatever the server does; each one's time counts from when it was due and not from when a connection
was free to send it. So a server that stalls once shows it in the times of all that were due
meanwhile: clients that wait would leave them out (coordinated omission: Tene 2013, How NOT to
Measure Latency).

By clients that wait (closed loop) throughput is what the server can do for so many of them.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast

import httptools
import numpy as np
import uvloop

from marship.operate.tune.figures import NEVER_MS, LoadSlice

MOST_CONNECTIONS = 512
DRAIN_S = 5.0
"""After the load, what was sent is waited for so long."""
_APART_S = 2e-4
"""Requests that are due within it are sent together: a thread cannot sleep much shorter."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked.

    Attributes:
        host: The host's name or address.
        port: Its port.
        path: Of predictions.
        token: The token that requests carry; empty without one.
    """

    host: str
    port: int
    path: str
    token: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Those of each request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def request(self, body: bytes, content_type: str) -> bytes:
        """A request as it is sent, HTTP/1.1 (RFC 9112)."""
        fields = {
            "Host": f"{self.host}:{self.port}",
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            **self.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def closed(
    endpoint: Endpoint, requests: Sequence[bytes], clients: int, seconds: float
) -> LoadSlice:
    """Load by clients that each send a request when the last one is answered.

    Args:
        endpoint: Where.
        requests: As they are sent; clients cycle through them.
        clients: How many.
        seconds: For how long.

    Raises:
        OSError: No connection can be made.
    """
    return _run(endpoint, requests, lambda load: load.waiting(clients, seconds))


def at_rate(
    endpoint: Endpoint, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0
) -> LoadSlice:
    """Load by requests that are due at random times (Poisson), whatever the server does.

    Args:
        endpoint: Where.
        requests: As they are sent, one after the other.
        rate: How many a second.
        seconds: For how long.
        seed: Draws when they are due.

    Raises:
        OSError: No connection can be made.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 100)
    due = np.cumsum(gaps)
    due = due[due < seconds]
    return _run(endpoint, requests, lambda load: load.due_at(due.tolist(), seconds))


def _run(
    endpoint: Endpoint,
    requests: Sequence[bytes],
    run: "Callable[[_Load], Coroutine[Any, Any, LoadSlice]]",
) -> LoadSlice:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        load = _Load(runner.get_loop(), endpoint, requests)
        return runner.run(load.measured(run))


@dataclass
class _Load:
    """A load that runs."""

    loop: asyncio.AbstractEventLoop
    endpoint: Endpoint
    requests: Sequence[bytes]
    times_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    failed: int = 0
    lines: "set[_LoadLine]" = field(default_factory=set)
    idle: "list[_LoadLine]" = field(default_factory=list)
    waiting_since: deque[float] = field(default_factory=deque)
    until: float = 0.0
    opening: "set[asyncio.Task[None]]" = field(default_factory=set)
    _sent: int = 0
    _is_ending: bool = False

    async def measured(self, run: "Callable[[_Load], Coroutine[Any, Any, LoadSlice]]") -> LoadSlice:
        """Run the load, and close all connections."""
        try:
            return await run(self)
        finally:
            self._is_ending = True
            for line in list(self.lines):
                line.close()

    async def waiting(self, clients: int, seconds: float) -> LoadSlice:
        """By clients that wait."""
        await asyncio.gather(*(self._open() for _ in range(clients)))
        used, begun = time.process_time(), time.perf_counter()
        self.until = begun + seconds
        for line in list(self.lines):
            self.idle.remove(line)
            line.send(time.perf_counter())
        await asyncio.sleep(seconds)
        used = time.process_time() - used
        await self._drain()
        return self._slice(begun, seconds, used)

    async def due_at(self, due_s: list[float], seconds: float) -> LoadSlice:
        """At the given seconds from the start."""
        await self._open()
        used, begun = time.process_time(), time.perf_counter()
        pacer = threading.Thread(target=self._pace, args=(due_s, begun), daemon=True)
        pacer.start()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(pacer.join)
        used = time.process_time() - used
        await self._drain()
        return self._slice(begun, seconds, used)

    def _pace(self, due_s: list[float], begun: float) -> None:
        """Wake the loop when requests are due: its own timers count whole milliseconds."""
        place = 0
        while place < len(due_s) and not self._is_ending:
            now = time.perf_counter() - begun
            if (ahead := due_s[place] - now) > _APART_S:
                time.sleep(ahead)
                continue
            first = place
            while place < len(due_s) and due_s[place] - now <= _APART_S:
                place += 1
            batch = [begun + one for one in due_s[first:place]]
            self.loop.call_soon_threadsafe(self._start_all, batch)

    def _start_all(self, due: list[float]) -> None:
        for one in due:
            self.waiting_since.append(one)
        while self.waiting_since and self.idle:
            self.idle.pop().send(self.waiting_since.popleft())
        most = MOST_CONNECTIONS - len(self.lines) - len(self.opening)
        for _ in range(min(most, len(self.waiting_since) - len(self.opening))):
            self._begin_to_open()

    def _begin_to_open(self) -> None:
        task = self.loop.create_task(self._open_another())
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def _open_another(self) -> None:
        try:
            await self._open()
        except OSError:
            self.failed += 1
            if self.waiting_since:
                self.waiting_since.popleft()

    async def _open(self) -> None:
        await self.loop.create_connection(
            lambda: _LoadLine(self), self.endpoint.host, self.endpoint.port
        )

    def next_request(self) -> bytes:
        """The bytes of the next request."""
        self._sent += 1
        return self.requests[self._sent % len(self.requests)]

    def is_free(self, line: "_LoadLine") -> None:
        """A connection can be used."""
        if self.waiting_since:
            line.send(self.waiting_since.popleft())
        elif self.until and time.perf_counter() < self.until:
            line.send(time.perf_counter())
        else:
            self.idle.append(line)

    def end(self, since: float, *, is_answered: bool) -> None:
        """A request is answered, or failed."""
        now = time.perf_counter()
        self.times_s.append(now - since)
        if is_answered:
            self.ended_s.append(now)
        else:
            self.failed += 1

    def lost(self, line: "_LoadLine") -> None:
        """A connection was closed; clients that wait open another one."""
        self.lines.discard(line)
        if line in self.idle:
            self.idle.remove(line)
        if not self._is_ending and time.perf_counter() < self.until:
            self._begin_to_open()

    async def _drain(self) -> None:
        """Wait for what was sent; what does not come counts as failed, with the time until now."""
        until = time.perf_counter() + DRAIN_S
        while self._pending and time.perf_counter() < until:
            await asyncio.sleep(0.005)
        for since in [*self.waiting_since, *(line.since for line in self.lines if line.since)]:
            self.end(since, is_answered=False)

    @property
    def _pending(self) -> int:
        return len(self.waiting_since) + sum(line.since is not None for line in self.lines)

    def _slice(self, begun: float, seconds: float, used_s: float) -> LoadSlice:
        times_ms = 1000 * np.array(self.times_s) if self.times_s else np.array([NEVER_MS])
        return LoadSlice(
            seconds=seconds,
            answered=sum(one <= begun + seconds for one in self.ended_s),
            failed=self.failed,
            p50_ms=float(np.percentile(times_ms, 50)),
            p99_ms=float(np.percentile(times_ms, 99)),
            generator=used_s / seconds,
        )


class _LoadLine(asyncio.Protocol):
    """A connection, for one request after the other."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be used."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        self._load.lines.add(self)
        self._load.is_free(self)

    def send(self, since: float) -> None:
        """Send the next request, whose time counts from `since`."""
        self.since = since
        assert self._transport is not None  # noqa: S101  it is connected
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        """A part of a response, or of several."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        """A response is complete."""
        if self.since is not None:
            is_answered = self._parser.get_status_code() == HTTPStatus.OK
            self._load.end(self.since, is_answered=is_answered)
        self.since = None
        if self._parser.should_keep_alive():
            self._load.is_free(self)
        else:
            self.close()

    def connection_lost(self, _error: Exception | None) -> None:
        """It ended, with or without a request in hand."""
        if self.since is not None:
            self._load.end(self.since, is_answered=False)
            self.since = None
        self._load.lost(self)

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()
