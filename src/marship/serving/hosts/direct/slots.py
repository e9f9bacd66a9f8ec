"""What a worker is doing with each of its connections, in memory that the acceptor sees, too.

The acceptor keeps every connection that it hands over open. When a worker dies it finds here whose
request was lost: these clients get a status, and all others another worker, or nothing at all.
"""

import mmap
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass

IDLE, BEGUN, PARTLY, HANDED, LATE, UNPROVEN = range(6)
"""Between requests; a request is read or runs; of its response a part may be sent; on its way to
the worker; a request took so long that the worker ends itself; of a request that is read nobody
knows yet that it may be sent, or it may not."""
MOST = 1 << 16
States = mmap.mmap | bytearray
"""A byte for each connection."""


@dataclass(slots=True)
class Held:
    """A connection that was handed over.

    Attributes:
        fd: Another descriptor of it.
        unread: What was read of it before; empty as soon as the worker has it.
        returns: How often workers have given it back without a response.
    """

    fd: int
    unread: bytes
    returns: int = 0


class Slots:
    """The acceptor's side: the connections of one worker.

    Args:
        memory: The descriptor of the worker's states; it is closed.
        pid: The worker.
    """

    def __init__(self, memory: int, pid: int) -> None:
        try:
            self._states = mmap.mmap(memory, MOST)
        finally:
            os.close(memory)
        self.process = os.pidfd_open(pid)
        self._held: dict[int, Held] = {}
        self._free = iter(range(MOST))
        self._used: list[int] = []

    def __len__(self) -> int:
        return len(self._held)

    def count(self, *states: int) -> int:
        """How many connections are in one of these states."""
        return sum(self._states[slot] in states for slot in self._held)

    def hold(self, fd: int, unread: bytes, returns: int) -> int | None:
        """Keep a connection that is about to be handed over; None where there is no place."""
        slot = self._used.pop() if self._used else next(self._free, None)
        if slot is None:
            return None
        try:
            self._held[slot] = Held(os.dup(fd), unread, returns)
        except OSError:  # the file table is full: the worker alone has it
            self._used.append(slot)
            return None
        self._states[slot] = HANDED
        return slot

    def take(self, slot: int) -> Held:
        """A connection that the worker gives back, or has closed.

        Raises:
            KeyError: The worker has none of this number.
        """
        held = self._held.pop(slot)
        self._used.append(slot)
        return held

    def forget_unread(self) -> None:
        """Drop what was read before of connections that the worker has begun to serve."""
        for slot, held in self._held.items():
            if self._states[slot] != HANDED:
                held.unread = b""

    @property
    def has_ended(self) -> bool:
        """Whether the worker's process has ended: nobody else reads these connections now."""
        return has_ended(self.process)

    def release(self) -> Iterator[tuple[int, Held]]:
        """Each connection with what the worker was doing with it."""
        for slot, held in self._held.items():
            yield self._states[slot], held
        self._held = {}

    def close(self) -> None:
        """Close what is left."""
        for _, held in self.release():
            os.close(held.fd)
        os.close(self.process)
        self._states.close()


def has_ended(process: int) -> bool:
    """Whether the process of a descriptor (pidfd_open(2)) has ended."""
    poll = select.poll()  # select takes no descriptors from 1,024 on
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def make() -> tuple[int, mmap.mmap]:
    """The worker's side: a descriptor to send, and the states."""
    memory = os.memfd_create("states")
    os.ftruncate(memory, MOST)
    return memory, mmap.mmap(memory, MOST)
