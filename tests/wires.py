"""Bytes sent to a server as they are, and what came back."""

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket

CONTINUE = re.compile(rb"HTTP/1\.1 100 [^\r]*\r\n(?:[^\r\n]+\r\n)*\r\n")
STATUS = re.compile(rb"HTTP/1\.\d (\d{3})")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: chunked\r\n")
CLOSE = re.compile(rb"(?i)\r\nconnection: close\r\n")
ANSWER_S = 30.0
DRAIN_S = 0.01


@dataclass(frozen=True)
class Outcome:
    """What came back.

    Attributes:
        got: All bytes, of a second answer too.
        status: The first answer's; None where nothing came that begins as one.
        is_whole: Whether the first answer is there to its end.
        is_cut: Whether the server ended the connection before that.
        seconds: Until the response, or the end of the wait.
    """

    got: bytes
    status: int | None
    is_whole: bool
    is_cut: bool
    seconds: float

    @property
    def head(self) -> bytes:
        """The first answer's line and headers."""
        return self.got.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """What follows them."""
        return self.got.partition(b"\r\n\r\n")[2]


class Line:
    """A connection that is made anew where the server ends it, or might have read on.

    Args:
        connect: Makes one.
    """

    def __init__(self, connect: Callable[[], socket]) -> None:
        self._connect = connect
        self._socket: socket | None = None

    def ask(self, wire: bytes, *, is_sure: bool, is_head: bool, wait_s: float) -> Outcome:
        """Send bytes and take the answer.

        Args:
            wire: What is sent.
            is_sure: Whether it is a whole request: its answer is waited for, and the connection
                is kept; else all that arrives within that time counts.
            is_head: Whether the answer has no body.
            wait_s: How long a server may wait for more.
        """
        began = time.monotonic()
        got, is_whole, is_open = self._exchange(wire, is_sure, is_head, wait_s)
        found = STATUS.match(got)
        status = int(found[1]) if found else None
        if not (is_sure and is_whole and is_open):
            self.close()
        return Outcome(got, status, is_whole, not (is_open or is_whole), time.monotonic() - began)

    def _exchange(
        self, wire: bytes, is_sure: bool, is_head: bool, wait_s: float
    ) -> tuple[bytes, bool, bool]:
        """The bytes, whether an answer is whole, and whether the connection is still open."""
        got = b""
        is_whole = False
        try:
            if self._socket is None:
                self._socket = self._connect()
            self._socket.settimeout(ANSWER_S if is_sure else wait_s)
            self._socket.sendall(wire)
            while data := self._socket.recv(1 << 16):
                got = CONTINUE.sub(b"", got + data, count=1)
                is_whole = is_complete(got, is_head)
                if is_whole and is_sure:
                    return got, True, not CLOSE.search(got)
                if is_whole:
                    self._socket.settimeout(DRAIN_S)
        except TimeoutError:
            return got, is_whole, True
        except (OSError, ssl.SSLError):
            pass
        return got, is_whole, False

    def close(self) -> None:
        """End it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def is_complete(got: bytes, is_head: bool) -> bool:
    """Whether the bytes hold a whole answer; one without a length ends with the connection."""
    head, end, body = got.partition(b"\r\n\r\n")
    if not end:
        return False
    head += b"\r\n"
    if is_head or head.startswith(b"HTTP/1.1 204"):  # neither has a body (RFC 9112, 6.3)
        return True
    if CHUNKED.search(head):
        return body.endswith(b"0\r\n\r\n")
    length = LENGTH.search(head)
    return length is not None and len(body) >= int(length[1])
