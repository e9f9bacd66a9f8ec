"""Sockets with a deadline and a byte budget for everything that is read through them.

A socket's timeout applies to each read: a server that sends a byte now and then never times out.
These sockets set the time left until the deadline before each read, and count the bytes below
the HTTP parser: headers, interim responses, chunk sizes and bodies alike.
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
    """The byte budget is exceeded."""


class TransferLimits:
    """A deadline and a byte budget. A new one allows nothing until `restart`."""

    def __init__(self) -> None:
        self._end, self._left_bytes = 0.0, 0

    def restart(self, timeout_s: float, size_bytes: int) -> None:
        """Set the deadline and the budget anew."""
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
        """Subtract received bytes from the budget.

        Raises:
            OverLimitError: The budget is exceeded.
        """
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise OverLimitError


if TYPE_CHECKING:
    _Base = socket.socket
else:
    _Base = object


class _Limited(_Base):
    limits: TransferLimits | None = (
        None  # None during the TLS handshake, which has one timeout for all of it
    )

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
    """A limited socket without TLS."""


class LimitedTLSSocket(_Limited, ssl.SSLSocket):
    """A limited socket with TLS, created by a `tls_context`."""


def connect(host: str, port: int, limits: TransferLimits) -> LimitedSocket:
    """Connect to the first of a host's addresses that accepts the connection.

    Raises:
        TimeoutError: The deadline passed.
        OSError: No address accepts it.
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


def connect_unix(path: str, limits: TransferLimits) -> LimitedSocket:
    """Connect to a unix socket.

    Raises:
        TimeoutError: The deadline passed.
        OSError: No server listens.
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
    line: LimitedSocket, host: str, limits: TransferLimits, context: ssl.SSLContext | None = None
) -> LimitedTLSSocket:
    """Start TLS on a connection.

    Args:
        line: The connection.
        host: The host name that the certificate must be valid for.
        limits: The connection's limits.
        context: From `tls_context`; None trusts the default CA certificates.

    Raises:
        ssl.SSLError: The server's certificate is not trusted, or it does not speak TLS.
        TimeoutError: The deadline passed.
    """
    line.settimeout(limits.left_s())
    wrapped = (context or tls_context()).wrap_socket(line, server_hostname=host)
    assert isinstance(wrapped, LimitedTLSSocket)  # noqa: S101  as the context says
    wrapped.limits = limits
    return wrapped


@functools.cache
def tls_context(authorities: Path | None = None) -> ssl.SSLContext:
    """A context that trusts a file's CA certificates, else SSL_CERT_FILE's, else the default ones.

    The default ones are the system's and certifi's.

    Raises:
        OSError: The file cannot be read, or holds no PEM certificate.
    """
    context = ssl.create_default_context(cafile=authorities)
    if authorities is None and not os.environ.get("SSL_CERT_FILE"):
        context.load_verify_locations(certifi.where())
    context.sslsocket_class = LimitedTLSSocket
    return context
