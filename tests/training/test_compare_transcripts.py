"""References beside transcripts: error rates and the real-time factor follow from the rows."""

import csv
from pathlib import Path

import orjson
import pytest

from recipes import run_recipe

REFERENCES = {"a.wav": "Go forward, ten meters!", "deep/b.wav": "don't", "unasked.wav": "nothing"}
TRANSCRIPTS = {
    "a.wav": "go forward 10 meter",
    "deep/b.wav": "Don't.",
    "other.wav": "of another table",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """metadata.csv, and predictions.jsonl of marship predict: 2 s each, transcribed in 0.5 s."""
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "transcription"), *REFERENCES.items()])
    with (tmp_path / "predictions.jsonl").open("wb") as file:
        for name, text in TRANSCRIPTS.items():
            response = {"text": text, "seconds": 2.0, "timings_ms": {"decode": 100, "infer": 400}}
            row = {"file": str(tmp_path / name), "status": 200, "answer": response}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return tmp_path


def test_words_that_differ_are_counted(folder: Path) -> None:
    """Case and punctuation do not count; with --english spellings of a number are equal."""
    flags = [str(folder / "predictions.jsonl"), "--data-dir", str(folder)]
    done = run_recipe("compare_transcripts", *flags)
    assert done.returncode == 0, done.stderr
    assert "2 recordings, 5 words, 4 s of sound" in done.stdout
    assert "word error rate 40.0%" in done.stdout
    assert "real-time factor 0.250: 4 times as fast as speech" in done.stdout
    assert "unasked" not in done.stdout
    assert "other" not in done.stdout
    english = run_recipe("compare_transcripts", *flags, "--english").stdout
    assert "word error rate 16.7%" in english  # the paper spells it do not: two words


def test_predictions_that_are_no_transcripts_are_an_error(folder: Path) -> None:
    """A recording without a response, and no recording of the folder at all: one line."""
    predictions = folder / "predictions.jsonl"
    failed = {"file": str(folder / "a.wav"), "status": 415, "answer": None}
    for rows, line in ((orjson.dumps(failed), "one for each file"), (b"", "got none of them")):
        predictions.write_bytes(rows)
        done = run_recipe("compare_transcripts", str(predictions), "--data-dir", str(folder))
        assert done.returncode == 1
        assert line in done.stderr
        assert done.stderr.count("\n") == 1
