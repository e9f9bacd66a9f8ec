"""The address of a cluster, where the GCS of its head listens (Ray's global control service)."""

import os
import socket

from marship.errors import NotRunningError, UsageError

_LAST_PORT = 65535
_REACH_S, _RESPONSE_S = 3.0, 20.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 says first, with empty settings (RFC 9113, 3.4): gRPC runs over it."""
_HEAD, _KIND, _SETTINGS = 9, 3, 4
"""A frame's first bytes, and where its type stands in them: a server, too, begins with settings."""


def checked(address: str) -> tuple[str, int]:
    """A cluster's host and port.

    Raises:
        UsageError: The address is none.

    Example:
        >>> checked("10.0.0.1:6379")
        ('10.0.0.1', 6379)
    """
    host, _, port = address.rpartition(":")
    is_host = bool(host) and not set("/@ ") & set(host)
    if not is_host or not (port.isascii() and port.isdecimal() and 0 < int(port) <= _LAST_PORT):
        raise UsageError(f"a cluster's address must be HOST:PORT, got {address!r}.")
    return host.strip("[]"), int(port)


def check_listens(address: str) -> None:
    """Check that a GCS may listen there: Ray itself would try for many minutes.

    Raises:
        UsageError: The address is none.
        NotRunningError: Nothing listens there, or what has nothing of gRPC.
    """
    try:
        line = socket.create_connection(checked(address), _REACH_S)
    except OSError as error:
        raise NotRunningError(
            f"a Ray cluster must listen at {address}, got no connection. Start one with: marship "
            "serve --engine ray"
        ) from error
    with line:
        if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
            _check_grpc(address, line)


def _check_grpc(address: str, line: socket.socket) -> None:
    line.settimeout(_RESPONSE_S)
    head, got = b"", "another server there"
    try:
        line.sendall(_PREFACE)
        with line.makefile("rb") as answer:
            head = answer.read(_HEAD)
    except TimeoutError:
        got = f"nothing said within {_RESPONSE_S:g} s there"
    except OSError:
        pass  # it hung up
    if len(head) < _HEAD or head[_KIND] != _SETTINGS:
        raise NotRunningError(
            f"a Ray cluster must listen at {address}, got {got}. Name the port of its head, which "
            "ray start --head has as --port."
        )
