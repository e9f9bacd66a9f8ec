"""A home tells whether its server runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marship.engines.home import Home, ServerRecord, default_home
from marship.engines.processes import boot_id, start_time
from marship.errors import NotRunningError, ServerError, UsageError
from namespaces import run_apart


def record(pid: int, created: float, boot: str = "") -> ServerRecord:
    """A record of a process."""
    url = "http://127.0.0.1:1"
    return ServerRecord(pid, created, boot or boot_id(), url, url, url, "store", "tmp")


def test_a_process_with_the_same_number_is_not_the_server(tmp_path: Path) -> None:
    """Numbers are used again: the time of birth decides, and the machine's own."""
    home = Home(tmp_path)
    born = start_time(os.getpid())
    home.write_record(record(os.getpid(), born))
    assert home.running() == record(os.getpid(), born)
    home.write_record(record(os.getpid(), born - 60))
    assert home.running() is None
    home.write_record(record(os.getpid(), born, "another boot"))
    assert home.running() is None


def test_a_process_that_ended_is_not_running(tmp_path: Path) -> None:
    """Neither while it is a zombie nor after."""
    home = Home(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    home.write_record(record(process.pid, start_time(process.pid)))
    assert home.running()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
    assert home.running() is None
    process.communicate()
    with pytest.raises(NotRunningError, match="marship serve"):
        home.require_running()


LATER = """
clock=$(mktemp) && sed 's/^btime .*/btime 1/' /proc/stat > "$clock"
mount --bind "$clock" /proc/stat && rm "$clock" && exec "$0" -c '
import sys, psutil; from pathlib import Path; from marship.engines.home import Home
print(psutil.boot_time(), Home(Path(sys.argv[1])).running() is not None)' "$1"
"""


def test_a_clock_that_was_set_hides_no_server(tmp_path: Path) -> None:
    """The kernel tells another time of its own start then, and so of every process's."""
    Home(tmp_path).write_record(record(os.getpid(), start_time(os.getpid())))
    done = run_apart(LATER, sys.executable, tmp_path)
    assert done.stdout.split() == ["1.0", "True"], done.stderr


def test_a_damaged_record_is_reported(tmp_path: Path) -> None:
    """Which file, and what to do with it."""
    home = Home(tmp_path)
    for text in ("{", '{"pid": 1}', "[]"):
        home.record_file.write_text(text)
        with pytest.raises(ServerError, match=r"server\.json must describe a server"):
            home.record()


def test_only_one_starts_at_a_time(tmp_path: Path) -> None:
    """A second starter is told to wait; after the first one is done it may."""
    home = Home(tmp_path)
    with home.locked(), pytest.raises(ServerError, match="another one starting"), home.locked():
        pytest.fail("both hold the lock")
    with home.locked():
        pass


def test_a_home_that_cannot_be_is_reported(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--home"):
        Home(tmp_path / "file" / "home").create()


@pytest.mark.parametrize("name", ["notes.txt", "tmp/notes.txt", "verified/start.lock"])
def test_a_folder_with_other_things_is_no_home(tmp_path: Path, name: str) -> None:
    """A server would empty it and close it to others; the error names one, and nothing changes."""
    folder = tmp_path / "project"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).touch()
    folder.chmod(0o755)
    with pytest.raises(UsageError, match=f"project must be a server's home.* with {name[:3]}"):
        Home(folder).create()
    assert (folder / name).exists()
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_home_may_hold_anything(tmp_path: Path) -> None:
    """Other homes before its first start, and whatever comes into it after that."""
    outer = Home(tmp_path / "outer")
    for home in (Home(outer.path / "demo"), outer):
        home.create()
        with home.locked():
            pass
    (outer.path / "notes.txt").touch()
    outer.path.chmod(0o755)
    outer.create()
    assert outer.path.stat().st_mode & 0o777 == 0o700


def test_a_home_remembers_a_trust_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; a damaged record is an error, not a stopped server."""
    home = Home(tmp_path)
    assert home.trust() is None
    monkeypatch.chdir(tmp_path)
    home.write_trust(Path("keys"))
    assert home.trust() == tmp_path / "keys"
    for text in ("{", "[]", '{"folder": null}'):
        home.trust_file.write_text(text)
        with pytest.raises(ServerError, match=r"trust\.json must name the trust folder"):
            home.trust()
    home.write_trust(None)
    assert home.trust() is None


def test_the_default_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MARSHIP_HOME, and else .marship in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARSHIP_HOME", raising=False)
    assert default_home() == tmp_path / ".marship"
    monkeypatch.setenv("MARSHIP_HOME", "elsewhere")
    assert default_home() == tmp_path / "elsewhere"
