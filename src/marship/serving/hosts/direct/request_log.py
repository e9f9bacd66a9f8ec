"""A line of JSON for each request, in a file that all workers of a server append to."""

import base64
import fcntl
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import orjson

logger = logging.getLogger(__name__)

LOG_VARIABLE = "MARSHIP_REQUEST_LOG"
"""JSON: the file, and whether bodies are logged; set by the host."""
_WRITE_S, _MOST_WAITING, _PIECE = 0.25, 1 << 24, 1 << 20
"""Seconds between two looks; bytes that may wait; bytes that are written at once."""
_MOST_BYTES, _FILES = 50 << 20, 5
_LONGEST_BODY = 1 << 16


class RequestLog:
    """Appends lines from a thread of its own.

    Five files of 50 MB each are kept. Where a disk is too slow the oldest lines that wait are
    dropped, never requests.

    Args:
        path: The file.
        has_bodies: Whether `body` shows what it is given.
    """

    def __init__(self, path: Path, *, has_bodies: bool = False) -> None:
        self._path, self.has_bodies = path, has_bodies
        self._waiting: deque[bytes] = deque()
        self._size, self._lock = 0, threading.Lock()  # of what waits
        threading.Thread(target=self._run, name="request log", daemon=True).start()

    def add(self, row: Mapping[str, object]) -> None:
        """Add a request."""
        line = orjson.dumps(row) + b"\n"
        with self._lock:
            self._waiting.append(line)
            self._size += len(line)
            while self._size > _MOST_WAITING:
                self._size -= len(self._waiting.popleft())

    def _piece(self) -> bytes:
        """Some of the lines that wait, the oldest first; empty where there are none."""
        lines: list[bytes] = []
        size = 0
        with self._lock:
            while self._waiting and (not lines or size + len(self._waiting[0]) <= _PIECE):
                lines.append(self._waiting.popleft())
                size += len(lines[-1])
            self._size -= size
        return b"".join(lines)

    def _run(self) -> None:
        while True:
            time.sleep(_WRITE_S)
            if self._waiting:
                try:
                    self.write()
                except OSError as error:
                    logger.warning("requests must be logged in %s, got: %s", self._path, error)

    def write(self) -> None:
        """Write what waits, as whole lines.

        Raises:
            OSError: The file cannot be written to.
        """
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # before lines are taken: they wait within the bound
            while data := self._piece():
                self._append(data)

    def _append(self, data: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(data) > _MOST_BYTES:
            for number in range(_FILES - 1, 0, -1):
                older = self._path.with_suffix(f".{number}.jsonl")
                newer = self._path.with_suffix(f".{number - 1}.jsonl") if number > 1 else None
                if (newer or self._path).exists():
                    (newer or self._path).rename(older)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(os.open(self._path, flags, 0o600), "ab", buffering=0) as file:
            before, rest = file.tell(), memoryview(data)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:  # the disk is full
                file.truncate(before)
                raise


def shown(body: bytes) -> object:
    """A body as a JSON value: text, or bytes by base64; a long one is cut.

    Example:
        >>> shown(b"[1]"), shown(bytes([255, 216])), shown(b"")
        ('[1]', {'base64': '/9g='}, '')
    """
    part = bytes(body[:_LONGEST_BODY])
    try:
        text: object = part.decode()
    except UnicodeDecodeError:
        text = {"base64": base64.b64encode(part).decode()}
    return text if len(body) <= _LONGEST_BODY else {"cut": text, "bytes": len(body)}


def told(variables: Mapping[str, str]) -> RequestLog | None:
    """The log that an environment asks for, if it does."""
    given = variables.get(LOG_VARIABLE)
    if not given:
        return None
    asked = json.loads(given)
    return RequestLog(Path(asked["file"]), has_bodies=bool(asked["bodies"]))
