"""The files to predict."""

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import stat_result
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import unquote

from marship.errors import UsageError
from marship.serving.formats.codec import JSON_TYPE, NPY_TYPE, OCTETS_TYPE
from marship.serving.formats.media import TEXT_TYPE, media_type

T = TypeVar("T")

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Spreadsheets interpret a cell that starts so as a formula (OWASP, CSV Injection)."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's size and modification time, to detect changes."""

    size_bytes: int
    modified: str

    @classmethod
    def of(cls, stat: stat_result) -> Self:
        """The current stamp of a file."""
        seconds, rest_ns = divmod(stat.st_mtime_ns, 10**9)
        written = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1000)
        return cls(stat.st_size, written.isoformat())


@dataclass(frozen=True, slots=True)
class Source:
    """A file to predict.

    Attributes:
        path: The file's path.
        name: The path for the output file: valid UTF-8, and not a formula.
    """

    path: Path
    name: str

    @classmethod
    def at(cls, path: Path) -> "Source":
        """The source at a path."""
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
        return cls(path, f"./{text}" if text.startswith(FORMULA_STARTS) else text)

    @property
    def kind(self) -> str:
        """Its media type, by its suffix."""
        return media_type(self.path)

    def stamp(self) -> Stamp:
        """Its current stamp.

        Raises:
            OSError: It cannot be read.
        """
        return Stamp.of(self.path.stat())

    def read(self) -> bytes:
        """What it holds.

        Raises:
            OSError: It cannot be read.
        """
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a run.

    Attributes:
        sources: The files, each once.
        passed_over: Names of entries of folders that are skipped.
    """

    sources: list[Source]
    passed_over: list[str]


def may_be_sound(kind: str) -> bool:
    """Whether it may be audio, whose transcript may be streamed."""
    return kind.startswith("audio/") or kind == OCTETS_TYPE


def is_url(place: str) -> bool:
    """Whether a place is a URL, and not a path.

    Example:
        >>> is_url("s3://pets/cats"), is_url("pets/cats"), is_url("file:///pets")
        (True, False, True)
    """
    scheme, mark, _ = place.partition("://")
    return bool(mark) and scheme.replace("+", "").isalnum()


def local_path(place: str) -> str:
    """The path in a `file:` URL; any other place as it is.

    Example:
        >>> local_path("file:///my%20pets")
        '/my pets'
    """
    return unquote(place.removeprefix("file://")) if place.startswith("file://") else place


def is_many(places: Sequence[str]) -> bool:
    """Whether these are many files, and not one request."""
    return len(places) > 1 or any(is_url(place) or Path(place).is_dir() for place in places)


def find(
    places: Sequence[str],
    suffixes: Collection[str] = (),
    advice: str = "Choose others with --suffix.",
) -> Found:
    """All given files, and files of given folders, each once.

    Folders are read recursively, sorted by name; hidden files are skipped. A URL is one that fsspec
    reads, such as s3://bucket/folder.

    Args:
        places: Files, which are always included, folders, and URLs of either.
        suffixes: Suffixes of files to take from folders; if empty, images and audio, or from a
            folder with neither, JSON and npy, or from one without those, texts.
        advice: What to do where there are none.

    Raises:
        UsageError: A file does not exist, there are no files to predict, or the names of two
            would be the same in a table.
        OSError: A folder cannot be read.
    """
    wanted = {f".{suffix.lower().lstrip('.')}" for suffix in suffixes}
    found: dict[str, Source] = {}
    others: list[str] = []
    for place in places:
        taken, left = _find_at(place, wanted)
        for source in taken:
            if found.setdefault(source.name, source).path != source.path:
                raise UsageError(
                    f"each file must have a name of its own in the table, got {source.name} of "
                    "two, one of them with bytes that are not UTF-8. Rename one."
                )
        others += left
    if not found:
        kinds = ", ".join(sorted(wanted)) or "pictures, sound, .json, .npy, .txt"
        raise UsageError(
            f"{', '.join(places)} must hold files to predict ({kinds}), got none. {advice}"
        )
    return Found(list(found.values()), [name for name in others if name not in found])


def _find_at(place: str, suffixes: Collection[str]) -> tuple[Sequence[Source], list[str]]:
    """The files to predict at a place, and the names of those passed over."""
    if is_url(place):
        from marship.predict import urls

        return urls.listed(place, suffixes)
    path = Path(place)
    if place == "-":
        raise UsageError("- must stand alone, got files beside it.")
    if not path.exists():
        raise UsageError(f"{place} must be a file or a folder, got none there.")
    taken, left = _choose(path, suffixes) if path.is_dir() else ([path], [])
    return [Source.at(file) for file in taken], [Source.at(file).name for file in left]


def _choose(folder: Path, suffixes: Collection[str]) -> tuple[list[Path], list[Path]]:
    """A folder's files to predict, and skipped entries: broken links, folders, other types.

    If suffixes are given, files with other suffixes are in neither list.
    """
    files = list(_walk(folder))
    if suffixes:
        files = [file for file in files if file.is_dir() or file.suffix.lower() in suffixes]
    taken = [file for file in files if file.is_file()]
    if not suffixes:
        taken = preferred({file: media_type(file) for file in taken})
    kept = set(taken)
    return taken, [file for file in files if file not in kept]


def preferred(kinds: Mapping[T, str]) -> list[T]:
    """Of a folder's files, by their media types, those that are requests."""
    media = [file for file, kind in kinds.items() if kind.startswith(("image/", "audio/"))]
    # beside images and audio, JSON files are metadata and not requests; beside these, texts are
    requests = [file for file, kind in kinds.items() if kind in (JSON_TYPE, NPY_TYPE)]
    return media or requests or [file for file, kind in kinds.items() if kind == TEXT_TYPE]


