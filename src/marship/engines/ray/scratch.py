"""Private folders of processes on a node: what a killed process leaves, the next one removes."""

import fcntl
import shutil
import tempfile
from pathlib import Path

from marship.engines.ray import node


class ScratchFolder:
    """A folder of this process, for sockets and temporary files.

    Folders that killed processes left are removed whenever another one is made: each is locked by
    its process, so long as that lives.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        place = _place()
        with node.locked(place / ".lock"):  # nobody sweeps a folder before it is locked
            _sweep(place)
            self.path = Path(tempfile.mkdtemp(dir=place))
            self._lock = (self.path / ".lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep() -> None:
    """Remove what killed processes left on this node."""
    place = _place()
    with node.locked(place / ".lock"):
        _sweep(place)


def _place() -> Path:
    place = node.root() / "run"
    place.mkdir(mode=0o700, exist_ok=True)
    return place


def _sweep(place: Path) -> None:
    for folder in (entry for entry in place.iterdir() if entry.is_dir()):
        try:
            with (folder / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # its process lives
