"""Messages between parties, on two connections: to the party before, from the party after.

Each message has 4 bytes of length, 4 of its number in the session and 1 of its kind, little endian.
Both ends know what must come next: anything else ends the session.
"""

import contextlib
import queue
import struct
import threading
from collections.abc import Collection
from typing import Protocol

from marship.errors import PartyError

GREETING, STEP, BATCH, ANSWERS, BEAT, FAULT = range(1, 7)
KINDS = {
    GREETING: "a greeting",
    STEP: "a step",
    BATCH: "a batch",
    ANSWERS: "answers",
    BEAT: "a heartbeat",
    FAULT: "a fault",
}
HEAD = struct.Struct("<IIB")
ANSWER_S = 5.0
"""A party that does not answer within it is lost."""
MOST_FAULT_BYTES = 1000
_DIRECT_BYTES = 1 << 16
"""Larger messages are written by a thread: three parties that all write would wait forever."""
_FAULT_S = 0.2


class Wire(Protocol):
    """What is used of a socket, TLS or not."""

    def sendall(self, data: bytes, /) -> None:
        """Send all bytes."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive some bytes; 0 at the end."""

    def settimeout(self, value: float | None, /) -> None:
        """Set the time for one operation."""

    def close(self) -> None:
        """Close the connection."""


class Circle:
    """A party's two connections in a session.

    Args:
        before: To the party before, number - 1.
        after: From the party after, number + 1.
        names: The numbers of both.
    """

    def __init__(self, before: Wire, after: Wire, names: tuple[int, int]) -> None:
        self._before, self._after, self._names = before, after, names
        self._answer_s = ANSWER_S
        self._sent = self._received = 0
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._writer: threading.Thread | None = None
        self._lost: OSError | None = None
        before.settimeout(ANSWER_S)
        after.settimeout(ANSWER_S)

    def send(self, data: bytes) -> None:
        """Send a message of the protocol."""
        self.send_message(STEP, data)

    def receive(self, size_bytes: int) -> bytes:
        """Receive a message of the protocol, of a size that is known.

        Raises:
            PartyError: Another message came, or none in time.
        """
        frame = self._read(HEAD.size)
        length = self._check(frame, (STEP,), size_bytes)
        if length != size_bytes:
            raise PartyError(
                f"party {self._names[1]} must send {size_bytes} bytes in message {self._received}, "
                f"got {length}."
            )
        return self._read(length)

    def send_message(self, kind: int, data: bytes) -> None:
        """Send a message of any kind.

        Raises:
            PartyError: The party before is lost.
        """
        frame = HEAD.pack(len(data), self._sent, kind) + data
        self._sent += 1
        with self._lock:
            is_direct = self._pending == 0 and len(frame) <= _DIRECT_BYTES
            self._pending += not is_direct
        if not is_direct:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, daemon=True)
                self._writer.start()
            self._waiting.put(frame)
            return
        try:
            self._before.sendall(frame)
        except OSError as error:
            raise self._gone(0, error) from error

    def receive_message(
        self, kinds: Collection[int], most_bytes: int, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        """Receive a message of one of these kinds.

        Raises:
            PartyError: Another message came, or none in time.
        """
        if timeout_s is not None:
            self._after.settimeout(timeout_s)
        frame = self._read(HEAD.size)
        self._after.settimeout(self._answer_s)
        length = self._check(frame, kinds, most_bytes)
        return frame[-1], self._read(length)

    def close(self, reason: str = "") -> None:
        """End the session; the party before is told the reason, if it can be."""
        with self._lock:
            is_idle = self._pending == 0
        if reason and is_idle:
            text = reason.encode()[:MOST_FAULT_BYTES]
            with contextlib.suppress(OSError, ValueError):
                self._before.settimeout(_FAULT_S)
                self._before.sendall(HEAD.pack(len(text), self._sent, FAULT) + text)
        self._waiting.put(None)
        for wire in (self._before, self._after):
            with contextlib.suppress(OSError):
                wire.close()

    def _write(self) -> None:
        while (frame := self._waiting.get()) is not None:
            try:
                self._before.sendall(frame)
            except (OSError, ValueError) as error:
                self._lost = error if isinstance(error, OSError) else OSError(str(error))
                return  # still pending: nothing is sent after it, and the answer never comes
            with self._lock:
                self._pending -= 1

    def _read(self, size_bytes: int) -> bytes:
        data = bytearray(size_bytes)
        view, done = memoryview(data), 0
        try:
            while done < size_bytes:
                count = self._after.recv_into(view[done:])
                if not count:
                    raise PartyError(f"party {self._names[1]} must stay connected, got its end.")
                done += count
        except (OSError, ValueError) as error:
            raise self._gone(1, error) from error
        return bytes(data)

    def _check(self, frame: bytes, kinds: Collection[int], most_bytes: int) -> int:
        """The message's length, if it may come now."""
        length: int
        length, number, kind = HEAD.unpack(frame)
        name, expected = self._names[1], self._received
        if kind == FAULT and length <= MOST_FAULT_BYTES:
            raise PartyError(self._read(length).decode(errors="replace"))
        wanted = " or ".join(KINDS[one] for one in kinds)
        if number != expected or kind not in kinds:
            raise PartyError(
                f"party {name} must send {wanted} as message {expected}, got "
                f"{KINDS.get(kind, 'another kind')} as {number}."
            )
        if length > most_bytes:
            raise PartyError(
                f"party {name} must send at most {most_bytes} bytes in {wanted}, got {length}."
            )
        self._received += 1
        return length

    def _gone(self, which: int, error: OSError | ValueError) -> PartyError:
        name = self._names[which]
        if isinstance(error, TimeoutError):
            return PartyError(f"party {name} must answer within {self._answer_s:g} s, got nothing.")
        return PartyError(f"party {name} must stay connected, got: {error}.")
