"""Transcripts: SRT and WebVTT by the formats' own rules, and where a folder's files go."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.errors import UsageError
from marship.predict import sources
from marship.predict.transcripts import Transcripts, captions, written

Cue = tuple[int, int, str]
ESCAPES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
SEGMENTS = [
    {"start": 0.0, "end": 2.5, "text": " Fish & <b>chips</b> --> now ", "confidence": 0.9},
    {"start": 2.5, "end": 2.5, "text": "two\r\n\n1\nlines", "confidence": 0.9},
    {"start": 3.0, "end": 4.0, "text": "  ", "confidence": 0.1},
    {"start": 3599.9996, "end": 360061.0014, "text": "schön", "confidence": 0.9},
]


def read_srt(text: str) -> list[Cue]:
    """SubRip: blocks of a number, times and text, a blank line after each; nothing else."""
    if not text:
        return []
    assert text.endswith("\n\n")
    cues = []
    for number, block in enumerate(text[:-2].split("\n\n"), start=1):
        head, times, *lines = block.split("\n")
        assert head == str(number)
        assert lines
        assert all(line.strip() and "-->" not in line for line in lines)
        match = re.fullmatch(
            r"(\d{2,}):([0-5]\d):([0-5]\d),(\d{3}) --> (\d{2,}):([0-5]\d):([0-5]\d),(\d{3})", times
        )
        assert match
        cues.append((*spans(match), "\n".join(lines)))
    return cues


def read_vtt(text: str) -> list[Cue]:
    """WebVTT, https://www.w3.org/TR/webvtt1/ 4.1 and 4.2: the syntax, without its optional parts.

    A header line and a blank one, cue blocks with blank lines between; each cue ends after it
    starts and starts no sooner than those before; text has no --> and no bare & or <.
    """
    head, *rest = text.split("\n\n")
    if not rest:
        assert head == "WEBVTT\n"
        return []
    assert head == "WEBVTT"
    assert rest[-1].endswith("\n")
    cues: list[Cue] = []
    for block in [*rest[:-1], rest[-1][:-1]]:
        times, *lines = block.split("\n")
        match = re.fullmatch(
            r"(\d{2,}):([0-5]\d):([0-5]\d)\.(\d{3}) --> (\d{2,}):([0-5]\d):([0-5]\d)\.(\d{3})",
            times,
        )
        assert match
        start_ms, end_ms = spans(match)
        assert start_ms < end_ms
        assert not cues or cues[-1][0] <= start_ms
        assert lines
        assert all(line.strip() for line in lines)
        payload = "\n".join(lines)
        assert not re.search(r"[<>\r]|&(?!(amp|lt|gt);)", payload)
        plain = re.sub("|".join(ESCAPES), lambda found: ESCAPES[found[0]], payload)
        cues.append((start_ms, end_ms, plain))
    return cues


def spans(match: re.Match[str]) -> tuple[int, int]:
    """Start and end in milliseconds."""
    numbers = [int(number) for number in match.groups()]
    starts, ends = numbers[:4], numbers[4:]
    return tuple(((h * 60 + m) * 60 + s) * 1000 + rest_ms for h, m, s, rest_ms in (starts, ends))  # type: ignore[return-value]


def test_srt_is_exact() -> None:
    """Numbers, commas, blank lines; a line end within a text goes, and --> is no time."""
    assert written("srt", {"segments": SEGMENTS}) == (
        "1\n00:00:00,000 --> 00:00:02,500\nFish & <b>chips</b> -> now\n\n"
        "2\n00:00:02,500 --> 00:00:02,501\ntwo 1 lines\n\n"
        "3\n01:00:00,000 --> 100:01:01,001\nschön\n\n"
    )


def test_webvtt_is_exact() -> None:
    """Header, points, escapes; an end is after its start; nothing said is the header alone."""
    assert written("vtt", {"segments": SEGMENTS}) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:02.500\nFish &amp; &lt;b&gt;chips&lt;/b&gt; --&gt; now\n\n"
        "00:00:02.500 --> 00:00:02.501\ntwo 1 lines\n\n"
        "01:00:00.000 --> 100:01:01.001\nschön\n"
    )
    assert written("vtt", {"segments": []}) == "WEBVTT\n"
    assert written("srt", {"segments": []}) == written("txt", {"segments": []}) == ""


def test_text_and_json() -> None:
    """A line for each segment; the whole response, readable as it is."""
    assert written("txt", {"segments": SEGMENTS}).splitlines() == [
        "Fish & <b>chips</b> --> now",
        "two 1 lines",
        "schön",
    ]
    answer = {"text": "schön", "segments": SEGMENTS}
    assert json.loads(written("json", answer)) == answer
    assert "schön" in written("json", answer)


@st.composite
def said(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Segments one after the other, with any text."""
    now, found = 0.0, []
    for text in draw(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])))):
        start = now + draw(st.floats(0, 5000))
        now = start + draw(st.floats(0, 30))
        found.append({"start": start, "end": now, "text": text})
    return found


