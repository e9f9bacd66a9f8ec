"""Connections whose next request is not known yet: read until its first line is there."""

import asyncio
import socket
import time
from collections.abc import Callable

from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.request_line import without_empty_lines

_HEAD_BYTES = 1 << 14


class Arrivals:
    """Waits for the request line of connections, and passes them on.

    Args:
        loop: The event loop.
        limits: How long a connection may be silent, or a line take.
        place: Takes a connection's descriptor, which it closes, what was read of it, how often it
            was given back, and when that began to come.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        place: Callable[[int, bytes, int, float], None],
    ) -> None:
        self._loop, self._limits, self._place = loop, limits, place
        self._lines: dict[int, tuple[socket.socket, bytes, float, float]] = {}
        self._idle_s = limits.idle_s

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: socket.socket) -> None:
        """Read until the request line is there."""
        number = line.fileno()
        self._lines[number] = (line, b"", time.monotonic() + self._idle_s, 0.0)
        if not self._read(number):
            self._loop.add_reader(number, self._read, number)

    def _read(self, number: int) -> bool:
        """Read what came; whether the connection is done with here."""
        line, had, deadline, came_s = self._lines[number]
        try:
            data = line.recv(_HEAD_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._remove(number).close()
            return True
        unread = had + data
        came_s = came_s or time.perf_counter()
        if b"\n" not in without_empty_lines(unread) and len(unread) < _HEAD_BYTES:
            deadline = deadline if had else time.monotonic() + self._limits.head_s
            self._lines[number] = (line, unread, deadline, came_s)
            return False
        self._place(self._remove(number).detach(), unread, 0, came_s)
        return True

    def _remove(self, number: int) -> socket.socket:
        line = self._lines.pop(number)[0]
        self._loop.remove_reader(number)
        return line

    def close_oldest(self) -> bool:
        """Close the one that has waited longest; whether there was one."""
        for number in self._lines:
            self._remove(number).close()
            return True
        return False

    def expire(self, now: float) -> None:
        """Close those that took too long."""
        for number, (_, _, deadline, _) in list(self._lines.items()):
            if now > deadline:
                self._remove(number).close()

    def finish(self, idle_s: float) -> None:
        """Wait for requests that have not begun to come no longer than so many seconds."""
        self._idle_s, last = idle_s, time.monotonic() + idle_s
        for number, (line, had, deadline, came_s) in list(self._lines.items()):
            ends = deadline if had else min(deadline, last)
            self._lines[number] = (line, had, ends, came_s)

    def close(self) -> None:
        """Close all."""
        for number in list(self._lines):
            self._remove(number).close()
