"""`marship predict` with recordings and a real TorchServe: printed, written, and gone on with."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from pty import openpty

import numpy as np
import pytest

from marship import Client
from marship.engines.torchserve.server import Server
from whistles import RATE, long_whistle, pack_ear, said, wav

TEXTS = ["abc", "dad", "hh"]
SRT = """\
1
00:00:00,060 --> 00:00:00,480
abc

"""
Ask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def ear(store: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model that recognizes whistles."""
    folder = tmp_path_factory.mktemp("ear")
    made = pack_ear(folder, name="scribe", batch_size=2, max_batch_delay_ms=5)
    made.rename(store / "scribe.mar")
    client.register("scribe.mar")
    yield "scribe"
    client.unregister("scribe")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the folder `talks` in it: three recordings, one of them silent."""
    talks = tmp_path / "talks"
    (talks / "deep").mkdir(parents=True)
    (talks / "one.wav").write_bytes(said("abc"))
    (talks / "silence.wav").write_bytes(wav(np.zeros(RATE, np.float32)))
    (talks / "deep/three.wav").write_bytes(wav(long_whistle(*TEXTS)))
    return tmp_path


@pytest.fixture
def ask(running: Server, ear: str, place: Path) -> Ask:
    """Run `marship predict scribe` beside the folder."""

    def run(*words: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(running, ear, *words),
            cwd=place,
            input=data,
            env={**os.environ, "COLUMNS": "120"},
            capture_output=True,
            check=False,
        )
        out, err = (text.decode() for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


def command(running: Server, *words: str) -> list[str]:
    """The predict command."""
    return [sys.executable, "-m", "marship", "predict", *words, "--home", str(running.home.path)]


def written(place: Path) -> list[str]:
    """The transcripts beside a table."""
    folder = place / "out.transcripts"
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_one_recording_is_printed(ask: Ask) -> None:
    """For a person with times; as SRT, WebVTT, text and JSON alone, so that > takes it."""
    shown = ask("talks/deep/three.wav").stdout
    assert [line.split()[1] for line in shown.splitlines()[:3]] == TEXTS
    assert shown.startswith("00:00:00.0")
    assert "confidence" in shown
    assert ask("talks/one.wav", "--as", "srt").stdout == SRT
    assert ask("talks/deep/three.wav", "--as", "txt").stdout == "abc\ndad\nhh\n"
    captions = ask("talks/one.wav", "--as", "vtt").stdout
    assert captions == "WEBVTT\n\n00:00:00.060 --> 00:00:00.480\nabc\n"
    answer = json.loads(ask("talks/deep/three.wav", "--as", "json").stdout)
    assert [segment["text"] for segment in answer["segments"]] == TEXTS
    assert answer["text"] == " ".join(TEXTS)
    assert ask("-", "--as", "txt", data=said("bed")).stdout == "bed\n"


def test_silence_is_reported(ask: Ask) -> None:
    """The terminal shows a message; text and SRT are empty, WebVTT is its header."""
    assert "nothing" in ask("talks/silence.wav").stdout
    found = [ask("talks/silence.wav", "--as", form).stdout for form in ("txt", "srt", "vtt")]
    assert found == ["", "", "WEBVTT\n"]


def test_one_recording_is_written(ask: Ask, place: Path) -> None:
    """In the form that the file's name says; a failure leaves what was there."""
    for form in ("txt", "srt", "vtt", "json"):
        done = ask("talks/one.wav", "--out", f"said.{form}")
        assert (done.returncode, done.stdout) == (0, "")
    assert (place / "said.srt").read_text() == SRT
    assert (place / "said.txt").read_text() == "abc\n"
    assert (place / "said.vtt").read_text().startswith("WEBVTT\n\n00:")
    assert json.loads((place / "said.json").read_text())["text"] == "abc"
    (place / "bad.wav").write_bytes(wav(long_whistle("abc", "dad", "a!", "hh")))
    done = ask("bad.wav", "--out", "said.srt")
    assert (done.returncode, done.stdout) == (1, "")
    assert "under reference" in done.stderr
    assert (place / "said.srt").read_text() == SRT
    assert not list(place.glob(".said*"))


def test_segments_are_printed_while_others_are_transcribed(
    running: Server, store: Path, client: Client, place: Path, tmp_path: Path
) -> None:
    """On a terminal the first text stands there seconds before the command ends."""
    pack_ear(tmp_path, name="slow", slow_ms=300).rename(store / "slow.mar")
    client.register("slow.mar")
    (place / "long.wav").write_bytes(wav(long_whistle(*TEXTS * 4)))
    ours, its = openpty()
    with subprocess.Popen(
        command(running, "slow", "long.wav", "--as", "txt"), cwd=place, stdout=its, stderr=its
    ) as process:
        os.close(its)
        heard = b""
        while b"abc" not in heard:
            heard += os.read(ours, 4096)
        assert process.poll() is None
        with suppress(OSError):  # a terminal that nobody writes to any more
            while more := os.read(ours, 4096):
                heard += more
    os.close(ours)
    client.unregister("slow")
    assert process.returncode == 0
    assert heard.count(b"dad") == 4
    assert b"transcribed 00:00:0" in heard


