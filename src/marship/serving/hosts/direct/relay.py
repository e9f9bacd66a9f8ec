"""Requests that no worker here takes, passed on to the engine one by one.

Such are those of archives that an earlier version packaged, of other programs' archives, and of
models whose first worker has not said hello yet. The client's connection stays with the acceptor:
its next request goes to a worker as soon as there is one.
"""

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote

import httptools

from marship.errors import MarshipError
from marship.serving.hosts.direct.exchange import LINES_TYPE
from marship.serving.hosts.direct.heads import TRACE, Head
from marship.serving.hosts.direct.limits import Limits, StatusError, error_reply
from marship.serving.message import Reply

_NOT_PASSED_ON = {
    b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-connection",
    b"te", b"trailer", b"transfer-encoding", b"upgrade", TRACE,
}  # fmt: skip
"""Of one connection alone (RFC 9110, 7.6.1), or written anew."""
_NOT_PASSED_BACK = {
    *_NOT_PASSED_ON, b"content-type", b"date", b"x-request-id", b"access-control-allow-origin",
    b"access-control-allow-methods", b"access-control-allow-headers",
}  # fmt: skip
"""Written by whoever relays."""


_LONGEST_TARGET, _LARGEST_HEADERS = 3000, 7000
"""Bytes; the engine closes the connection where a request line has more than 4096 in all, or the
headers more than 8192."""


def check(head: Head) -> None:
    """Refuse a request whose head the engine would not read.

    Raises:
        StatusError: It is too large.
    """
    if (size := len(quote(head.path, safe="%/")) + len(head.query)) > _LONGEST_TARGET:
        raise StatusError(
            HTTPStatus.REQUEST_URI_TOO_LONG,
            "too_large",
            f"a path must have {_LONGEST_TARGET} bytes at most, got {size}.",
        )
    if (size := sum(len(name) + len(value) + 4 for name, value in head.raw.items())) > (
        _LARGEST_HEADERS
    ):
        raise StatusError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too_large",
            f"headers must have {_LARGEST_HEADERS} bytes at most, got {size}.",
        )


