"""A lock that is held is waited for with a word, and no longer than is said."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from marship.engines import locks
from marship.errors import ServerError, StorageError
from marship.exchange.calls import Pause

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is ended."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "x.lock")], **pipes)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def taken(path: Path, timeout_s: float) -> int:
    """Take the lock; how often that paused."""
    pauses = 0
    with ExitStack() as held:
        for pause in locks.take(path, held, timeout_s=timeout_s, action="registers an archive"):
            assert isinstance(pause, Pause)
            time.sleep(pause.seconds)  # as a client's transport does
            pauses += 1
    return pauses


def test_a_free_lock_is_taken_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And again; nothing is said, and the file is its owner's alone."""
    assert [taken(tmp_path / "x.lock", 0), taken(tmp_path / "x.lock", 0)] == [0, 0]
    assert caplog.records == []
    assert (tmp_path / "x.lock").stat().st_mode & 0o077 == 0


def test_the_time_is_bounded_and_the_holder_named(
    other: subprocess.Popen[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits reads for whom, once, before the time is over, and in the error."""
    start_time = time.monotonic()
    with pytest.raises(ServerError, match=f"held by process {other.pid} .*, which registers"):
        taken(tmp_path / "x.lock", locks.REPORT_AFTER_S + 0.3)
    assert time.monotonic() - start_time < locks.REPORT_AFTER_S + 5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"waiting up to 1.3 s for process {other.pid} (" in record.getMessage()


def test_the_lock_is_had_once_the_other_ends(other: subprocess.Popen[str], tmp_path: Path) -> None:
    """However that ends."""
    with ExitStack() as held:
        flow = locks.take(tmp_path / "x.lock", held, timeout_s=60, action="waits")
        assert isinstance(next(flow), Pause)
        other.kill()
        other.wait()
        with pytest.raises(StopIteration):
            next(flow)
    assert locks.holder(tmp_path / "x.lock") == "another process"


def test_who_requests_it_gets_it_in_place_of_the_log(
    other: subprocess.Popen[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, as a command prints it."""
    monkeypatch.setattr(locks, "REPORT_AFTER_S", 0.0)
    message: list[str] = []
    with ExitStack() as held:
        path = tmp_path / "x.lock"
        flow = locks.take(path, held, timeout_s=60, action="waits", on_wait=message.append)
        for _ in range(3):
            next(flow)
    assert [words.partition(" (")[0] for words in message] == [
        f"waiting up to 60 s for process {other.pid}"
    ]
    assert caplog.records == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """In the file's place, too."""
    (tmp_path / "x.lock").mkdir()
    with pytest.raises(StorageError):
        taken(tmp_path / "x.lock", 0)
