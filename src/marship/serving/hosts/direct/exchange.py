"""One request and its response, as they stand on the wire."""

import itertools
import logging
import os
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import orjson

from marship.serving.hosts.direct.heads import EVENTS_TYPE, TRACE, Head, TracedHeaders
from marship.serving.message import JSON_TYPE, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from marship.serving.hosts.direct.routes import Route
    from marship.serving.hosts.direct.writer import Writer

logger = logging.getLogger(__name__)

MOST_BEHIND = 1 << 26
"""Bytes of a stream that wait for its client; they are held in memory."""
LINES_TYPE = "application/jsonl"
LONGEST_ID = 200
_COUNTER = itertools.count()
_PREFIX = os.urandom(6).hex().encode()
_NO_CONTENT = int(HTTPStatus.NO_CONTENT)  # a member of an enum takes longer to find
_LAST_CHUNK = b"0\r\n\r\n"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_STARTS: "dict[tuple[int, str, tuple[tuple[str, str], ...]], bytes]" = {}
_MOST_STARTS = 256


class Outlet(Protocol):
    """Where a response goes: a connection.

    Attributes:
        headers: Lines of every response there.
        writer: What the client has not taken yet, and what the acceptor sees of it.
    """

    headers: bytes
    writer: "Writer"

    @property
    def is_closed(self) -> bool:
        """Whether the client is gone."""

    def send(self, exchange: "Exchange", data: bytes, *, is_last: bool) -> None:
        """Write a part of a response, in the order of the requests."""

    def abandon(self) -> None:
        """Close without the rest of a response."""


