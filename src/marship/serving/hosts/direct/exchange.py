"""One request and its response, as they stand on the wire."""

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl

import orjson

from marship.serving.message import JSON_TYPE, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable

EVENTS_TYPE = "text/event-stream"
LINES_TYPE = "application/jsonl"
_LONGEST_ID = 200
_COUNTER = itertools.count()
_PREFIX = os.urandom(6).hex()
_LAST_CHUNK = b"0\r\n\r\n"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_STARTS: "dict[tuple[int, str, tuple[tuple[str, str], ...]], bytes]" = {}
_MOST_STARTS = 256


class Outlet(Protocol):
    """Where a response goes: a connection."""

    def send(self, exchange: "Exchange", data: bytes, *, is_last: bool) -> None:
        """Write a part of a response, in the order of the requests."""


class Headers(Mapping[str, str]):
    """HTTP headers, names in lower case; decoded when one is read.

    Args:
        raw: Names in lower case and values, as they came.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, key: str) -> str:
        return self._raw[key.encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __bool__(self) -> bool:
        return True  # a request over HTTP, even where it sends no header


class Exchange:
    """A request that is complete, and its response.

    Attributes:
        method: In capital letters.
        path: Without the query.
        query: What follows the question mark, as it came.
        headers: Names in lower case.
        body: The bytes.
        keeps_alive: Whether the connection stays open after the response.
        is_kserve: Whether errors are told as KServe v2 tells them.
        accepts_chunks: Whether a response without a length can be sent (HTTP/1.1).
    """

    __slots__ = (
        "_has_begun", "_outlet", "_timing", "accepts_chunks", "body", "headers", "is_done",
        "is_kserve", "keeps_alive", "method", "parts", "path", "query",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913, PLR0917  the fields of a request line, once for each request
        self,
        outlet: Outlet,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
        keeps_alive: bool,
        accepts_chunks: bool,
    ) -> None:
        self._outlet, self.method, self.headers = outlet, method, headers
        self.path, _, self.query = target.partition(b"?")
        self.keeps_alive, self.accepts_chunks = keeps_alive, accepts_chunks
        self.body, self.is_kserve, self.is_done, self._has_begun = b"", False, False, False
        self.parts: list[bytes] = []  # written, but not yet this exchange's turn

    def request(self, read: "Callable[..., Request]") -> Request:
        """The request as a service takes it.

        Args:
            read: Undoes content encodings and takes forms apart: `forms.request_of` with limits.

        Raises:
            RequestError: The body cannot be read.
        """
        headers: Mapping[str, str] = Headers(self.headers)
        if self.wants_events:
            headers = {**headers, "accept": LINES_TYPE}
        content_type = self.headers.get(b"content-type", b"").decode("latin-1")
        if b"content-encoding" in self.headers or content_type.startswith("multipart/"):
            request = read(self.body, headers)
        else:
            request = Request(self.body, content_type, headers=headers)
        if self.query:
            pairs = parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)
            request.fields = {**dict(pairs), **request.fields}
            request.field_count += len(pairs)
        return request

    @property
    def wants_events(self) -> bool:
        """Whether the parts of a response are to come as server-sent events."""
        return EVENTS_TYPE.encode() in self.headers.get(b"accept", b"")

    def reply(self, reply: Reply, timing: str = "") -> None:
        """Send a whole response, or the next part of a streamed one.

        Args:
            reply: With `more` where other parts follow.
            timing: The Server-Timing header; empty is none.
        """
        if self.is_kserve and reply.status >= HTTPStatus.BAD_REQUEST:
            reply = _for_kserve(reply)
        if reply.more or self._has_begun:
            self._stream(reply, timing)
            return
        self.is_done = True
        head = self._head(reply, timing, b"content-length: %d\r\n" % len(reply.body))
        self._outlet.send(self, head if self.method == "HEAD" else head + reply.body, is_last=True)

    def _stream(self, reply: Reply, timing: str) -> None:
        """Send a part: chunks, or until the connection closes for a client of HTTP/1.0."""
        data = b""
        if not self._has_begun:
            self._has_begun = True
            self.keeps_alive = self.keeps_alive and self.accepts_chunks
            if self.wants_events:
                kind = Reply(
                    b"", EVENTS_TYPE, headers=(*reply.headers, ("cache-control", "no-cache"))
                )
            else:
                kind = reply
            framing = b"transfer-encoding: chunked\r\n" if self.accepts_chunks else b""
            data = self._head(kind, timing, b"X-Accel-Buffering: no\r\n" + framing)
        body = reply.body
        if reply.status != HTTPStatus.OK:  # too late for a status: the error is the last line
            body += b"\n"
        if self.wants_events:
            body = _events(body, is_error=reply.status != HTTPStatus.OK)
        if body:
            data += b"%x\r\n%b\r\n" % (len(body), body) if self.accepts_chunks else body
        self.is_done = not reply.more
        if self.is_done and self.accepts_chunks:
            data += _LAST_CHUNK
        self._outlet.send(self, data, is_last=self.is_done)

    def _head(self, reply: Reply, timing: str, framing: bytes) -> bytes:
        kind = (reply.status, reply.content_type, reply.headers)
        start = _STARTS.get(kind) or _start(*kind)
        given = self.headers.get(b"x-request-id", b"")
        name = given if 0 < len(given) <= _LONGEST_ID else f"{_PREFIX}-{next(_COUNTER):x}".encode()
        return b"%bdate: %b\r\nX-Request-Id: %b\r\n%b%b%b\r\n" % (
            start,
            _date(int(time.time())),
            name,
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


def _for_kserve(reply: Reply) -> Reply:
    """The error with the field that KServe's clients read (Open Inference Protocol, errors)."""
    try:
        told = orjson.loads(reply.body)
        told["error"] = told["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return reply  # no error of ours, such as a readiness
    return Reply(orjson.dumps(told), JSON_TYPE, reply.status, reply.headers)


def _events(lines: bytes, *, is_error: bool) -> bytes:
    """Lines as server-sent events (WHATWG HTML, 9.2)."""
    name = b"event: error\n" if is_error else b""
    return b"".join(b"%bdata: %b\n\n" % (name, line) for line in lines.split(b"\n") if line)
