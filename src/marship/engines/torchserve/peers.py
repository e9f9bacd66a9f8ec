"""Whether a connection's peer is the intended process: ports and socket paths may be reused.

The check is made after connecting and before a byte is sent. A process that listens there now has
listened since the connection was made, as no other process could have taken and released the
port meanwhile: so there is no gap between check and use.
"""

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from marship.engines.processes import Group

_known: dict[tuple[Group, str, int], tuple[str, str]] = {}
"""Cache of listening sockets: the link of the descriptor, and its target while it is open."""

_LISTENS = "0A"  # TCP_LISTEN of include/net/tcp_states.h
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class ConnectedSocket(Protocol):
    """A connected socket, or asyncio's wrapper of one."""

    @property
    def family(self) -> int:
        """AF_UNIX, AF_INET or AF_INET6."""

    def getpeername(self) -> Any:  # noqa: ANN401  the host and the port, of TCP
        """The peer's address."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """An option's value."""


def is_held_by(line: ConnectedSocket, group: Group) -> bool:
    """Whether the peer of a connection is the Java process of a group.

    Linux shows which process listens. On other systems, and for processes of another user, it is
    enough that Java is running.
    """
    if not group.is_alive():
        return False
    if line.family != socket.AF_UNIX:
        host, port = line.getpeername()[:2]
        return _listens(group, str(host), int(port))
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[0] == group.pid)


def _listens(group: Group, host: str, port: int) -> bool:
    """Whether a process listens; reading the kernel's tables takes milliseconds, hence cached."""
    place = (group, host, port)
    if place in _known and _is(*_known[place]):
        return True
    try:
        for inode in _listeners(group.pid, host, port):
            if link := _link(group.pid, f"socket:[{inode}]"):
                _known[place] = link, f"socket:[{inode}]"
                return True
    except PermissionError:
        return True
    except FileNotFoundError:  # not Linux; exited processes are handled by Group
        return not Path("/proc/net/tcp").exists()
    return False


def _link(pid: int, target: str) -> str | None:
    """The descriptor by which a process holds a socket."""
    links = (entry.path for entry in os.scandir(f"/proc/{pid}/fd"))
    return next((link for link in links if _is(link, target)), None)


def _is(link: str, target: str) -> bool:
    with contextlib.suppress(OSError):  # closed, or exited, meanwhile
        return os.readlink(link) == target  # noqa: PTH115  there are thousands of them
    return False


def _listeners(pid: int, host: str, port: int) -> Iterator[str]:
    """The inodes of sockets that may have accepted a connection: proc_net_tcp(5)."""
    wanted = {f"{address}:{port:04X}" for address in _addresses(host)}
    for table in ("tcp6", "tcp"):
        path = Path(f"/proc/{pid}/net/{table}")
        if not path.exists():  # IPv6 may be disabled
            continue
        with path.open() as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTENS and fields[1] in wanted:
                    yield fields[9]


def _addresses(host: str) -> set[str]:
    """Addresses of listeners that accept connections to a host, in the kernel's notation."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return {_as_hex(address.packed), _as_hex(bytes(16))}
        address = address.ipv4_mapped
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    packed = (address.packed, bytes(4), mapped.packed, bytes(16))
    return {_as_hex(one) for one in packed}


def _as_hex(packed: bytes) -> str:
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
