"""What was said, as text and as captions: one file's, or a folder of them beside a table.

SRT has no standard; it is written as SubRip and its many readers have it: a number, the times
with a comma, the text, a blank line. WebVTT is W3C's, https://www.w3.org/TR/webvtt1/. A caption is
a segment, as long as it was spoken: to cut it would be to make up times.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from marship import storage
from marship.errors import UsageError
from marship.predict.sources import Source, is_url

FORMS = ("txt", "srt", "vtt", "json")
WHOLE = "json"
"""The response as it is, whatever model gave it; the other forms are made of segments."""


@dataclass(frozen=True, slots=True)
class Caption:
    """What is shown at a time."""

    start_ms: int
    end_ms: int
    text: str

    @classmethod
    def of(cls, segment: Any) -> Self:  # noqa: ANN401  any JSON value
        """The caption of a segment of a response.

        Raises:
            UsageError: It is none.
        """
        try:
            start_ms, end_ms = (round(1000 * float(segment[name])) for name in ("start", "end"))
            text = " ".join(segment["text"].split())  # a line end would end the caption
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise _no_transcript(segment) from error
        return cls(start_ms, max(end_ms, start_ms + 1), text)  # WebVTT: an end after its start


def captions(form: str, segments: Iterable[Any]) -> Iterator[str]:
    """A transcript in txt, srt or vtt, part by part as segments come.

    Raises:
        UsageError: A segment is none.
    """
    head = "WEBVTT\n" if form == "vtt" else ""
    spoken = (caption for caption in map(Caption.of, segments) if caption.text)
    for number, caption in enumerate(spoken, start=1):
        yield head + _WRITERS[form](number, caption)
        head = ""
    yield head


def _txt(_number: int, caption: Caption) -> str:
    return f"{caption.text}\n"


def _srt(number: int, caption: Caption) -> str:
    times = f"{clock(caption.start_ms, ',')} --> {clock(caption.end_ms, ',')}"
    text = caption.text.replace("-->", "->")  # readers find times by it, and nothing escapes it
    return f"{number}\n{times}\n{text}\n\n"


def _vtt(_number: int, caption: Caption) -> str:
    text = caption.text
    for mark, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # W3C WebVTT, 4.2.2
        text = text.replace(mark, name)
    return f"\n{clock(caption.start_ms, '.')} --> {clock(caption.end_ms, '.')}\n{text}\n"


_WRITERS = {"txt": _txt, "srt": _srt, "vtt": _vtt}


def clock(time_ms: int, mark: str) -> str:
    """A time as HH:MM:SS and, after the mark, milliseconds."""
    seconds, rest_ms = divmod(time_ms, 1000)
    minutes, hours = seconds // 60 % 60, seconds // 3600
    return f"{hours:02}:{minutes:02}:{seconds % 60:02}{mark}{rest_ms:03}"


def written(form: str, response: Any) -> str:  # noqa: ANN401  any JSON value
    """A whole response in a form.

    Raises:
        UsageError: The form needs segments, and it has none.
    """
    if form == WHOLE:
        return json.dumps(response, ensure_ascii=False, indent=2) + "\n"
    return "".join(captions(form, segments(response)))


def segments(response: Any) -> list[Any]:  # noqa: ANN401  any JSON value
    """The segments of a response.

    Raises:
        UsageError: It has none.
    """
    if not has_segments(response):
        raise _no_transcript(response)
    return list(response["segments"])


def has_segments(response: Any) -> bool:  # noqa: ANN401  any JSON value
    """Whether a response is that of one recording."""
    return isinstance(response, Mapping) and isinstance(response.get("segments"), list)


def _no_transcript(response: object) -> UsageError:
    names = ", ".join(map(str, response)) if isinstance(response, Mapping) else ""
    got = f"one with {names}" if names else "another"
    return UsageError(
        "a response must be of one recording and have segments with start, end and text to be "
        f"written as txt, srt or vtt, got {got}. Send it to a model that "
        "transcribes, or take --as json."
    )


def check(forms: Sequence[str]) -> None:
    """Refuse unknown forms.

    Raises:
        UsageError: One is unknown.
    """
    for form in forms:
        if form not in FORMS:
            raise UsageError(f"--as must be one of {', '.join(FORMS)}, got {form}.")


@dataclass(frozen=True, slots=True)
class Transcripts:
    """A folder of transcripts, as the recordings lie in theirs; `a.wav` has `a.wav.srt`.

    Attributes:
        folder: Where they lie.
        base: The folder that holds all recordings.
        forms: What is written of each.
    """

    folder: Path
    base: Path
    forms: tuple[str, ...]

    @classmethod
    def beside(cls, out: Path, places: Sequence[str], forms: Sequence[str]) -> Self:
        """Those of a table.

        Args:
            out: The table.
            places: The files and folders to predict.
            forms: What is written of each file.

        Raises:
            UsageError: The folder would lie in one that is read, or a place is a URL.
        """
        if remote := next(filter(is_url, places), None):
            raise UsageError(
                f"--as must come with files and folders of this machine, got {remote}. Take a "
                "table with --out NAME.jsonl, whose rows have whole transcripts."
            )
        folder = out.with_suffix(".transcripts")
        tops = [path if path.is_dir() else path.parent for path in map(Path, places)]
        for top in (path for path in map(Path, places) if path.is_dir()):
            if folder.resolve().is_relative_to(top.resolve()):
                raise UsageError(
                    f"transcripts must lie outside the folder that is read, got {folder} in "
                    f"{top}. Choose another file with --out."
                )
        base = Path(os.path.commonpath([top.resolve() for top in tops]))
        return cls(folder, base, tuple(dict.fromkeys(forms)))

    def lacks(self, source: Source) -> bool:
        """Whether one of a file's transcripts is missing, or older than the file."""
        try:
            changed_ns = source.path.stat().st_mtime_ns
            return any(path.stat().st_mtime_ns < changed_ns for path in self._paths(source))
        except FileNotFoundError:
            return True

    def write(self, source: Source, response: Any) -> None:  # noqa: ANN401  any JSON value
        """Write a file's transcripts, each whole or not at all.

        Raises:
            UsageError: The response is no transcript.
            StorageError: They cannot be written.
            OSError: Its name is too long, or taken by a folder.
        """
        texts = [written(form, response) for form in self.forms]
        for path, text in zip(self._paths(source), texts, strict=True):
            with storage.replacing(path) as draft:
                draft.write_text(text, encoding="utf-8")

    def drop(self, source: Source) -> None:
        """Remove what an earlier run wrote of a file that has no response now."""
        for path in self._paths(source):
            path.unlink(missing_ok=True)

    def _paths(self, source: Source) -> list[Path]:
        place = (source.path.parent.resolve() / source.path.name).relative_to(self.base)
        return [self.folder / f"{place}.{form}" for form in self.forms]