@given(said())
def test_whatever_is_said_is_read_back(found: list[dict[str, Any]]) -> None:
    """Strict readers find every caption with its times and its text, in both formats."""
    kept = [(s, " ".join(s["text"].split())) for s in found]
    wanted = [
        (start := round(s["start"] * 1000), max(round(s["end"] * 1000), start + 1), text)
        for s, text in kept
        if text
    ]
    assert read_vtt("".join(captions("vtt", found))) == wanted
    marked = [(*times, text.replace("-->", "->")) for *times, text in wanted]
    assert read_srt("".join(captions("srt", found))) == marked


PICTURES = [{"label": "cat", "p": 0.5}, {"recordings": []}, [1], "text", None, {"segments": 3}]


@pytest.mark.parametrize("answer", [*PICTURES, {"segments": [{"start": 0.0, "text": "x"}]}])
def test_what_is_no_transcript_is_reported(answer: Any) -> None:
    """A picture's response, several recordings', and segments without times; JSON takes all."""
    with pytest.raises(UsageError, match="or take --as json"):
        written("srt", answer)
    assert json.loads(written("json", answer)) == answer


def beside(out: Path, *places: Path, forms: tuple[str, ...] = ("srt",)) -> Transcripts:
    """The transcripts of a table of everything in some places."""
    return Transcripts.beside(out, [str(place) for place in places], forms)


def test_folders_are_kept_and_names_never_meet(tmp_path: Path) -> None:
    """One stem in two formats and in two folders, and the same names in two places."""
    files = ["a/x.wav", "a/x.mp3", "a/deep/x.wav", "b/x.wav"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    out = tmp_path / "out.csv"
    one = beside(out, tmp_path / "a")
    for source in sources.find([str(tmp_path / "a")]).sources:
        one.write(source, {"segments": [{"start": 0, "end": 1, "text": source.path.name}]})
    assert written_in(one.folder) == ["deep/x.wav.srt", "x.mp3.srt", "x.wav.srt"]
    assert (tmp_path / "out.transcripts/x.mp3.srt").read_text().endswith("\nx.mp3\n\n")
    two = beside(tmp_path / "two.csv", tmp_path / "a", tmp_path / "b/x.wav", forms=("txt", "json"))
    for source in sources.find([str(tmp_path / "a"), str(tmp_path / "b/x.wav")]).sources:
        two.write(source, {"segments": []})
    wanted = [f"{name}.{form}" for name in files for form in ("txt", "json")]
    assert written_in(two.folder) == sorted(wanted)


def written_in(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_file_is_found_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a relative path, over .. and over a link to its folder: the transcript is the same."""
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/x.wav").touch()
    (tmp_path / "link").symlink_to("talks")
    monkeypatch.chdir(tmp_path / "talks")
    for place in (".", "../talks", "../link", "x.wav", str(tmp_path / "talks")):
        found = beside(tmp_path / "out.csv", Path(place))
        (source,) = sources.find([place]).sources
        found.write(source, {"segments": []})
        assert written_in(found.folder) == ["x.wav.srt"]
        found.drop(source)
        found.drop(source)
        assert written_in(found.folder) == []


def test_what_is_missing_or_old_is_known(tmp_path: Path) -> None:
    """Each form counts; a recording that is newer than its transcript has none."""
    recording = tmp_path / "talks/x.wav"
    recording.parent.mkdir()
    recording.touch()
    (source,) = sources.find([str(recording)]).sources
    both = beside(tmp_path / "out.csv", recording, forms=("srt", "vtt"))
    assert both.lacks(source)
    beside(tmp_path / "out.csv", recording).write(source, {"segments": []})
    assert both.lacks(source)
    both.write(source, {"segments": []})
    assert not both.lacks(source)
    later = recording.stat().st_mtime + 5
    os.utime(recording, (later, later))
    assert both.lacks(source)


def test_transcripts_never_lie_among_the_recordings(tmp_path: Path) -> None:
    """A folder with the very name that they would get is refused."""
    folder = tmp_path / "talks.transcripts"
    folder.mkdir()
    with pytest.raises(UsageError, match="outside the folder that is read"):
        beside(tmp_path / "talks.csv", folder)
    beside(tmp_path / "others.csv", folder)
