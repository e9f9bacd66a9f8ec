"""What was said beside what was heard: the figures are those of the rows, and none is lost."""

import csv
from pathlib import Path

import orjson
import pytest

from recipes import run_recipe

SAID = {"a.wav": "Go forward, ten meters!", "deep/b.wav": "don't", "unasked.wav": "nothing"}
HEARD = {"a.wav": "go forward 10 meter", "deep/b.wav": "Don't.", "other.wav": "of another table"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """metadata.csv, and answers.jsonl as marship predict writes it: of 2 s each, heard in 0.5 s."""
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "transcription"), *SAID.items()])
    with (tmp_path / "answers.jsonl").open("wb") as file:
        for name, text in HEARD.items():
            answer = {"text": text, "seconds": 2.0, "timings_ms": {"decode": 100, "infer": 400}}
            row = {"file": str(tmp_path / name), "status": 200, "answer": answer}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return tmp_path


def test_words_that_differ_are_counted(folder: Path) -> None:
    """Case and marks do not count; with --english a number is one however it is written."""
    flags = [str(folder / "answers.jsonl"), "--data-dir", str(folder)]
    done = run_recipe("heard", *flags)
    assert done.returncode == 0, done.stderr
    assert "2 recordings, 5 words, 4 s of sound" in done.stdout
    assert "word error rate 40.0%" in done.stdout
    assert "real-time factor 0.250: 4 times as fast as speech" in done.stdout
    assert "unasked" not in done.stdout
    assert "other" not in done.stdout
    english = run_recipe("heard", *flags, "--english").stdout
    assert "word error rate 16.7%" in english  # do not, as the paper writes it, are two


def test_a_table_of_other_things_is_told(folder: Path) -> None:
    """A recording without an answer, and no recording of the folder at all: one line."""
    answers = folder / "answers.jsonl"
    failed = {"file": str(folder / "a.wav"), "status": 415, "answer": None}
    for rows, line in ((orjson.dumps(failed), "one for each file"), (b"", "got none of them")):
        answers.write_bytes(rows)
        done = run_recipe("heard", str(answers), "--data-dir", str(folder))
        assert done.returncode == 1
        assert line in done.stderr
        assert done.stderr.count("\n") == 1
