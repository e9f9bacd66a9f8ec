"""The asyncio transport, which runs flows over HTTP with aiohttp.

Separate from the blocking transport, since aiohttp takes longer to import than the rest of the
client.
"""

import asyncio
import os
import ssl
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import aiohttp

from marship.errors import ServerError
from marship.exchange import sockets, transports
from marship.exchange.calls import Call, Destination, Flow, HttpResponse, Lines, Pause, Work
from marship.exchange.connectors import connector
from marship.exchange.transports import Bounds

T = TypeVar("T")
_Sessions = dict[str, aiohttp.ClientSession]
"""One event loop's, by base URL."""
_Kept = dict[int, tuple[_Sessions, AsyncGenerator[_Sessions, None]]]
"""One transport's in one event loop, by process."""
_ATTRIBUTE = "_marship_sessions"


class AsyncTransport:
    """Runs flows; each event loop, and each process after a fork, has connections of its own.

    Several threads may use it, each with a loop of its own.
    """

    def __init__(self, destination: Destination, bounds: Bounds) -> None:
        self._destination, self._bounds = destination, bounds
        # Each loop has its own sessions, which know it: held here, they would keep a loop that was
        # dropped without being closed. Those of another process stay after a fork: closing them
        # would disturb that process. Only single calls of a dict's methods, which need no lock.
        self._loops: dict[int, weakref.ref[asyncio.AbstractEventLoop]] = {}

    async def run(self, flow: Flow[T]) -> T:
        """The flow's result."""
        result: Any = None
        error: BaseException | None = None
        while True:
            step = transports.next_step(flow, result, error)
            if isinstance(step, transports.Done):
                return step.value
            result = error = None
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Work):
                    result = await asyncio.to_thread(step.run)
                else:
                    result = await self._exchange(step)
            except BaseException as problem:  # cancellation too: the flow cleans up
                error = problem

    async def close(self) -> None:
        """Close the running loop's connections."""
        kept = _kept_by(asyncio.get_running_loop()).get(self, {}).pop(os.getpid(), None)
        if kept is not None:
            await kept[1].aclose()

    async def _own(self) -> _Sessions:
        """The running loop's sessions."""
        pid, loop = os.getpid(), asyncio.get_running_loop()
        own = _kept_by(loop).setdefault(self, {})
        if pid not in own:
            self._forget_closed(pid)
            keeper = _keeper({})
            own[pid] = await anext(keeper), keeper  # other tasks do not run meanwhile
            self._loops[id(loop)] = weakref.ref(loop)
        return own[pid][0]

    def _forget_closed(self, pid: int) -> None:
        """Drop the sessions of loops that are closed, and forget those that are gone."""
        for number, known in list(self._loops.items()):
            loop = known()
            if loop is None or loop.is_closed():
                self._loops.pop(number, None)
            if loop is not None and loop.is_closed():
                sessions, _ = _kept_by(loop).get(self, {}).pop(pid, ({}, None))
                for session in sessions.values():
                    session.detach()

    async def _exchange(self, call: Call) -> HttpResponse:
        url = self._destination.url(call)
        with self._faults(url):
            async with asyncio.timeout(self._bounds.timeout_s):
                session = await self._connected(url)
                response = await session.request(
                    call.method,
                    sockets.without_path(url),
                    params=dict(call.params),
                    headers=dict(call.headers),
                    data=call.body,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(),
                )
                try:
                    headers = transports.lowered(response.headers.items())
                    head = self._bounds.check_head(HttpResponse(response.status, headers, b""), url)
                    if call.streams and head.has_lines:
                        return replace(head, lines=self._lines(response, url))
                    return replace(head, body=await self._read(response, url))
                except BaseException:
                    response.close()
                    raise

    async def _connected(self, url: str) -> aiohttp.ClientSession:
        base, sessions = sockets.base_of(url), await self._own()
        if base not in sessions:
            sessions[base] = aiohttp.ClientSession(
                connector=connector(base, self._destination.check_peer, self._destination.tls),
                headers=transports.HEADERS,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return sessions[base]

    async def _read(self, response: aiohttp.ClientResponse, url: str) -> bytes:
        read, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            self._bounds.check(size, url)
            read.append(chunk)
        return b"".join(read)

    async def _lines(self, response: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
        lines, open_bytes = Lines(), 0
        loop = asyncio.get_running_loop()
        async with response:
            with self._faults(url):
                end = loop.time() + self._bounds.timeout_s
                while chunk := await _within(end, response.content.readany()):
                    open_bytes += len(chunk)
                    self._bounds.check(open_bytes, url)
                    for line in lines.feed(chunk):
                        yield line
                    if b"\n" in chunk:
                        open_bytes, end = 0, loop.time() + self._bounds.timeout_s
                for line in lines.end():
                    yield line

    @contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        """Convert errors of aiohttp to our own."""
        try:
            yield
        except TimeoutError as error:
            raise transports.too_slow(url, self._bounds.timeout_s) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise transports.without_tls(url, error.certificate_error) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise transports.without_tls(url, error.os_error) from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionResetError):  # during the TLS handshake
                raise transports.dropped(url) from error
            raise self._destination.not_reachable(url) from error
        except aiohttp.InvalidURL as error:
            raise transports.no_address(url, error) from error
        except aiohttp.ClientError as error:
            raise _no_response(url, error) from error
        except ValueError as error:  # a header that cannot be sent
            raise transports.no_address(url, error) from error


def _kept_by(loop: asyncio.AbstractEventLoop) -> "weakref.WeakKeyDictionary[AsyncTransport, _Kept]":
    """What an event loop holds for transports: it ends with either of them."""
    found: weakref.WeakKeyDictionary[AsyncTransport, _Kept] | None
    if (found := getattr(loop, _ATTRIBUTE, None)) is None:
        found = weakref.WeakKeyDictionary()
        setattr(loop, _ATTRIBUTE, found)
    return found


async def _keeper(sessions: _Sessions) -> AsyncGenerator[_Sessions, None]:
    """The same sessions, which are closed with the generator.

    A loop's asynchronous generators are closed before the loop is, by asyncio.run and others.
    Afterwards no connection can be closed: its socket would stay open until it is garbage.
    """
    pid = os.getpid()
    try:
        yield sessions
    finally:
        while sessions and pid == os.getpid():
            await sessions.popitem()[1].close()


def _no_response(url: str, error: aiohttp.ClientError) -> ServerError:
    if isinstance(error, aiohttp.ClientResponseError):
        return transports.no_http(url, error)
    if isinstance(
        error.__cause__, ssl.SSLError
    ):  # in TLS 1.3 a client is rejected after the handshake
        return transports.without_tls(url, error.__cause__)
    return transports.dropped(url)


async def _within(end: float, waiting: Any) -> bytes:  # noqa: ANN401  a coroutine
    async with asyncio.timeout_at(end):
        read: bytes = await waiting
        return read
