"""Connected sockets passed on to another process (SCM_RIGHTS, unix(7)), with what was read of them.

A packet is one message of a SOCK_SEQPACKET socket: a line of JSON, and then the bytes that were
read of the connection already; where these are many they travel in an anonymous file.
"""

import array
import asyncio
import ctypes
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

INLINE_BYTES = 1 << 15
_MOST_BYTES = 1 << 17
_MOST_FDS = 2
_PACKETS_PER_TURN = _ACCEPTS_PER_TURN = 64
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS)
"""Of this process or of the machine, which pass; the last: too many descriptors are on their way to
processes that have not read them (unix(7))."""
_FULL_S = 0.1
HANDSHAKES_S = 0.2
"""How long a handshake that has begun may take where no more connections are wanted."""
_ATTACH_FILTER, _FILTER, _STEP = 26, struct.Struct("HP"), struct.Struct("HBBI")
_DROP_SYN = b"".join(
    _STEP.pack(*step)
    for step in (
        (0x30, 0, 0, 13),  # load the byte of flags
        (0x45, 0, 1, 0x02),  # SYN: go on, else skip one
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # take it
    )
)


@dataclass(slots=True)
class Packet:
    """A message between the acceptor and a worker.

    Attributes:
        kind: What it says.
        facts: What it says, a JSON object.
        fds: A connection's descriptor, and perhaps a file's; whoever gets them closes them.
        rest: Bytes behind the JSON.
        is_cut: Whether descriptors were lost, as this process has too many files open.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    fds: list[int] = field(default_factory=list)
    rest: bytes = b""
    is_cut: bool = False

    @classmethod
    def with_connection(
        cls, kind: str, fd: int | None, unread: bytes, slot: int | None = None
    ) -> "Packet":
        """A packet that passes a connection on.

        Args:
            kind: What it says.
            fd: The connection's descriptor, closed when it is sent; None where the other side has
                one already.
            unread: What was read of it and not yet looked at.
            slot: Its number among those of the worker; None where it has none.

        Raises:
            OSError: The file table is full.
        """
        fds = [] if fd is None else [fd]
        if len(unread) <= INLINE_BYTES:
            return cls(kind, {"slot": slot}, fds, rest=unread)
        file = os.memfd_create("unread")
        try:
            with os.fdopen(file, "wb", closefd=False) as stream:
                stream.write(unread)
        except OSError:
            os.close(file)
            raise
        return cls(kind, {"slot": slot, "bytes": len(unread)}, [*fds, file])

    def payload(self) -> bytes:
        """What was read of the connection; closes the file that holds it."""
        if "bytes" not in self.facts:
            return self.rest
        with os.fdopen(self.fds[-1], "rb") as stream:
            stream.seek(0)
            return stream.read(int(self.facts["bytes"]))

    def close(self) -> None:
        """Close what travels with it."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def held(data: bytes) -> list[int]:
    """The descriptor of an anonymous file with this in it; none where the file table is full."""
    try:
        file = os.memfd_create("held")
    except OSError:
        return []
    with os.fdopen(file, "wb", closefd=False) as stream:
        stream.write(data)
    return [file]


def read_held(fd: int, most_bytes: int) -> bytes:
    """What `held` has written; closes the file. Nothing where it is larger."""
    with os.fdopen(fd, "rb") as stream:
        stream.seek(0)
        data = stream.read(most_bytes + 1)
    return data if len(data) <= most_bytes else b""


def accept(
    loop: asyncio.AbstractEventLoop, listener: socket.socket, take: Callable[[socket.socket], None]
) -> Callable[[], None]:
    """Accept connections; while too many files are open, after a pause.

    Returns:
        What accepts those that have connected until then, and no more after. It takes a moment,
        as closing the socket would reset those whose handshake ends just then.

    Args:
        loop: The loop.
        listener: The listening socket.
        take: Called with each connection.
    """
    listener.setblocking(False)
    accepting = _Accepting(loop, listener, take)
    accepting.resume()
    return accepting.finish