class Exchange:
    """A request that is complete, and its response.

    Attributes:
        head: The request line with its headers.
        body: The bytes.
        came_s: When it was complete, by `time.perf_counter`.
        keeps_alive: Whether the connection stays open after the response.
        is_kserve: Whether errors have KServe v2's form.
        has_begun: Whether the response is a stream, and its head is sent.
        is_done: Whether the response is complete, and passed on.
        early: Bytes of the response that are ready before it is their turn.
        route: What its path stands for; None until that is known.
        trace: The trace id that the client sent (W3C Trace Context); empty without one.
        on_end: Called once with the last part of the response, or None where that cannot be had;
            not for responses that `send` sends.
    """

    __slots__ = (
        "_id",
        "_is_last",
        "_outlet",
        "body",
        "came_s",
        "early",
        "has_begun",
        "head",
        "is_done",
        "is_kserve",
        "keeps_alive",
        "on_end",
        "route",
        "trace",
    )  # fmt: skip

    def __init__(self, outlet: Outlet, head: Head, trace: bytes = b"") -> None:
        self._outlet, self.head, self._id = outlet, head, b""
        self.trace = trace or head.raw.get(TRACE, b"")
        self.body, self.keeps_alive, self.came_s = b"", head.keeps_alive, 0.0
        self.is_kserve = self.is_done = self.has_begun = self._is_last = False
        self.early = bytearray()
        self.route: Route | None = None
        self.on_end: Callable[[Reply | None], None] | None = None

    def request(self, read: "Callable[..., Request]") -> Request:
        """The request as a service takes it.

        Args:
            read: Undoes content encodings and takes forms apart: `forms.request_of` with limits.

        Raises:
            RequestError: The body cannot be read.
        """
        head = self.head
        headers = head.headers
        if self.trace and TRACE not in head.raw:
            headers = TracedHeaders(head.raw, self.trace)
        if head.wants_events:
            headers = {**headers, "accept": LINES_TYPE}
        if head.is_plain:
            request = Request(self.body, head.content_type, headers=headers)
        else:
            request = read(self.body, headers)
        if head.query:
            request.fields = {**head.parameters, **request.fields}
            request.field_count += len(head.parameters)
        return request

    @property
    def id(self) -> bytes:
        """The client's name for the request, or one of ours."""
        if not self._id:
            given = self.head.raw.get(b"x-request-id", b"")
            is_fine = 0 < len(given) <= LONGEST_ID
            self._id = given if is_fine else b"%b-%x" % (_PREFIX, next(_COUNTER))
        return self._id

    @property
    def outlet(self) -> Outlet:
        """Where its response goes."""
        return self._outlet

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the response any more."""
        return self._outlet.is_closed

    def report_timeout(self) -> None:
        """Have another process tell the client that its request timed out."""
        self._outlet.writer.report_timeout()

    def abandon(self) -> None:
        """End the connection where the rest of a response cannot be had."""
        self.is_done = True
        self._outlet.abandon()
        self._end(None)

    def reply(self, reply: Reply, timing: str = "") -> None:
        """Send a whole response, or the next part of a streamed one.

        Args:
            reply: With `more` where other parts follow.
            timing: The Server-Timing header; empty is none.
        """
        self.send(self.render(reply, timing))
        if self.is_done:
            self._end(reply)

    def _end(self, reply: Reply | None) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(reply)

    def send(self, data: bytes) -> None:
        """Send what `render` has made."""
        self.is_done = self._is_last
        if not self.is_done and self._outlet.writer.buffered + len(self.early) > MOST_BEHIND:
            logger.warning("a stream is closed: its client is %d bytes behind.", MOST_BEHIND)
            self.abandon()
            return
        self._outlet.send(self, data, is_last=self.is_done)

    def render(self, reply: Reply, timing: str = "") -> bytes:
        """The bytes of a response or of its next part, which must be sent next: see `reply`."""
        if self.is_kserve and reply.status >= HTTPStatus.BAD_REQUEST:
            reply = for_kserve(reply)
        if reply.more or self.has_begun or self._is_whole_stream(reply):
            return self._part(reply, timing)
        self._is_last = True
        has_body = reply.status != _NO_CONTENT  # RFC 9110, 8.6
        framing = b"content-length: %d\r\n" % len(reply.body) if has_body else b""
        head = self._head(reply, timing, framing)
        return head if self.head.method == "HEAD" else head + reply.body

    def _is_whole_stream(self, reply: Reply) -> bool:
        """Whether these are lines, all in one part, for a client that wants events."""
        return self.head.wants_events and reply.content_type == LINES_TYPE

    def _part(self, reply: Reply, timing: str) -> bytes:
        """A part: chunks, or bytes until the connection closes for a client of HTTP/1.0."""
        data = b""
        if not self.has_begun:
            self.has_begun = True
            self.keeps_alive = self.keeps_alive and self.head.accepts_chunks
            if self.head.wants_events:
                kind = Reply(
                    b"", EVENTS_TYPE, headers=(*reply.headers, ("cache-control", "no-cache"))
                )
            else:
                kind = reply
            framing = b"transfer-encoding: chunked\r\n" if self.head.accepts_chunks else b""
            data = self._head(kind, timing, b"X-Accel-Buffering: no\r\n" + framing)
        body = reply.body
        if reply.status != HTTPStatus.OK:  # too late for a status: the error is the last line
            body += b"\n"
        if self.head.wants_events:
            body = _events(body, is_error=reply.status != HTTPStatus.OK)
        if body:
            data += b"%x\r\n%b\r\n" % (len(body), body) if self.head.accepts_chunks else body
        self._is_last = not reply.more
        if self._is_last and self.head.accepts_chunks:
            data += _LAST_CHUNK
        return data

    def _head(self, reply: Reply, timing: str, framing: bytes) -> bytes:
        kind = (reply.status, reply.content_type, reply.headers)
        start = _STARTS.get(kind) or _start(*kind)
        return b"%b%bdate: %b\r\nX-Request-Id: %b\r\n%b%b%b\r\n" % (
            start,
            self._outlet.headers,
            _date(int(time.time())),
            self.id,
            b"Server-Timing: %b\r\n" % timing.encode() if timing else b"",
            framing,
            b"" if self.keeps_alive else b"connection: close\r\n",
        )


def _start(status: int, content_type: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The status line and the headers that many responses share."""
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}", f"content-type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers]
    start = "".join(f"{line}\r\n" for line in lines).encode("latin-1", "replace")
    if len(_STARTS) < _MOST_STARTS:
        _STARTS[status, content_type, headers] = start
    return start


_dated = (0, b"")


def _date(second: int) -> bytes:
    """The Date header (RFC 9110, 6.6.1), made once a second."""
    global _dated  # noqa: PLW0603
    if _dated[0] != second:
        _dated = (second, formatdate(second, usegmt=True).encode())
    return _dated[1]


def for_kserve(reply: Reply) -> Reply:
    """The error with the field that KServe's clients read (Open Inference Protocol, errors)."""
    try:
        value = orjson.loads(reply.body)
        value["error"] = value["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return reply  # no error of ours, such as a readiness
    return Reply(orjson.dumps(value), JSON_TYPE, reply.status, reply.headers)


def _events(lines: bytes, *, is_error: bool) -> bytes:
    """Lines as server-sent events (WHATWG HTML, 9.2)."""
    name = b"event: error\n" if is_error else b""
    return b"".join(b"%bdata: %b\n\n" % (name, line) for line in lines.split(b"\n") if line)
