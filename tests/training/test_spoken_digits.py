"""Utterances of spoken digits: who is learned from, who is tested on, and what is in the files."""

import csv
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from marship.errors import DataError
from marship.fit.recipe import resolve
from recipes import REPOSITORY, run_recipe

RATE = 8000
RECORDINGS = 7
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def spoken_digits() -> ModuleType:
    """training/spoken_digits.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/spoken_digits.py:read")).__module__]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers' digits: short sounds of a constant value that tells digit and recording."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, speaker in enumerate(("ann", "bob", "cem")):
        for digit in range(10):
            for index in range(RECORDINGS):
                value = (1 + digit + 10 * index + 100 * number) / 512
                samples = np.full(800, value, np.float32)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", samples, RATE)
    return folder


def make(recordings: Path, out: Path, *flags: str) -> dict[str, list[dict[str, str]]]:
    """Run the script; the rows of both tables."""
    done = run_recipe("spoken_digits", str(recordings), "--out", str(out), *flags)
    assert done.returncode == 0, done.stderr
    tables = {}
    for part in ("train", "test"):
        with (out / part / "metadata.csv").open(newline="") as file:
            tables[part] = list(csv.DictReader(file))
    return tables


def values_in(file: Path) -> list[int]:
    """Which recordings a file is joined from, as their numbers."""
    samples, rate = soundfile.read(file)
    assert rate == RATE
    values = np.rint(samples * 512).astype(int)
    starts = np.flatnonzero(np.diff(np.append(0, values)))
    found = [value for value in values[starts].tolist() if value]
    return [value - 1 for value in found]


def test_utterances_are_joined_from_recordings_of_one_speaker(
    recordings: Path, tmp_path: Path
) -> None:
    """Files hold the digits of their text; indices 0 to 4 and the speaker left out are to test.

    Training utterances are as short as `longest` says.
    """
    flags = ["--leave-out", "cem", "--utterances", "60", "--synthetic", "0", "--passes", "1"]
    tables = make(recordings, tmp_path / "out", *flags, "--longest", "2")
    assert len(tables["train"]) == 60
    used: dict[str, Counter[int]] = {"train": Counter(), "test": Counter()}
    lengths: dict[str, set[int]] = {"train": set(), "test": set()}
    for part, rows in tables.items():
        for row in rows:
            values = values_in(tmp_path / "out" / part / row["file_name"])
            said = row["transcription"].split()
            if len(values) == len(said):  # else a digit came twice without a pause
                assert [WORDS[value % 10] for value in values] == said
            lengths[part].add(len(said))
            assert {("ann", "bob", "cem")[value // 100] for value in values} == {row["speaker"]}
            used[part].update(values)
    assert lengths["train"] == {1, 2}
    assert max(lengths["test"]) == 8
    indices = {part: {v // 10 % 10 for v in found} for part, found in used.items()}
    assert indices["train"] == {5, 6}
    assert {v // 100 for v in used["train"]} == {0, 1}
    assert set(used["test"]) == {
        v for v in range(300) if v % 100 < 50 or (v >= 200 and v % 100 < 70)
    }


def test_equal_seeds_make_equal_folders(recordings: Path, tmp_path: Path) -> None:
    """Texts and sounds repeat; another seed has others."""
    flags = ["--utterances", "10", "--synthetic", "0", "--passes", "1"]
    first, same, other = (
        make(recordings, tmp_path / str(number), *flags, "--seed", seed)
        for number, seed in enumerate(("1", "1", "2"))
    )
    assert first == same != other
    sounds = [(tmp_path / name / "train").glob("*.flac") for name in ("0", "1")]
    assert [f.read_bytes() for f in sorted(sounds[0])] == [
        f.read_bytes() for f in sorted(sounds[1])
    ]


def test_synthetic_voices_speak_each_digit(
    spoken_digits: ModuleType, recordings: Path, tmp_path: Path
) -> None:
    """Voices differ in program, name, pitch or speed; their words begin and end with sound."""
    missing = [program for program in spoken_digits.SPEAKERS if shutil.which(program) is None]
    if missing:
        pytest.fail(f"{missing} must be installed: apt install espeak-ng flite")
    flags = ["--utterances", "20", "--synthetic", "0.5", "--voices", "6"]
    tables = make(recordings, tmp_path / "out", *flags)
    speakers = {row["speaker"] for row in tables["train"]}
    assert {"ann", "bob", "cem"} & speakers
    assert len([name for name in speakers if name.startswith("synthetic-")]) >= 3
    assert not any(row["speaker"].startswith("synthetic-") for row in tables["test"])
    for voice in spoken_digits.draw_voices(4, np.random.default_rng(3)):
        short, long = voice.speak("six", RATE), voice.speak("seven seven", RATE)
        assert len(long) > 1.3 * len(short) > 0.1 * RATE
        peak = np.abs(short).max()
        assert np.abs(short[:40]).max() > 0.003 * peak


def test_several_speakers_are_left_out(recordings: Path, tmp_path: Path) -> None:
    """Two are for the test only, and the third is learned from."""
    flags = ["--leave-out", "cem", "--leave-out", "ann", "--utterances", "8", "--synthetic", "0"]
    tables = make(recordings, tmp_path / "out", *flags, "--passes", "1")
    assert {row["speaker"] for row in tables["train"]} == {"bob"}
    assert {row["speaker"] for row in tables["test"]} == {"ann", "bob", "cem"}


def test_a_speaker_who_is_not_there_is_refused(recordings: Path, tmp_path: Path) -> None:
    """The names that there are come with the message, and nothing is written."""
    done = run_recipe(
        "spoken_digits", str(recordings), "--out", str(tmp_path / "out"), "--leave-out", "dora"
    )
    assert done.returncode == 2
    assert "leave_out must be one of ann, bob, cem, got 'dora'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_recordings_of_different_rates_are_refused(
    spoken_digits: ModuleType, tmp_path: Path
) -> None:
    """Joined, one of them would have a wrong pitch."""
    for number, rate in enumerate((8000, 16000)):
        soundfile.write(tmp_path / f"{number}_ann_0.wav", np.ones(100), rate)
    with pytest.raises(DataError, match=r"must have one rate, got \[8000, 16000\]"):
        spoken_digits.read(tmp_path)
