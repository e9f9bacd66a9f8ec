"""Connections of the blocking client: HTTP by the standard library, over limited sockets.

No proxy, no .netrc, no cookies and no redirects: a client speaks to the server that it was told.
"""

import http.client
import select
import ssl
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from marship.exchange import limited, sockets
from marship.exchange.limited import LimitedSocket, Limits

Check = Callable[[str, LimitedSocket], None]
"""Told where a new connection goes; raises if that is not the server that is meant."""

_PIECE_BYTES = 1 << 16


class UnreachableError(OSError):
    """There is no connection."""


class _Response(http.client.HTTPResponse):
    """One that was cut off among its headers is an error: http.client takes their end for whole.

    Without a length the body would then be empty, and a success.
    """

    def begin(self) -> None:
        """Read the status line and the headers.

        Raises:
            http.client.RemoteDisconnected: The connection ended before they did.
        """
        reader = self.fp
        lines: Any = _LastLine(reader)  # of a reader it has what http.client uses here
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:  # else it is closed
                self.fp = reader
        if not lines.last:
            raise http.client.RemoteDisconnected("the connection ended among the headers")


class _LastLine:
    """Reads lines, and keeps the last one."""

    def __init__(self, reader: BinaryIO) -> None:
        self._reader, self.last = reader, b""

    def readline(self, limit: int = -1) -> bytes:
        """The next line; empty at the connection's end."""
        self.last = self._reader.readline(limit)
        return self.last

    def close(self) -> None:
        """Close the connection, as http.client does where the status line is damaged."""
        self._reader.close()


class Connection(http.client.HTTPConnection):
    """A connection to one address that stays open, and is made anew where it ended.

    Args:
        base: The address, without a path.
        check: Asked about each new connection before anything is sent.
        tls: The authorities that are trusted; None is the default ones.
    """

    response_class = _Response

    def __init__(self, base: str, check: Check, tls: ssl.SSLContext | None = None) -> None:
        self.base, self.limits, self._check, self._tls = base, Limits(), check, tls
        self._path, parts = sockets.path_of(base), urlsplit(base)
        self._is_tls = parts.scheme == "https"
        self.default_port = 443 if self._is_tls else 80
        host = "localhost" if self._path else parts.hostname or ""
        super().__init__(host, None if self._path else parts.port or self.default_port)

    def connect(self) -> None:
        """Connect, which `request` does by itself.

        Raises:
            UnreachableError: Nobody listens.
            TimeoutError: The deadline passed.
            ssl.SSLError: There is no TLS with that server.
        """
        try:
            if self._path:
                line = limited.connect_unix(self._path, self.limits)
            else:
                line = limited.connect(self.host, self.port, self.limits)
        except TimeoutError:
            raise
        except OSError as error:
            raise UnreachableError(str(error)) from error
        try:
            self._check(self.base, line)
            self.sock = line
            if self._is_tls:
                self.sock = limited.secured(line, self.host, self.limits, self._tls)
        except BaseException:
            line.close()
            raise

    def is_dropped(self) -> bool:
        """Whether the server closed it, or sent what nobody asked for."""
        if self.sock is None:
            return False
        waiting = select.poll()
        waiting.register(self.sock, select.POLLIN)
        return bool(waiting.poll(0))


class Pool:
    """Connections that are open and not in use."""

    def __init__(self, check: Check, tls: ssl.SSLContext | None = None) -> None:
        self._check, self._tls = check, tls
        self._free: defaultdict[str, list[Connection]] = defaultdict(list)

    def take(self, base: str) -> Connection:
        """One to an address; it may not be connected yet."""
        free = self._free[base]
        while free:
            one = free.pop()
            if not one.is_dropped():
                return one
            one.close()
        return Connection(base, self._check, self._tls)

    def give(self, one: Connection) -> None:
        """Take one back whose response has been read."""
        self._free[one.base].append(one)

    def close(self) -> None:
        """Close them."""
        for free in self._free.values():
            while free:
                free.pop().close()


def pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """A body as it arrives.

    Raises:
        http.client.IncompleteRead: It ended early.
    """
    left = response.length  # None where chunks or the connection's end tell
    while left is None or left > 0:
        # never more than is left: read1 of Python 3.11 would wait for what comes after the body
        piece = response.read1(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
        if not piece:
            break
        if left is not None:
            left -= len(piece)
        yield piece
    if left:
        raise http.client.IncompleteRead(b"", left)
    response.close()
