"""Listening sockets: where clients connect, and where workers do."""

import socket
from pathlib import Path

BACKLOG, _WORKERS_BACKLOG = 4096, 256


def clients(host: str, port: int) -> socket.socket:
    """A socket for clients.

    Args:
        host: An address of this machine, or all: of version 4 by `0.0.0.0`, of both by `::`.
        port: Where to listen; 0 takes any free one.

    Raises:
        OSError: It is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_both
    )


def workers(path: Path) -> socket.socket:
    """A unix socket for workers.

    Raises:
        OSError: It cannot be created.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(_WORKERS_BACKLOG)
    return listener
