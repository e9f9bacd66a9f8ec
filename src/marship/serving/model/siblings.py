"""How many workers of a model's version run on this machine.

A host tells a worker nothing of the others, and `scale` changes their number at any time. So
each worker holds a lock on a file of its own in a folder that all workers of the version have in
common, the extracted archive. The kernel drops the lock when the process ends, however it ends.
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
    """The workers of one model's version, this one among them.

    Args:
        folder: The extracted archive.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder / FOLDER, folder / LOCK_FILE
        self._own: int | None = None  # the descriptor that holds this worker's lock

    def join(self) -> None:
        """Let this worker be counted, until its process ends.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._folder.mkdir(exist_ok=True)
        with self._locked():  # or another worker might take the file for a dead one's
            path = self._folder / secrets.token_hex(8)
            self._own = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            fcntl.flock(self._own, fcntl.LOCK_EX)

    def leave(self) -> None:
        """Let this worker be counted no more."""
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def count(self) -> int:
        """How many workers there are; files of those that ended are removed.

        Raises:
            OSError: The folder is gone, as after the model was unregistered.
        """
        with self._locked():
            return sum(_is_held(path) for path in sorted(self._folder.iterdir()))

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Wait until no other worker is in its turn: one at a time does what takes memory.

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
    """The workers of an extracted archive, with this one; None where they cannot be counted."""
    siblings = Siblings(folder)
    try:
        siblings.join()
    except OSError as error:
        logger.warning("threads cannot follow the number of workers: %s", error)
        return None
    return siblings


def _is_held(path: Path) -> bool:
    """Whether the worker that made this file lives."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        path.unlink()
        return False
