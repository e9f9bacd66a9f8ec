"""Sockets that keep a deadline and a number of bytes, whatever is read through them.

A timeout of a socket is for each wait: a server that sends a byte now and then is never too
slow. These set what is left until the deadline before each wait, and count what arrives, below
everything that parses HTTP: headers, interim responses, chunk sizes and bodies alike.
"""

import functools
import os
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi


class OverLimitError(Exception):
    """More bytes arrived than are allowed."""


class Limits:
    """How long, and how much, may still be read. A new one allows nothing until `restart`."""

    def __init__(self) -> None:
        self._end, self._left_bytes = 0.0, 0

    def restart(self, timeout_s: float, size_bytes: int) -> None:
        """Allow so much from now on."""
        self._end, self._left_bytes = time.monotonic() + timeout_s, size_bytes

    def left_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            TimeoutError: It has passed.
        """
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return left_s

    def count(self, size_bytes: int) -> None:
        """Take off what arrived.

        Raises:
            OverLimitError: It is more than was left.
        """
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise OverLimitError


if TYPE_CHECKING:
    _Base = socket.socket
else:
    _Base = object


class _Limited(_Base):
    limits: Limits | None = None  # none while TLS shakes hands: that has one timeout for all

    def recv(self, *args: Any) -> bytes:  # noqa: ANN401  as the socket's
        self._prepare()
        data = super().recv(*args)
        if self.limits:
            self.limits.count(len(data))
        return data

    def recv_into(self, *args: Any) -> int:  # noqa: ANN401
        self._prepare()
        size = super().recv_into(*args)
        if self.limits:
            self.limits.count(size)
        return size

    def send(self, *args: Any) -> int:  # noqa: ANN401
        self._prepare()
        return super().send(*args)

    def sendall(self, *args: Any) -> None:  # noqa: ANN401
        self._prepare()
        super().sendall(*args)

    def _prepare(self) -> None:
        if self.limits:
            self.settimeout(self.limits.left_s())


class LimitedSocket(_Limited, socket.socket):
    """A plain one."""


class LimitedTLSSocket(_Limited, ssl.SSLSocket):
    """One with TLS; `tls_context` makes them."""


def connect(host: str, port: int, limits: Limits) -> LimitedSocket:
    """Connect to the first of a host's addresses that takes the connection.

    Raises:
        TimeoutError: The deadline passed.
        OSError: No address takes it.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found, start=1):
        line = LimitedSocket(family, kind, protocol)
        try:
            line.settimeout(limits.left_s())
            line.connect(address)
        except TimeoutError:
            line.close()
            raise
        except OSError:
            line.close()
            if number == len(found):
                raise
        else:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.limits = limits
            return line
    raise OSError(f"{host} has no address")


def connect_unix(path: str, limits: Limits) -> LimitedSocket:
    """Connect to a unix socket.

    Raises:
        TimeoutError: The deadline passed.
        OSError: Nobody listens.
    """
    line = LimitedSocket(socket.AF_UNIX)
    try:
        line.settimeout(limits.left_s())
        line.connect(path)
    except BaseException:
        line.close()
        raise
    line.limits = limits
    return line


def secured(
    line: LimitedSocket, host: str, limits: Limits, context: ssl.SSLContext | None = None
) -> LimitedTLSSocket:
    """Begin TLS on a connection.

    Args:
        line: The connection.
        host: The name that the certificate must hold.
        limits: What the connection may take.
        context: Of `tls_context`; None trusts the default authorities.

    Raises:
        ssl.SSLError: The server's certificate is not accepted, or it speaks something else.
        TimeoutError: The deadline passed.
    """
    line.settimeout(limits.left_s())
    wrapped = (context or tls_context()).wrap_socket(line, server_hostname=host)
    assert isinstance(wrapped, LimitedTLSSocket)  # noqa: S101  as the context says
    wrapped.limits = limits
    return wrapped


@functools.cache
def tls_context(authorities: Path | None = None) -> ssl.SSLContext:
    """What is trusted: a file's authorities; else SSL_CERT_FILE's; else the system's and certifi's.

    Raises:
        OSError: The file cannot be read, or holds no certificate in PEM.
    """
    context = ssl.create_default_context(cafile=authorities)
    if authorities is None and not os.environ.get("SSL_CERT_FILE"):
        context.load_verify_locations(certifi.where())
    context.sslsocket_class = LimitedTLSSocket
    return context
