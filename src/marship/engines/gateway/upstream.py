"""HTTP/1.1 exchanges over pooled connections to a unix socket.

A connection stays with the worker that handled its last request, so connections are pooled by
model. A lost POST is not sent again here: whether it ran is not known.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import httptools

_MOST_IDLE = 256
_IDLE_S = 45.0
"""Below the 75 s after which the direct address closes an idle connection."""

Body: TypeAlias = list[bytes | bytearray | memoryview]
"""In parts, which are not copied together."""
Headers: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UpstreamResponse:
    """A response of HTTP, with the names of its headers in lower case."""

    status: int
    headers: Headers
    body: bytes


class CutResponseError(ConnectionResetError):
    """The connection was lost behind the head of a response, so the request has been run."""


async def _any(_headers: Headers) -> None:
    """Accept a response, whatever its headers."""


class Upstream:
    """Asks the HTTP server at a unix socket.

    Args:
        path: The socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._idle: dict[_Connection, str] = {}  # and what each is pooled by; the oldest first

    async def get(self, key: str, target: str, headers: Headers) -> UpstreamResponse:
        """The response to a GET request.

        If its connection is lost, it is sent once more (RFC 9110, 9.2.2): the worker that had the
        connection may have ended, which says nothing of the model.

        Args:
            key: Requests with the same key, such as a model's, share connections.
            target: The path.
            headers: What is sent beside the host.

        Raises:
            OSError: There is no connection, or it was lost before the response was complete.
        """
        try:
            return await self._send(key, _head("GET", target, headers), [], _any)
        except ConnectionResetError:
            return await self._send(key, _head("GET", target, headers), [], _any)

    async def post(
        self,
        key: str,
        target: str,
        headers: Headers,
        body: Body,
        on_head: Callable[[Headers], Awaitable[None]] = _any,
    ) -> UpstreamResponse:
        """The response to a POST request.

        Cancelling closes the connection, and so tells the server.

        Args:
            key: As of `get`.
            target: The path.
            headers: What is sent beside the host and the length.
            body: Is taken: its parts are freed once they are sent.
            on_head: Waited for before more of a response is read than comes with its head.

        Raises:
            CutResponseError: The connection was lost within the response.
            OSError: There is no connection, or it was lost before the response.
        """
        all_headers = {**headers, "content-length": str(sum(map(len, body)))}
        return await self._send(key, _head("POST", target, all_headers), body, on_head)

    async def _send(
        self, key: str, head: bytes, body: Body, on_head: Callable[[Headers], Awaitable[None]]
    ) -> UpstreamResponse:
        connection = self._take(key) or await self._connect()
        try:
            await on_head(await connection.ask(head, body))
            response = await connection.response()
        except BaseException:
            connection.abort()
            raise
        if connection.is_reusable:
            self._put(key, connection)
        else:
            connection.abort()
        return response

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, made = await loop.create_unix_connection(lambda: _Connection(self.forget), self._path)
        return made

    def _take(self, key: str) -> "_Connection | None":
        """The connection of a key that was used last."""
        found = next((one for one, known in reversed(self._idle.items()) if known == key), None)
        if found is None:
            return None
        del self._idle[found]
        if time.monotonic() - found.since > _IDLE_S:  # so are all that were used before it
            found.abort()
            return None
        return found

    def _put(self, key: str, connection: "_Connection") -> None:
        connection.since = time.monotonic()
        self._idle[connection] = key
        if len(self._idle) > _MOST_IDLE:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.abort()

    def forget(self, connection: "_Connection") -> None:
        """Leave out a connection that was closed while it was idle."""
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Close what is idle."""
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()


def _head(method: str, target: str, headers: Headers) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: direct"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, on_lost: Callable[["_Connection"], None]) -> None:
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._response: UpstreamResponse | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._has_head = self._waits_for_head = self._keeps_alive = False
        self.since = 0.0

    async def ask(self, head: bytes, body: Body) -> Headers:
        """Send a request, and wait for the headers of its response."""
        self._headers, self._parts, self._response = {}, [], None
        self._has_head, self._waits_for_head = False, True
        self._connected().writelines([head, *body])
        body.clear()
        await self._wait()
        return self._headers

    async def response(self) -> UpstreamResponse:
        """Wait for the rest of the response."""
        self._waits_for_head = False
        if self._response is None:
            try:
                self._connected().resume_reading()
                await self._wait()
            except ConnectionResetError as error:
                raise CutResponseError(str(error)) from error
        found, self._response = self._response, None  # it may be large, and the connection idle
        assert found is not None  # noqa: S101  it was waited for
        return found

    def _connected(self) -> asyncio.Transport:
        if self._transport is None:
            raise ConnectionResetError("it was closed")
        return self._transport

    async def _wait(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow."""
        transport = self._transport
        return self._keeps_alive and transport is not None and not transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Read a part of a response."""
        if self._waiting is None:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionAbortedError(f"the response must be HTTP, got: {error}"))
            self.abort()
            return
        is_whole = self._response is not None
        if is_whole or (self._has_head and self._waits_for_head):
            if not is_whole and self._transport is not None:
                self._transport.pause_reading()
            if not self._waiting.done():
                self._waiting.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, and with it the response."""
        self._transport = None
        self._fail(ConnectionResetError(str(error or "it was closed before the response")))
        self._on_lost(self)

    def _fail(self, error: OSError) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body."""
        self._parts.append(part)

    def on_headers_complete(self) -> None:
        """Note that no header follows."""
        self._has_head = True

    def on_message_complete(self) -> None:
        """Keep the response."""
        self._keeps_alive = self._parser.should_keep_alive()
        parts, self._parts = self._parts, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._response is None:
            status = self._parser.get_status_code()
            self._response = UpstreamResponse(status, self._headers, body)