def test_a_folder_becomes_a_table_and_transcripts(ask: Ask, place: Path) -> None:
    """Each file has a row and its transcripts, with sub-folders; a second run sends nothing."""
    words = ("talks", "--out", "out.csv", "--as", "srt", "--as", "txt")
    done = ask(*words)
    assert done.returncode == 0, done.stderr
    assert written(place) == [
        f"{name}.wav.{form}" for name in ("deep/three", "one", "silence") for form in ("srt", "txt")
    ]
    assert (place / "out.transcripts/one.wav.srt").read_text() == SRT
    assert (place / "out.transcripts/silence.wav.txt").read_text() == ""
    with (place / "out.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["talks/deep/three.wav"]["text"] == " ".join(TEXTS)
    assert rows["talks/silence.wav"]["text"] == ""
    assert "out.transcripts" in done.stdout
    assert "sent in" not in ask(*words).stdout


@pytest.mark.parametrize(("table", "asked"), [("out.csv", 2), ("out.jsonl", 1)])
def test_missing_transcripts_are_written_again(
    ask: Ask, place: Path, table: str, asked: int
) -> None:
    """One is lost and one recording is new: JSON lines give the lost one without a request."""
    assert ask("talks", "--out", table, "--as", "srt").returncode == 0
    kept = place / "out.transcripts/deep/three.wav.srt"
    inode = kept.stat().st_ino
    (place / "out.transcripts/one.wav.srt").unlink()
    (place / "talks/new.wav").write_bytes(said("bed"))
    done = ask("talks", "--out", table, "--as", "srt")
    assert f"{asked} sent in" in done.stdout
    assert (place / "out.transcripts/one.wav.srt").read_text() == SRT
    assert "bed" in (place / "out.transcripts/new.wav.srt").read_text()
    assert kept.stat().st_ino == inode


def test_a_recording_that_fails_now_keeps_no_old_transcript(ask: Ask, place: Path) -> None:
    """Its row says why, the others are written, and mended it has one again."""
    words = ("talks", "--out", "out.jsonl", "--as", "vtt")
    ask(*words)
    (place / "talks/one.wav").write_bytes(b"RIFF, and nothing more")
    done = ask(*words)
    assert done.returncode == 1
    assert "2 predicted, 1 failed" in done.stdout
    assert written(place) == ["deep/three.wav.vtt", "silence.wav.vtt"]
    (place / "talks/one.wav").write_bytes(said("abc"))
    assert ask(*words).returncode == 0
    assert len(written(place)) == 3


def test_a_name_that_is_too_long_affects_one_file(ask: Ask, place: Path) -> None:
    """There is no room for .srt: a row says so, and the others are written."""
    (place / "talks" / ("x" * 251 + ".wav")).write_bytes(said("abc"))
    done = ask("talks", "--out", "out.csv", "--as", "srt")
    assert done.returncode == 1
    assert "unwritable: File name too long" in done.stdout
    assert "3 predicted, 1 failed" in done.stdout
    assert len(written(place)) == 3


def test_a_mistake_is_one_line(ask: Ask, place: Path) -> None:
    """The error is on stderr with exit code 2, and nothing is written."""
    done = ask("talks", "--out", "said.srt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Add --as to get transcripts" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in place.iterdir()] == ["talks"]


@pytest.mark.usefixtures("echo")
def test_responses_that_are_no_transcripts_are_an_error(running: Server, place: Path) -> None:
    """A model of another kind, for one file and for a folder: one line, exit code 2."""
    (place / "numbers").mkdir()
    (place / "numbers/one.json").write_text("[1]")
    for words in (["numbers/one.json", "--as", "vtt"], ["numbers", "--as", "srt"]):
        done = subprocess.run(
            command(running, "echo", *words),
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "Send it to a model that transcribes" in done.stderr
    assert not (place / "numbers.predictions.transcripts").exists()


def test_a_recording_over_the_servers_limit_is_not_sent(ask: Ask, place: Path) -> None:
    """One and in a folder: what to do is said."""
    with (place / "talks/large.wav").open("wb") as file:
        file.truncate(17 << 20)
    advice = "Send sound as FLAC, Opus or MP3, or set max_request_size in config.properties"
    done = ask("talks/large.wav")
    assert done.returncode == 1
    assert advice in done.stderr
    assert advice in ask("talks", "--out", "out.csv").stdout
