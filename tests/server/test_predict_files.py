"""`marship predict` over many files, with a real TorchServe: finished, killed, interrupted."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from marship import Client
from marship.engines.torchserve.server import Server
from marship.packaging.step import PackageSettings, package
from waiting import until

FILES = 1500


@pytest.fixture(scope="module")
def adder(linear_onnx: Path, store: Path, client: Client) -> Iterator[str]:
    """A model of three numbers, registered with small batches."""
    settings = PackageSettings(model_store=store, name="adder", batch_size=4, max_batch_delay_ms=1)
    client.register(package(linear_onnx, settings).name, workers=1)
    yield "adder"
    client.unregister("adder")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the folder `questions` in it: JSON of three numbers, two of them in npy."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:04}.json").write_text(f"[[{number}, 2, 3]]")
    np.save(folder / "more.npy", np.array([[1, 2, 3]], np.float32))
    return tmp_path


def command(running: Server, *words: str) -> list[str]:
    """The predict command."""
    return [sys.executable, "-m", "marship", "predict", *words, "--home", str(running.home.path)]


def ask(
    running: Server, place: Path, *words: str, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `marship predict` in a folder."""
    return subprocess.run(
        command(running, *words),
        cwd=place,
        input=data,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        check=False,
    )


def read(path: Path) -> list[dict[str, str]]:
    """A CSV's rows by column."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_folder_becomes_a_table_and_a_csv(running: Server, adder: str, place: Path) -> None:
    """Every file, JSON or npy, is a row with its response; a second run sends nothing."""
    done = ask(running, place, adder, "questions")
    assert done.returncode == 0, done.stderr
    rows = read(place / "questions.predictions.csv")
    assert [row["file"] for row in rows[:2]] == ["questions/0000.json", "questions/0001.json"]
    assert json.loads(rows[1]["answer"]) == [[16.0, 22.0]]
    assert rows[-1]["answer"] == rows[1]["answer"]
    assert {row["model"] for row in rows} == {"adder 1.0"}
    text = done.stdout.decode()
    assert "31 predicted, 0 failed" in text
    assert "questions/0000.json" in text
    second = ask(running, place, adder, "questions").stdout.decode()
    assert "31 predicted before" in second
    assert "sent in" not in second


def test_ignored_files_are_counted(running: Server, adder: str, place: Path) -> None:
    """The summary counts a folder's ignored files and names three; this is not a failure."""
    for name in "abcd":
        (place / f"questions/{name}.txt").touch()
    done = ask(running, place, adder, "questions")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.decode().split())
    assert "31 predicted, 0 failed" in text
    assert "passed over 4: questions/a.txt, questions/b.txt, questions/c.txt, ..." in text


def test_a_refused_file_is_a_row_and_the_exit_code(
    running: Server, adder: str, place: Path
) -> None:
    """One broken file of 31: exit 1, its row has the error; repaired, it alone is sent again."""
    bad = place / "questions/0007.json"
    bad.write_text("[[1, 2")
    out = ["--out", "answers.jsonl"]
    done = ask(running, place, adder, "questions", *out)
    assert done.returncode == 1
    assert "30 predicted, 1 failed" in done.stdout.decode()
    assert "malformed" in done.stdout.decode()
    bad.write_text("[[1, 2, 3]]")
    mended = ask(running, place, adder, "questions", *out)
    assert mended.returncode == 0
    assert "1 sent in" in mended.stdout.decode()
    rows = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    assert rows[7]["answer"] == [[16.0, 22.0]]
    assert len(rows) == 31


def test_standard_input_may_be_anything(running: Server, adder: str, place: Path) -> None:
    """JSON is recognized, npy comes with its type, and for one file the response is printed."""
    npy = (place / "questions/more.npy").read_bytes()
    wanted = ask(running, place, adder, "questions/0001.json").stdout
    assert b"16" in wanted
    assert ask(running, place, adder, "-", data=b"[[1, 2, 3]]").stdout == wanted
    typed = ask(running, place, adder, "-", "--content-type", "application/x-npy", data=npy)
    assert b"16" in typed.stdout
    assert b"16" in ask(running, place, adder, "-", data=npy).stdout
    refused = ask(running, place, adder, "-", data=b"\xff\xd8\xff")
    assert (refused.returncode, refused.stdout) == (1, b"")


MISTAKES = {
    "flags of a run with one file": (["questions/0001.json", "--again"], "--again"),
    "out inside": (["questions", "--out", "questions/x.csv"], "outside the folder"),
    "text and files": (["questions", "--json", "1"], "one request, got several files"),
    "more than the queue holds": (["questions", "--in-flight", "5000"], "job_queue_size of 1000"),
    "nothing to take": (["questions", "--suffix", ".wav"], "(.wav), got none"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(running: Server, adder: str, place: Path, case: str) -> None:
    """The error is on stderr, with exit code 2, and no output file is written."""
    words, line = MISTAKES[case]
    done = ask(running, place, adder, *words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert line in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not list(place.glob("*.csv"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_resumes(
    running: Server, adder: str, place: Path, number: signal.Signals
) -> None:
    """After kill -9 and after Ctrl-C no row is lost or truncated, and only the rest is sent."""
    for index in range(FILES):
        (place / f"questions/x{index}.json").write_text("[[1, 2, 3]]")
    out = place / "questions.predictions.csv"
    with subprocess.Popen(
        command(running, adder, "questions"), cwd=place, stderr=subprocess.PIPE
    ) as process:
        wait_for_rows(out, 100)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    kept = read(out)
    assert 100 <= len(kept) < FILES
    assert {row["status"] for row in kept} == {"200"}
    if number == signal.SIGINT:
        assert f"{len(kept):,} of {FILES + 31:,} files have their response" in said
        assert "the same command goes on" in said
    else:  # what a kill in the middle of a write would leave
        with out.open("ab") as stream:
            stream.write(b'questions/x9.json,200,,"[[16')
    done = ask(running, place, adder, "questions")
    assert done.returncode == 0, done.stderr
    assert f"{FILES + 31 - len(kept):,} sent in" in done.stdout.decode()
    assert ("half-written" in done.stderr.decode()) == (number == signal.SIGKILL)
    names = [row["file"] for row in read(out)]
    assert names == sorted(set(names))
    assert len(names) == FILES + 31


def wait_for_rows(path: Path, count: int) -> None:
    """Wait until a table has so many rows."""

    def has_them() -> bool:
        return path.exists() and path.read_bytes().count(b"\n") > count

    until(has_them, 30, f"{count} rows in {path.name}")


def test_a_worker_that_is_killed_costs_no_file(
    running: Server, adder: str, place: Path, client: Client
) -> None:
    """Its worker is killed midway; after a second run every file has its response."""
    for index in range(FILES):
        (place / f"questions/x{index}.json").write_text("[[1, 2, 3]]")
    out = place / "questions.predictions.csv"
    (worker,) = client.describe(adder)[0].workers
    with subprocess.Popen(
        command(running, adder, "questions"), cwd=place, stdout=subprocess.DEVNULL
    ):
        wait_for_rows(out, 100)
        os.kill(worker.pid, signal.SIGKILL)
    lost = [row for row in read(out) if row["status"] != "200"]
    assert len(lost) <= 4, "more than the batch that the worker held"
    client.wait_ready(adder)
    assert ask(running, place, adder, "questions").returncode == 0
    assert {row["status"] for row in read(out)} == {"200"}