class Relayed(Protocol):
    """A request that is complete, and takes its response: an exchange, or a leg of a trial.

    Attributes:
        head: The request line with its headers.
        body: The bytes.
        trace: The trace id to pass on; empty without one.
        is_done: Whether the response is complete.
    """

    head: Head
    body: bytes
    trace: bytes
    is_done: bool

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the response any more."""

    def reply(self, reply: Reply) -> None:
        """Take a response, or the next part of a streamed one."""

    def abandon(self) -> None:
        """End the connection where the rest of a response cannot be had."""


def _ignore(_reply: Reply) -> None:
    """Count nothing."""


def _as_it_came(reply: Reply) -> Reply:
    return reply


class Relay(asyncio.Protocol):
    """A request that the engine or a worker gets, and its response on the way back.

    At the engine each has a connection of its own: one that was kept open may close just when a
    request is written, and then nobody knows whether it was received. Connections to workers are
    kept: while they are idle a worker closes none, but gives it back.

    Args:
        exchange: The request.
        limits: How long the engine may be silent.
        on_end: Called when it is over; with `keeps` also when another may be sent, see `again`.
        explained: What the client gets for a whole response of the engine's.
        keeps: Whether the connection is for further requests.
        on_failure: Called with each error that is made here, or by the engine and no worker.

    Attributes:
        is_lost: Whether the connection has ended.
    """

    def __init__(  # noqa: PLR0913  keyword-only
        self,
        exchange: Relayed,
        limits: Limits,
        on_end: Callable[["Relay"], None],
        explained: Callable[[Reply], Reply] = _as_it_came,
        *,
        keeps: bool = False,
        on_failure: Callable[[Reply], None] = _ignore,
    ) -> None:
        self._limits, self._on_end, self._explained = limits, on_end, explained
        self._on_failure = on_failure
        self._keeps, self.is_lost = keeps, False
        self._failure: MarshipError = _unreachable("no whole response")
        self._parser = httptools.HttpResponseParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._begin(exchange)

    def _begin(self, exchange: Relayed) -> None:
        self._exchange = exchange
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._streams = False
        self._line = b""  # of a stream of lines, that is not whole yet

    async def start(self, target: bytes, engine: str | tuple[str, int]) -> None:
        """Send the request.

        Args:
            target: Where to.
            engine: The path of a unix socket, or host and port.
        """
        loop = asyncio.get_running_loop()
        try:
            if isinstance(engine, str):
                await loop.create_unix_connection(lambda: self, engine)
            else:
                await loop.create_connection(lambda: self, *engine)
        except OSError:
            self._refuse()
            return
        self._write(self._head(target) + self._exchange.body)

    async def start_here(self, target: bytes, place: Callable[[int, bytes], None]) -> None:
        """Send the request to a worker of this acceptor, as if a client had connected for it.

        Args:
            target: Names the version.
            place: Takes a connection, and what was read of it, to the worker.
        """
        try:
            mine, its = socket.socketpair()
        except OSError:  # too many files are open
            self._refuse()
            return
        mine.setblocking(False)
        its.setblocking(False)
        place(its.detach(), self._head(target))
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=mine)
        self._write(self._exchange.body)

    def _refuse(self) -> None:
        """Answer where no connection can be had."""
        error = error_reply(_unreachable("no connection"))
        self._on_failure(error)
        self._exchange.reply(error)
        self._on_end(self)

    def again(self, exchange: Relayed, target: bytes) -> None:
        """Send another request on the connection of one that has its response.

        Args:
            exchange: The request.
            target: Where to.
        """
        self._begin(exchange)
        self._write(self._head(target) + exchange.body)

    def close(self) -> None:
        """Close a connection that is idle."""
        assert self._transport is not None  # noqa: S101  it was used
        self._transport.close()

    def give_up(self, error: MarshipError) -> None:
        """Answer with an error where the engine will not respond any more."""
        self._failure = error
        self._end()

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine is there."""
        self._transport = transport  # type: ignore[assignment]

    def _head(self, target: bytes) -> bytes:
        head, body = self._exchange.head, self._exchange.body
        lines = [b"%b %b HTTP/1.1" % (head.method.encode(), target), b"host: engine"]
        lines += [b"%b: %b" % pair for pair in head.raw.items() if pair[0] not in _NOT_PASSED_ON]
        if self._exchange.trace:
            lines.append(b"%b: %b" % (TRACE, self._exchange.trace))
        lines += [b"connection: close"] * (not self._keeps)
        return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", b""])

    def _write(self, data: bytes) -> None:
        assert self._transport is not None  # noqa: S101  connected
        self._transport.write(data)
        self._wait()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._rest()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.relayed_s, self._end)

    def data_received(self, data: bytes) -> None:
        """Some of its response."""
        self._wait()
        if self._exchange.is_abandoned:
            self._end()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """The response is whole, or never will be."""
        self._rest()
        self.is_lost = True
        self._on_end(self)
        if self._exchange.is_done:
            return
        failed = error_reply(self._failure)
        if not (self._keeps or self._exchange.is_abandoned):  # the death of a worker is counted
            self._on_failure(failed)
        if self._streams:  # what was sent is not all: the client must not take it for that
            self._exchange.abandon()
        else:
            self._exchange.reply(failed)

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether the client gets the body as it comes."""
        headers = dict(self._headers)
        head = self._exchange.head
        self._streams = (
            self._parser.get_status_code() == HTTPStatus.OK
            and b"transfer-encoding" in headers
            and head.accepts_chunks  # else a truncated response could not be recognized
            and not head.wants_events
        )

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        if not self._streams:
            self._body.append(part)
            return
        if dict(self._headers).get(b"content-type") == LINES_TYPE.encode():  # events are of lines
            whole, end, self._line = (self._line + part).rpartition(b"\n")
            part = whole + end
        if part:
            self._exchange.reply(self._reply(part, more=True))

    def on_message_complete(self) -> None:
        """The response is whole."""
        body = self._line if self._streams else b"".join(self._body)
        reply, exchange = self._reply(body, more=False), self._exchange
        reply = reply if self._streams else self._explained(reply)
        if reply.code:  # else it is a worker's, which has counted it
            self._on_failure(reply)
        if self._keeps and self._parser.should_keep_alive():
            self._rest()
            self._on_end(self)  # its client may send the next request as soon as it has this one
        else:
            self.close()
        exchange.reply(reply)

    def _reply(self, body: bytes, *, more: bool) -> Reply:
        headers = dict(self._headers)
        return Reply(
            body,
            headers.get(b"content-type", b"application/octet-stream").decode("latin-1"),
            self._parser.get_status_code(),
            tuple(
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in self._headers
                if name not in _NOT_PASSED_BACK
            ),
            more=more,
        )


def _unreachable(got: str) -> StatusError:
    return StatusError(
        HTTPStatus.BAD_GATEWAY,
        "no_answer",
        f"the server must respond to the request that was passed on, got {got}. Retry.",
        retry_after_s=1,
    )