class _Accepting:
    """See `accept`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        take: Callable[[socket.socket], None],
    ) -> None:
        self._loop, self._listener, self._take = loop, listener, take
        self._number = listener.fileno()

    def _accept_some(self) -> bool:
        """Accept connections; whether there may be more."""
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                line, _ = self._listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _FULL:
                    self._loop.remove_reader(self._number)
                    self._loop.call_later(_FULL_S, self.resume)
                    return False
            else:
                self._take(line)
        return True

    def resume(self) -> None:
        """Accept from now on."""
        if self._listener.fileno() == self._number:  # else it was closed meanwhile
            self._loop.add_reader(self._number, self._accept_some)

    def finish(self) -> None:
        """Accept what has begun to connect, and no more."""
        if refuse_handshakes(self._listener):
            self._loop.call_later(HANDSHAKES_S, self._end)
        else:
            self._end()

    def _end(self) -> None:
        while self._accept_some():
            pass
        self._loop.remove_reader(self._number)
        self._listener.close()


def refuse_handshakes(listener: socket.socket) -> bool:
    """Have the kernel drop what begins a connection: clients that are not connected try again.

    Source: Linux, Documentation/networking/filter.rst; TCP's flags are at byte 13 (RFC 9293, 3.1).

    Returns:
        Whether it does: it is no socket of TCP, or not on Linux.
    """
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    steps = ctypes.create_string_buffer(_DROP_SYN)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, _FILTER.pack(4, ctypes.addressof(steps))
        )
    except OSError:
        return False
    return True


class Channel:
    """A socket to another process in an event loop.

    Args:
        loop: The loop.
        line: The socket, connected.
        on_packet: Called with each packet.
        on_lost: Called once when the other side is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        line: socket.socket,
        on_packet: Callable[[Packet], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._loop, self._line = loop, line
        self._on_packet, self._on_lost = on_packet, on_lost
        self._unsent: deque[Packet] = deque()
        self._is_open = True
        line.setblocking(False)
        with suppress(OSError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        loop.add_reader(line.fileno(), self._read)

    @property
    def waiting(self) -> int:
        """How many packets the other side has not taken."""
        return len(self._unsent)

    def send(self, packet: Packet) -> None:
        """Send a packet, or keep it until the other side takes it; closes what travels with it."""
        if not self._is_open:
            packet.close()
            return
        if self._unsent or not self._try(packet):
            self._unsent.append(packet)

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        while self._unsent:
            packet = self._unsent.popleft()
            if not self._try(packet):
                self._unsent.appendleft(packet)
                return
        if self._is_open:
            self._loop.remove_writer(self._line.fileno())

    def _try(self, packet: Packet) -> bool:
        """Send a packet; False where it must wait, and `flush` is called as soon as it may go."""
        facts = {**packet.facts, "kind": packet.kind, "fds": len(packet.fds)}
        head = orjson.dumps(facts) + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", packet.fds))]
        try:
            self._line.sendmsg([head, packet.rest], rights if packet.fds else [])
        except BlockingIOError:
            self._loop.add_writer(self._line.fileno(), self.flush)
            return False
        except OSError as error:
            if error.errno in _FULL:  # the socket may be written all the same: it says nothing
                self._loop.remove_writer(self._line.fileno())
                self._loop.call_later(_FULL_S, self.flush)
                return False
            with suppress(OSError):  # the reader takes what lies there, and closes at its end
                self._line.shutdown(socket.SHUT_RDWR)
        packet.close()
        return True

    def _read(self) -> None:
        for _ in range(_PACKETS_PER_TURN):
            if not self._is_open:
                return
            try:
                data, fds, _flags, _from = socket.recv_fds(self._line, _MOST_BYTES, _MOST_FDS)
            except BlockingIOError:
                return
            except ConnectionResetError:  # told once, and before what was sent until then
                self._loop.remove_reader(self._line.fileno())  # uvloop looks no more after it
                self._loop.add_reader(self._line.fileno(), self._read)
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self.close()
                return
            head, _, rest = data.partition(b"\n")
            facts = orjson.loads(head)
            packet = Packet(facts.pop("kind"), facts, list(fds), rest)
            if len(fds) < facts.pop("fds", 0):
                packet.close()
                packet.is_cut = True
            self._on_packet(packet)

    def close(self) -> None:
        """Close the socket, which the peer notices."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._line.fileno())
        self._loop.remove_writer(self._line.fileno())
        self._line.close()
        while self._unsent:
            self._unsent.popleft().close()
        self._on_lost()
