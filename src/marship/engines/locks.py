"""Waiting for a lock file, with a timeout, and reporting which process holds it.

Waiting yields pauses to the caller, so that an event loop is not blocked.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import psutil

from marship import storage
from marship.errors import ServerError
from marship.exchange.calls import Pause

REPORT_AFTER_S = 1.0
_PAUSE_S = 0.05
_LOCKS = Path("/proc/locks")  # proc(5); Linux only
_log = logging.getLogger(__name__)


def take(
    path: Path,
    held: ExitStack,
    *,
    timeout_s: float,
    action: str,
    on_wait: Callable[[str], None] | None = None,
) -> Generator[Pause, None, None]:
    """Lock a file; it is unlocked when `held` closes, or the process exits.

    Args:
        path: The file. It is never removed, or two processes could lock two files.
        held: Holds the lock.
        timeout_s: How long to wait for the lock.
        action: What the holder is doing, such as "registers an archive".
        on_wait: Called once, after a while, with a message about the holder; without it the
            message is logged.

    Raises:
        ServerError: The timeout passed.
        StorageError: The file cannot be written.
    """
    with storage.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    held.callback(os.close, fd)
    started_at, is_reported = time.monotonic(), False
    while not _is_taken(fd):
        waited_s = time.monotonic() - started_at
        if waited_s >= timeout_s:
            raise ServerError(
                f"{path} must be free within {timeout_s:g} s, got it held by {holder(path)}, "
                f"which {action}. Wait for it, or end it if it hangs."
            )
        if waited_s >= REPORT_AFTER_S and not is_reported:
            is_reported = True
            message = f"waiting up to {timeout_s:g} s for {holder(path)}, which {action}"
            (on_wait or _log.warning)(message)
        yield Pause(_PAUSE_S)


def holder(path: Path) -> str:
    """The process that holds a file's lock, as far as it is known."""
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
