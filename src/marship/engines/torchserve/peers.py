"""Whether a connection ends at the process that is meant: ports and socket paths outlive it.

The question is asked once a connection stands and before a byte is sent. A process that
listens there now has listened since the connection was made, since nobody else could take the
port meanwhile and give it back: so there is no time between check and use.
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

from marship.engines.torchserve.processes import Group

_known: dict[tuple[Group, str, int], tuple[str, str]] = {}
"""Where a process listened: the link to its descriptor, and what that is while it does."""

_LISTENS = "0A"  # TCP_LISTEN of include/net/tcp_states.h
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class Line(Protocol):
    """A connected socket; asyncio hides its own behind another class."""

    @property
    def family(self) -> int:
        """AF_UNIX, AF_INET or AF_INET6."""

    def getpeername(self) -> Any:  # noqa: ANN401  the host and the port, of TCP
        """Where it goes."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """An option's value."""


def is_held_by(line: Line, group: Group) -> bool:
    """Whether the other end of a connection is a group's Java.

    Linux tells who listens. Elsewhere, and where another user's process may not be looked
    into, it is enough that Java runs.
    """
    if not group.is_alive():
        return False
    if line.family != socket.AF_UNIX:
        host, port = line.getpeername()[:2]
        return _listens(group, str(host), int(port))
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    told = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(told)[0] == group.pid)


def _listens(group: Group, host: str, port: int) -> bool:
    """Whether a process listens; the kernel's tables take milliseconds, a known link nothing."""
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
    except FileNotFoundError:  # no such system; of a process that has ended Group knows
        return not Path("/proc/net/tcp").exists()
    return False


def _link(pid: int, target: str) -> str | None:
    """The descriptor by which a process holds a socket."""
    links = (entry.path for entry in os.scandir(f"/proc/{pid}/fd"))
    return next((link for link in links if _is(link, target)), None)


def _is(link: str, target: str) -> bool:
    with contextlib.suppress(OSError):  # closed, or ended, meanwhile
        return os.readlink(link) == target  # noqa: PTH115  there are thousands of them
    return False


def _listeners(pid: int, host: str, port: int) -> Iterator[str]:
    """The sockets that may have taken a connection, as proc_net_tcp(5) numbers them."""
    wanted = {f"{address}:{port:04X}" for address in _addresses(host)}
    for table in ("tcp6", "tcp"):
        path = Path(f"/proc/{pid}/net/{table}")
        if not path.exists():  # IPv6 may be off
            continue
        with path.open() as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTENS and fields[1] in wanted:
                    yield fields[9]


def _addresses(host: str) -> set[str]:
    """Those of a listener that takes connections to an address, as the kernel writes them."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return {_written(address.packed), _written(bytes(16))}
        address = address.ipv4_mapped
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    packed = (address.packed, bytes(4), mapped.packed, bytes(16))
    return {_written(one) for one in packed}


def _written(packed: bytes) -> str:
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