def _walk(folder: Path) -> Iterator[Path]:
    """All entries but folders; links to folders are not followed, since they may be cyclic."""

    def give_up(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=give_up):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted([*files, *links]):
            if not name.startswith("."):
                yield Path(place, name)


def read_one(places: Sequence[str], json_text: str | None) -> tuple[bytes, str]:
    """The bytes and media type of one request.

    Args:
        places: A file, or - for standard input; empty with `json_text`.
        json_text: The request itself.

    Raises:
        UsageError: It is not one request, the file does not exist, or the text is not JSON.
    """
    if bool(places) == (json_text is not None):
        raise UsageError("one request must be given: files, a folder, - or --json '...'.")
    if json_text is not None:
        try:
            json.loads(json_text)
        except ValueError as error:
            raise UsageError(f"--json must be JSON, got: {error}.") from error
        return json_text.encode(), JSON_TYPE
    (place,) = places
    if place == "-":
        data = sys.stdin.buffer.read()
        return data, _typed(data)
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"{path} must be a file or a folder, got none there.")
    return path.read_bytes(), media_type(path)


def _typed(data: bytes) -> str:
    """The media type of bytes without a name: JSON if they parse, else octets."""
    try:
        json.loads(data)
    except ValueError:
        return OCTETS_TYPE
    return JSON_TYPE


TABLES = (".csv", ".jsonl")


def is_table(out: Path | None) -> bool:
    """Whether an output file has a row for each response, and is not a single response."""
    return out is not None and out.suffix.lower() in TABLES


def default_out(places: Sequence[str]) -> Path:
    """Where responses go if nothing is said: named after the folder, in the current one."""
    if len(places) != 1 or not is_many(places):
        return Path("predictions.csv")
    (place,) = places
    name = place.rstrip("/").rpartition("/")[2] if is_url(place) else Path(place).resolve().name
    return Path(f"{name or 'root'}.predictions.csv")


def check_out(out: Path, places: Sequence[str]) -> None:
    """Refuse an output file inside a folder that is read.

    Raises:
        UsageError: It lies there, or its ending is none that is known.
    """
    if not is_table(out):
        raise UsageError(
            f"--out must end in .csv or .jsonl for many files, got {out}. Add --as to get "
            "transcripts beside the table."
        )
    for place in places:
        if Path(place).is_dir() and out.resolve().is_relative_to(Path(place).resolve()):
            raise UsageError(
                f"the output must lie outside the folder that is read, got {out} inside "
                f"{place}. Choose another file with --out."
            )
