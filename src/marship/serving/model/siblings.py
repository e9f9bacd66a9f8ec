"""Counts the workers of a model's version on this machine.

A host does not tell a worker about the others, and `scale` changes their number at any time. So
each worker locks its own file in a folder that all workers of the version share, the extracted
archive. The kernel releases the lock when the process exits, even in a crash.
"""

import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = ".marship-workers"
LOCK_FILE = ".marship-workers.lock"


class Siblings:
    """The workers of one model's version, including this one.

    Args:
        folder: The extracted archive.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder / FOLDER, folder / LOCK_FILE
        self._own: int | None = None  # the descriptor of this worker's lock

    def join(self) -> None:
        """Count this worker, until its process exits.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._folder.mkdir(exist_ok=True)
        with self._locked():  # or another worker might remove the file as one of a crashed worker
            path = self._folder / secrets.token_hex(8)
            self._own = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            fcntl.flock(self._own, fcntl.LOCK_EX)

    def leave(self) -> None:
        """Stop counting this worker."""
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def count(self) -> int:
        """The number of workers; files of those that exited are removed.

        Raises:
            OSError: The folder is gone, as after the model was unregistered.
        """
        with self._locked():
            return sum(_is_held(path) for path in sorted(self._folder.iterdir()))

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Hold a lock, so that only one worker at a time does what takes memory.

        Raises:
            OSError: The folder is gone.
        """
        with self._lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def joined(folder: Path) -> Siblings | None:
    """The workers of an extracted archive, including this one; None if they cannot be counted."""
    siblings = Siblings(folder)
    try:
        siblings.join()
    except OSError as error:
        logger.warning("threads cannot follow the number of workers: %s", error)
        return None
    return siblings


def _is_held(path: Path) -> bool:
    """Whether the worker of this file is alive."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        path.unlink()
        return False
