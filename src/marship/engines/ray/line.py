"""HTTP over a unix socket: requests written and responses read, byte for byte, by httptools."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httptools

Headers = list[tuple[bytes, bytes]]

_OF_ONE_CONNECTION = {
    b"connection", b"content-length", b"keep-alive", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip
"""RFC 9110, 7.6.1; or written anew."""
_CONTINUE = b"100-continue"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on its way.

    Attributes:
        method: In capital letters.
        target: The path with its query, as it came.
        headers: Names in lower case.
        body: The bytes.
        length: Of the body, as the client states it; more than `body` where it is too large to be
            read.
    """

    method: str
    target: bytes
    headers: Headers
    body: bytes = b""
    length: int | None = None

    def render(self) -> bytes:
        """Its bytes on the wire."""
        lines = [b"%b %b HTTP/1.1" % (self.method.encode(), self.target)]
        lines += [b"%b: %b" % pair for pair in self.headers if _is_passed_on(*pair)]
        length = len(self.body) if self.length is None else self.length
        if length or self.method in ("POST", "PUT"):
            lines.append(b"content-length: %d" % length)
        return b"\r\n".join([*lines, b"", self.body])


def _is_passed_on(name: bytes, value: bytes) -> bool:
    """Whether a header is for who answers; what a client expects beside the usual is refused."""
    if name == b"expect":
        return value.lower() != _CONTINUE
    return name not in _OF_ONE_CONNECTION


@dataclass(slots=True)
class Answer:
    """A response, or a part of one.

    Attributes:
        status: The HTTP status; 0 in all parts but the first.
        headers: As they came, without those of one connection.
        body: The bytes of this part.
    """

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""


class Line(asyncio.Protocol):
    """A connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._begin("")

    def _begin(self, method: str) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parts: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._headers: Headers = []
        self._has_body = method != "HEAD"
        self.has_answered = self.is_complete = False

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, request: Asked) -> AsyncIterator[Answer]:
        """Send a request; yields its response in parts, the first one with the head.

        Raises:
            ConnectionError: The server ended the connection before the response was complete.
        """
        assert self._transport is not None  # noqa: S101  connected
        self._begin(request.method)
        self._transport.write(request.render())
        try:
            while (part := await self._parts.get()) is not None:
                yield part
            if not self.is_complete:
                raise ConnectionResetError("the connection ended within a response")
        finally:
            if not self.is_complete:
                self.close()

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """It is closed."""
        self._transport = None
        self._parts.put_nowait(None)

    def data_received(self, data: bytes) -> None:
        """Some of a response."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if name.lower() == b"content-length" or name.lower() not in _OF_ONE_CONNECTION:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.has_answered = True
        self._parts.put_nowait(Answer(self._parser.get_status_code(), self._headers))
        if not self._has_body:  # the parser would wait for a body as long as the head says
            self._end(may_stay=False)

    def on_body(self, part: bytes) -> None:
        """Some of the body."""
        self._parts.put_nowait(Answer(body=part))

    def on_message_complete(self) -> None:
        """The response is whole."""
        if not self.is_complete and self._parser.get_status_code() >= 200:  # noqa: PLR2004
            self._end(may_stay=self._parser.should_keep_alive())

    def _end(self, *, may_stay: bool) -> None:
        self.is_complete = True
        self._parts.put_nowait(None)
        if not may_stay:
            self.close()


class LinePool:
    """Connections to one unix socket, kept open between requests.

    Args:
        path: The socket's.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._free: list[Line] = []

    async def send(self, request: Asked) -> AsyncIterator[Answer]:
        """Send a request; yields its response in parts.

        A connection that was kept open may close just then: before anything of a response came,
        the request is sent once more on a new one.

        Raises:
            OSError: Nobody listens, or the connection ended within the response.
        """
        for is_kept in (True, False):
            line = await self._line(may_be_kept=is_kept)
            try:
                async for part in line.send(request):
                    yield part
            except ConnectionError:
                if line.has_answered or not is_kept:
                    raise
                continue
            if line.is_open:
                self._free.append(line)
            return

    async def whole(self, request: Asked) -> Answer:
        """The response to a request, as one part.

        Raises:
            OSError: As `send`.
        """
        answer, bodies = Answer(), []
        async for part in self.send(request):
            if part.status:
                answer = part
            else:
                bodies.append(part.body)
        answer.body = bodies[0] if len(bodies) == 1 else b"".join(bodies)
        return answer

    async def _line(self, *, may_be_kept: bool) -> Line:
        while may_be_kept and self._free:
            if (line := self._free.pop()).is_open:
                return line
        line = Line()
        await asyncio.get_running_loop().create_unix_connection(lambda: line, self._path)
        return line

    def close(self) -> None:
        """Close all connections that no request uses."""
        for line in self._free:
            line.close()
        self._free.clear()
