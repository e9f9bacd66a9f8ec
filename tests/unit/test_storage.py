"""Files are there whole or not at all."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from marship.errors import DataError, StorageError, UsageError
from marship.storage import read_json, replacing, replacing_all, temporary, write_json
from small_disk import run_on


def test_a_file_takes_its_place_in_one_step(tmp_path: Path) -> None:
    """The old content stands until the block ends, and nothing else is left after it."""
    path = tmp_path / "sub" / "a.txt"
    with replacing(path) as draft:
        draft.write_text("one")
    with replacing(path) as draft:
        draft.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["a.txt"]  # noqa: PTH208  hidden files count too


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    """A writer that fails leaves what was there and no draft."""
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  it is our own, from the block
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """After kill -9 in the middle the old content is intact."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys, pathlib\nfrom marship.storage import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as draft:\n"
        "    draft.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.read_text() == "old"


KILLED = (
    "import os, signal, sys, pathlib\nfrom marship.storage import replacing, replacing_all\n"
    "with {0}(pathlib.Path(sys.argv[1])) as draft:\n    {1}\n    print('there', flush=True)\n"
    "    input()\n"
)
WRITERS = {
    "a file": ("replacing", "draft.write_text('half')", "sub/a.txt"),
    "a folder": ("replacing_all", "(draft / 'a.txt').write_text('half')", "sub"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, kind: str) -> None:
    """And nothing else: not the draft of a process that lives, nor a folder that looks alike."""
    function, line, place = WRITERS[kind]
    words = [sys.executable, "-c", KILLED.format(function, line), str(tmp_path / place)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as dead, subprocess.Popen(words, **pipes) as alive:
        for writer in (dead, alive):
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"there\n"
        (tmp_path / "sub" / ".a.txt.other").mkdir()
        dead.kill()
        dead.wait()
        assert len(os.listdir(tmp_path / "sub")) == 3  # noqa: PTH208  hidden files count too
        with {"a file": replacing, "a folder": replacing_all}[kind](tmp_path / place) as draft:
            (draft if kind == "a file" else draft / "a.txt").write_text("mine")
        assert len(os.listdir(tmp_path / "sub")) == 3  # noqa: PTH208  one is a.txt
        alive.communicate(b"\n")
    assert (tmp_path / "sub" / "a.txt").read_text() == "half"
    assert sorted(os.listdir(tmp_path / "sub")) == [".a.txt.other", "a.txt"]  # noqa: PTH208


def test_temporary_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next one of that name; one whose process lives stays."""
    code = (
        "import os, signal, sys\nfrom marship.storage import temporary\n"
        "with temporary('own') as folder:\n    print(folder, flush=True)\n"
        "    (folder / 'deep').mkdir()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [sys.executable, "-c", code]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=env, check=False, capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert list(tmp_path.iterdir()) == [left]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary("other"):
        assert left.exists()
    with temporary("own") as first:
        assert not left.exists()
        with temporary("own") as second:
            assert first.exists()
            assert first != second
    assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_leaves_no_folder_of_its_own(tmp_path: Path) -> None:
    """It removes those that it made; one that was there stays, empty or not."""
    (tmp_path / "there").mkdir()

    def write(folder: Path) -> None:
        with replacing_all(folder):
            raise KeyboardInterrupt

    for folder in (tmp_path / "new" / "deep", tmp_path / "there"):
        with pytest.raises(KeyboardInterrupt):
            write(folder)
    assert os.listdir(tmp_path) == ["there"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "must be writable")]
)
def test_a_full_or_closed_disk_is_one_clear_line(tmp_path: Path, number: int, words: str) -> None:
    """The system's error becomes one that says what to do."""

    def write() -> None:
        with replacing(tmp_path / "a.txt"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=words):
        write()


def test_a_disk_that_is_really_full_leaves_nothing(tmp_path: Path) -> None:
    """A 64 KB file system takes no 1 MB file, and is empty afterwards."""
    code = (
        "import pathlib, sys\nfrom marship.errors import MarshipError\n"
        "from marship.storage import replacing\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "try:\n"
        "    with replacing(folder / 'a.bin') as draft:\n"
        "        draft.write_bytes(bytes(1 << 20))\n"
        "except MarshipError as error:\n    print(error, list(folder.iterdir()))\n"
    )
    done = run_on(tmp_path / "full", 64, '"$1" -c "$2" "$0"', sys.executable, code)
    assert done.stdout.strip().endswith("Free some and run again. []"), done.stderr


def test_json_round_trip_and_its_errors(tmp_path: Path) -> None:
    """What was written is read; a missing and a broken file are told apart."""
    write_json(tmp_path / "a.json", {"a": [1]})
    assert read_json(tmp_path / "a.json") == {"a": [1]}
    with pytest.raises(UsageError, match="must exist"):
        read_json(tmp_path / "b.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="must be readable JSON"):
        read_json(tmp_path / "a.json")
