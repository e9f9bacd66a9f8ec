"""Children that crash are started again; none outlives its parent."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from directly import until

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
"""What `marship logs` sorts by."""
CODE = """
import os, sys, time
from pathlib import Path
from marship.engines.torchserve import supervisor

folder = Path(sys.argv[1])

def child(name):
    (folder / name).write_text(str(os.getpid()))
    while not (folder / f"{name}.end").exists():
        time.sleep(0.01)  # polls a file, in a process of its own
    if (folder / f"{name}.end").read_text():
        (folder / f"{name}.end").unlink()
        raise RuntimeError("a fault of " + name)

supervisor.keep({"first": lambda: child("first"), "second": lambda: child("second")})
"""


class Kept:
    """A supervisor with two children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = [sys.executable, "-c", CODE, str(folder)]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

    def pid(self, name: str, other_than: int = 0) -> int:
        """A child's, once it runs."""
        file = self.folder / name
        until(lambda: file.exists() and file.read_text() not in ("", str(other_than)))
        return int(file.read_text())

    def end(self, name: str, how: str) -> None:
        """Let a child return, or raise an error."""
        made = self.folder / f"{name}.new"
        made.write_text(how)
        made.rename(self.folder / f"{name}.end")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """Both children run."""
    made = Kept(tmp_path)
    made.pid("first")
    made.pid("second")
    yield made
    made.process.kill()
    made.process.communicate(timeout=10)


def test_a_child_that_crashes_is_started_again(kept: Kept) -> None:
    """By a signal or an error, without touching the other one; the log says which and why."""
    second = kept.pid("second")
    first = kept.pid("first")
    os.kill(first, signal.SIGKILL)
    again = kept.pid("first", other_than=first)
    kept.end("first", "an error")
    kept.pid("first", other_than=again)
    assert kept.pid("second") == second
    assert psutil.pid_exists(second)
    kept.process.kill()
    _, log = kept.process.communicate(timeout=10)
    assert re.search(rf"^{TIME} the first was ended by signal 9$", log, re.MULTILINE)
    assert re.search(rf"^{TIME} RuntimeError: a fault of first$", log, re.MULTILINE)


def test_a_child_that_returns_ends_all(kept: Kept) -> None:
    """The server has ended: nothing of it stays."""
    second = kept.pid("second")
    kept.end("first", "")
    assert kept.process.wait(10) == 0
    until(lambda: has_ended(second))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(kept: Kept, number: signal.Signals) -> None:
    """However that ends."""
    pids = [kept.pid("first"), kept.pid("second")]
    kept.process.send_signal(number)
    kept.process.wait(10)
    for pid in pids:
        until(lambda pid=pid: has_ended(pid))


def has_ended(pid: int) -> bool:
    """Whether it runs no more, or is a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
