"""Waiting for a lock file that another process holds: who that is is told, and time is bounded.

As a flow, so that an event loop goes on meanwhile.
"""

import fcntl
import logging
import os
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from marship import storage
from marship.errors import ServerError
from marship.torchserve.calls import Flow, Pause

TOLD_AFTER_S = 1.0
_PAUSE_S = 0.05
_LOCKS = Path("/proc/locks")  # proc(5); Linux alone tells
_log = logging.getLogger(__name__)


def take(path: Path, held: ExitStack, *, timeout_s: float, deed: str) -> Flow[None]:
    """Take the lock of a file; it is let go when `held` closes, and when the process ends.

    Args:
        path: The file, which stays.
        held: Keeps it.
        timeout_s: How long to wait for who holds it.
        deed: What is done by who holds it, such as "registers an archive".

    Raises:
        ServerError: The time is over.
        StorageError: The file cannot be written.
    """
    with storage.explained(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    held.callback(os.close, fd)
    began, is_told = time.monotonic(), False
    while not _is_taken(fd):
        waited_s = time.monotonic() - began
        if waited_s >= timeout_s:
            raise ServerError(
                f"{path} must be free within {timeout_s:g} s, got it held by {holder(path)}, "
                f"which {deed}. Wait for it, or end it if it hangs."
            )
        if waited_s >= TOLD_AFTER_S and not is_told:
            is_told = True
            _log.warning("waiting up to %g s for %s, which %s", timeout_s, holder(path), deed)
        yield Pause(_PAUSE_S)


def holder(path: Path) -> str:
    """The process that holds a file's lock, as far as the system tells."""
    try:
        state = path.stat()
        place = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
        for line in _LOCKS.read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == place:
                process = psutil.Process(int(fields[4]))
                return f"process {process.pid} ({process.name()})"
    except (OSError, ValueError, IndexError, psutil.Error):
        pass
    return "another process"


def _is_taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
