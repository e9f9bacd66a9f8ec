"""Connections of the blocking client: the standard library's HTTP over limited sockets.

No proxies, .netrc, cookies or redirects: a client connects to the given server only.
"""

import http.client
import os
import select
import ssl
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from marship.exchange import limited, sockets
from marship.exchange.limited import LimitedSocket, TransferLimits

Check = Callable[[str, LimitedSocket], None]
"""Called with each new connection; raises if it is not to the intended server."""

_CHUNK_BYTES = 1 << 16


class UnreachableError(OSError):
    """The connection failed."""


class _Response(http.client.HTTPResponse):
    """Raises if the connection is closed within the headers, which http.client takes as complete.

    Without a Content-Length the body would then be empty, and the response a success.
    """

    def begin(self) -> None:
        """Read the status line and the headers.

        Raises:
            http.client.RemoteDisconnected: The connection was closed before they were complete.
        """
        reader = self.fp
        lines: Any = _LastLine(reader)  # implements what http.client uses of a reader
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:  # otherwise it is closed
                self.fp = reader
        if not lines.last:
            raise http.client.RemoteDisconnected("the connection ended among the headers")


class _LastLine:
    """Reads lines, and remembers the last one."""

    def __init__(self, reader: BinaryIO) -> None:
        self._reader, self.last = reader, b""

    def readline(self, limit: int = -1) -> bytes:
        """The next line; empty if the connection is closed."""
        self.last = self._reader.readline(limit)
        return self.last

    def close(self) -> None:
        """Close the connection, as http.client does on a malformed status line."""
        self._reader.close()


class CheckedConnection(http.client.HTTPConnection):
    """A persistent connection to one address, reopened if it was closed.

    Args:
        base: The address, without a path.
        check: Called with each new connection before anything is sent.
        tls: The trusted CA certificates; None is the default ones.
    """

    response_class = _Response

    def __init__(self, base: str, check: Check, tls: ssl.SSLContext | None = None) -> None:
        self.base, self.limits, self._check, self._tls = base, TransferLimits(), check, tls
        self._path, parts = sockets.path_of(base), urlsplit(base)
        self._is_tls = parts.scheme == "https"
        self.default_port = 443 if self._is_tls else 80
        host = "localhost" if self._path else parts.hostname or ""
        super().__init__(host, None if self._path else parts.port or self.default_port)

    def connect(self) -> None:
        """Connect; `request` does so implicitly.

        Raises:
            UnreachableError: No server listens.
            TimeoutError: The deadline passed.
            ssl.SSLError: The TLS handshake failed.
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
        """Whether the server closed it, or sent unexpected data."""
        if self.sock is None:
            return False
        waiting = select.poll()
        waiting.register(self.sock, select.POLLIN)
        return bool(waiting.poll(0))


class Pool:
    """Idle open connections, for any number of threads."""

    def __init__(self, check: Check, tls: ssl.SSLContext | None = None) -> None:
        self._check, self._tls = check, tls
        self._free: defaultdict[str, list[CheckedConnection]] = defaultdict(list)
        self._pid = os.getpid()

    def take(self, base: str) -> CheckedConnection:
        """A connection to an address; it may not be connected yet."""
        if self._pid != os.getpid():  # forked: two processes would read each other's responses
            self._pid, self._free = os.getpid(), defaultdict(list)
        free = self._free[base]
        with suppress(IndexError):  # another thread may have taken the last one
            while (one := free.pop()).is_dropped():
                one.close()
            return one
        return CheckedConnection(base, self._check, self._tls)

    def give(self, one: CheckedConnection) -> None:
        """Return a connection whose response was read completely."""
        self._free[one.base].append(one)

    def close(self) -> None:
        """Close all idle connections."""
        for free in list(self._free.values()):
            with suppress(IndexError):
                while True:
                    free.pop().close()


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """A body in chunks as they arrive.

    Raises:
        http.client.IncompleteRead: The connection was closed early.
    """
    left = (
        response.length
    )  # None with chunked encoding, or if the end of the connection ends the body
    while left is None or left > 0:
        # never more than is left: read1 of Python 3.11 would block for data after the body
        chunk = response.read1(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES))
        if not chunk:
            break
        if left is not None:
            left -= len(chunk)
        yield chunk
    if left:
        raise http.client.IncompleteRead(b"", left)
    response.close()
