"""Folders of processes on a node: removed with their process, or by the next one."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from marship.engines.ray import scratch
from marship.engines.ray.scratch import ScratchFolder

HOLDS = """
import sys
from marship.engines.ray.scratch import ScratchFolder
folder = ScratchFolder()
(folder.path / "a.sock").touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_killed_process_leaves_its_folder_to_the_next() -> None:
    """While a process lives its folder stays, whoever else starts and ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        mine = ScratchFolder()
        assert (theirs / "a.sock").exists()
        other.kill()
        other.wait()
        ScratchFolder().remove()
        assert not theirs.exists()
        assert mine.path.is_dir()
        mine.remove()
        scratch.sweep()
        assert [entry.name for entry in mine.path.parent.iterdir()] == [".lock"]


def test_a_folder_is_its_owners_alone() -> None:
    """Sockets in it let in who may enter it."""
    made = ScratchFolder()
    assert made.path.stat().st_mode & 0o077 == 0
    assert made.path.parent.stat().st_mode & 0o077 == 0
    made.remove()
    assert not made.path.exists()
