"""Bytes on their way to a client, and what the acceptor sees of the connection meanwhile."""

import asyncio
import os
import time

from marship.serving.hosts.direct.slots import BEGUN, IDLE, LATE, PARTLY, UNPROVEN, States

_SMALL_BYTES = 1 << 14
_WAITING = (IDLE, UNPROVEN)


class Writer:
    """Writes to one connection.

    Args:
        states: Where to note what is done with it; None is for this process alone.
        slot: Its number there; None where it has none.

    Attributes:
        slot: The same, until it is left.
    """

    def __init__(self, states: States | None, slot: int | None) -> None:
        self.slot = None if states is None else slot
        self._state = memoryview(bytearray(1))  # one object: a watchdog on a thread may look
        if states is not None and slot is not None:
            self._state = memoryview(states)[slot : slot + 1]
        self._transport: asyncio.Transport | None = None
        self._written = self._mark = self._seen = 0
        self._moved = time.monotonic()

    def open(self, transport: asyncio.Transport, *, is_begun: bool) -> None:
        """Write here from now on."""
        self._transport = transport
        self._fd = transport.get_extra_info("socket").fileno()
        self._state[0] = BEGUN if is_begun else IDLE

    def close(self) -> None:
        """Write no more; what the transport still has is free with it."""
        self._transport = None

    def leave(self) -> int | None:
        """Note it for this process alone from now on: the number, which is returned, is free."""
        slot, self.slot = self.slot, None
        self._state = memoryview(bytearray(self._state))
        return slot

    def begin(self) -> None:
        """A request has begun to come."""
        if self._state[0] in _WAITING:  # else bytes of a response may be on their way
            self._state[0] = BEGUN

    def write(self, data: bytes, *, is_whole: bool = False) -> bool:
        """Send at once what the kernel takes: what the loop keeps would die with the process.

        A small response is sent whole or not at all. Where this process is killed before that is
        noted, the client gets a status: for this request, or else for its next one.

        Args:
            data: The bytes.
            is_whole: Whether they are all of the only response that is waited for.

        Returns:
            Whether the kernel has taken all that was written.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        self._written += len(data)
        if not is_whole or len(data) > _SMALL_BYTES:
            self._state[0] = PARTLY
        if not transport.get_write_buffer_size():
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                transport.abort()
                return False
            if sent == len(data):
                return True
            data = data[sent:]
        self._state[0] = PARTLY
        transport.write(data)
        return False

    def rest(self) -> None:
        """All was sent, and no request has begun to come."""
        self._state[0] = IDLE

    def settle(self, *, is_partly: bool, is_begun: bool) -> None:
        """Note what is done with the connection, if all that was written is sent.

        Args:
            is_partly: Whether a part of a response is sent, and more of it follows.
            is_begun: Whether a request is read or runs.
        """
        if not self.buffered:
            state = PARTLY if is_partly else BEGUN if is_begun else IDLE
            self._state[0] = state

    def doubt(self) -> None:
        """Nothing is under way but a request that may not be allowed."""
        if self._state[0] == BEGUN:
            self._state[0] = UNPROVEN

    @property
    def state(self) -> int:
        """What is done with the connection, as the acceptor sees it."""
        return self._state[0]

    def report_timeout(self) -> None:
        """A request took too long, and this process is about to end."""
        if self._state[0] == BEGUN:
            self._state[0] = LATE

    @property
    def is_unsettled(self) -> bool:
        """Whether bytes of a response may be on their way."""
        return self._state[0] == PARTLY

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def has_written(self) -> bool:
        """Whether anything was."""
        return self._written > 0

    def mark(self) -> None:
        """Count what the client takes from now on."""
        self._mark = self._written - self.buffered

    def stalled_s(self, now: float, *, waits: bool) -> float:
        """For how long its client has taken nothing while something waits, as calls of this saw."""
        before, self._seen = self._seen, self._written - self.buffered
        if self._seen > before or not waits:
            self._moved = now
        return now - self._moved

    @property
    def taken(self) -> int:
        """Bytes that the client's side has taken since the mark."""
        return self._written - self.buffered - self._mark
