"""Requests read from the bytes of a connection, by httptools, within limits."""

import math
import re
from collections.abc import Callable

import httptools

from marship.errors import MalformedError, MarshipError, TooLargeError
from marship.serving.hosts.direct.exchange import Exchange, Outlet
from marship.serving.hosts.direct.heads import Head, Heads
from marship.serving.hosts.direct.limits import Limits, StatusError
from marship.serving.hosts.direct.request_line import without_host

_SMALL_BYTES, _DROPPED_BYTES = 1 << 12, 1 << 16
_UPGRADE = re.compile(rb"(?i)(?<=\r\n)upgrade:[^\r\n]*\r\n")


class RequestReader:
    """Reads one request after the other.

    Where a head ends is found by whoever calls, so that a request which belongs to another process
    is not begun; that httptools sees the same end is checked. A head that is known is not parsed
    again, nor is the body behind it: it has as many bytes as the head says.

    Args:
        outlet: Where responses go.
        limits: Of a request.
        heads: Those that connections of the same limits have read.
        check: Looks at a request before its body; raises to refuse it.

    Attributes:
        exchange: The request that was begun; None between two.
        refusal: Why it is refused; its body is read and dropped.
        is_complete: Whether it is all there.
        wants_continue: Whether the client waits for a word before it sends the body.
        has_overrun: Whether bytes of another request were read behind a body in chunks.
        left: Bytes of the body to come; infinite where it comes in chunks.
    """

    def __init__(
        self, outlet: Outlet, limits: Limits, heads: Heads, check: Callable[[Exchange], None]
    ) -> None:
        self._outlet, self._limits, self._heads, self._check = outlet, limits, heads, check
        self._parser = httptools.HttpRequestParser(self)
        self.has_overrun = False
        self._reset()

    def _reset(self) -> None:
        self.target, self._count, self._size = b"", 0, 0
        self._dropped = 0
        self._framing = 0  # bytes since the last one of a body in chunks
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes | bytearray] = []
        self.exchange: Exchange | None = None
        self.refusal: MarshipError | None = None
        self.is_complete = self.wants_continue = self._is_known = False
        self.left: float = 0

    @property
    def size(self) -> int:
        """Bytes of the body; in chunks, those that have come; of one that is dropped, none."""
        if self.exchange is None or self.refusal is not None:
            return 0
        return self.exchange.head.length or self._size

    @property
    def is_in_body(self) -> bool:
        """Whether the rest of a request is to come."""
        return self.exchange is not None

    def read_head(self, data: bytes, known: Head | None) -> None:
        """Read a request line and headers.

        Args:
            data: All their bytes.
            known: What they say, where that is known.

        Raises:
            MarshipError: The end of this request is ambiguous.
        """
        if known:
            self._is_known = True
            self._begin(known)
            self.is_complete = not self.left
            return
        is_upgrade = b"pgrade" in data or b"PGRADE" in data
        # RFC 9110, 7.8: an upgrade may be ignored
        self._feed(_UPGRADE.sub(b"", data) if is_upgrade else data)
        if self.exchange is None:
            raise MalformedError("the request must be HTTP/1.1, got other lines.")
        expects = b"expect" in self.exchange.head.raw
        if self.refusal is None and not expects and self.left < math.inf:
            self._heads.keep(data, self.exchange.head)

    def read_body(self, data: bytes) -> bytes:
        """Read more of a body; returns what is behind it.

        Raises:
            MarshipError: The end of this request is ambiguous, or it is too large.
        """
        part = data if len(data) <= self.left else data[: int(self.left)]
        self.left -= len(part)
        if not self._is_known:
            self._feed_body(part)
            return data[len(part) :]
        if self.refusal is None:
            self._body.append(part)
        self.is_complete = not self.left
        return data[len(part) :]

    def take(self) -> tuple[Exchange, MarshipError | None]:
        """The request that is complete, and why it is refused; the next one may begin."""
        exchange, refusal = self.exchange, self.refusal
        assert exchange is not None  # noqa: S101  it is complete
        exchange.body = bytes(self._body[0]) if len(self._body) == 1 else b"".join(self._body)
        self._reset()
        return exchange, refusal

    def forget(self) -> None:
        """Drop what was read of a request: the rest will not come."""
        self._reset()

    def _feed_body(self, data: bytes) -> None:
        """Parse more of a body; what frames its chunks, trailers too, is limited as heads are.

        Raises:
            MarshipError: The end of this request is ambiguous, or it is too large.
        """
        before = self._size
        is_dropped = self.refusal is not None and self.left == math.inf
        room = _DROPPED_BYTES - self._dropped if is_dropped else len(data)
        self._feed(data[:room])
        self._dropped += len(data) if is_dropped else 0
        if self.refusal is not None and len(data) > room and not self.is_complete:
            raise self.refusal  # chunks of a byte cost as much as large ones: no more are parsed
        self._framing = self._framing + len(data) if self._size == before else 0
        if self._framing > self._limits.head_bytes and not self.is_complete:
            raise StatusError(
                431, "too_large", f"extensions and trailers of chunks must have "
                f"{self._limits.head_bytes} bytes at most, got more.", is_fatal=True,
            )  # fmt: skip

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:  # in a request behind a body in chunks
            if not self.has_overrun:
                raise MalformedError("the request must be HTTP/1.1, got an upgrade.") from error
        except httptools.HttpParserError as error:
            if self.is_complete:  # what stands behind a body in chunks is no request
                self.has_overrun = True
                return
            if isinstance(error.__context__, MarshipError):
                raise error.__context__ from None
            raise MalformedError(f"the request must be HTTP/1.1, got: {error}.") from error

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Another request."""
        if self.is_complete:  # pipelined behind a body in chunks: where it begins is not known
            self.has_overrun = True

    def on_url(self, part: bytes) -> None:
        """The target."""
        if not self.has_overrun:
            self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is not needed."""
        if self.exchange is not None:
            return
        self._count += 1
        name = name.lower()
        known = self._headers.get(name)
        value = value.strip(b" \t")  # RFC 9110, 5.5
        self._headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        """Decide what to do with the body that follows."""
        if self.has_overrun:
            return
        head = Head(
            self._parser.get_method().decode(),
            without_host(self.target),
            self._headers,
            keeps_alive=self._parser.should_keep_alive() and not self._heads.is_closing,
            accepts_chunks=self._parser.get_http_version() != "1.0",
        )
        self._begin(head)

    def _begin(self, head: Head) -> None:
        exchange = self.exchange = Exchange(self._outlet, head)
        self.left = math.inf if head.is_chunked else head.length
        try:
            if not self._is_known:
                self._check_head(self._parser.get_http_version(), head)
            self._check(exchange)
            self._check_size(head.length)
        except MarshipError as error:
            if isinstance(error, StatusError) and error.is_fatal:
                raise
            self.refusal = error
            if b"expect" in head.raw or self._limits.request_bytes < self.left < math.inf:
                exchange.keeps_alive = False  # what follows is not waited for
        else:
            expects = b"expect" in head.raw and self._parser.get_http_version() != "1.0"
            self.wants_continue = bool(self.left) and expects

    def _check_head(self, version: str, head: Head) -> None:
        """Refuse what two servers could read in two ways, or what is too large."""
        limits, hosts = self._limits, head.raw.get(b"host")
        coding = head.raw.get(b"transfer-encoding")
        if version not in ("1.0", "1.1"):
            raise StatusError(
                505, "bad_request", f"HTTP must be 1.1, got {version}.", is_fatal=True
            )
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            raise StatusError(
                501, "bad_request", "Transfer-Encoding must be chunked, got more.", is_fatal=True
            )
        if head.method == "CONNECT":
            raise StatusError(
                405, "bad_request", "this server must not be a proxy, got CONNECT.", is_fatal=True
            )
        if len(self.target) > limits.target_bytes:
            raise StatusError(
                414, "too_large", f"a path must have {limits.target_bytes} bytes at most, got "
                f"{len(self.target)}.",
            )  # fmt: skip
        if self._count > limits.headers:
            raise StatusError(
                431, "too_large", f"a request must have {limits.headers} headers at most, got "
                f"{self._count}.",
            )  # fmt: skip
        if head.raw.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise StatusError(417, "bad_request", "Expect must be 100-continue, got another one.")
        if (hosts is None and version == "1.1") or (hosts is not None and b"," in hosts):
            raise MalformedError("a request must have one Host header, got none or several.")

    def _check_size(self, size: int) -> None:
        if size > self._limits.request_bytes:
            raise TooLargeError(
                f"a request must have {self._limits.request_bytes} bytes at most, got {size}. "
                "Send several smaller ones, or raise the server's max_request_size."
            )

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        if self.has_overrun:
            return
        self._size += len(part)
        if self.refusal is not None:
            if self._size > self._limits.request_bytes:
                raise self.refusal
            return
        self._check_size(self._size)
        if len(part) >= _SMALL_BYTES:
            self._body.append(part)
        elif self._body and isinstance(self._body[-1], bytearray):
            self._body[-1] += part
        else:  # a body in chunks of two bytes would else take twenty times its size
            self._body.append(bytearray(part))

    def on_message_complete(self) -> None:
        """The request is all there."""
        self.is_complete = True
