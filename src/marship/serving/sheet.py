"""Metrics in memory that outlives a worker: a file that it counts in, and that others read.

A worker that dies has lost nothing of what it counted, and the next one goes on from there, so the
sum over a version's files never decreases. A file describes itself: whoever reads it needs to know
nothing of the metrics, nor of the version of marship that writes them.

    0      magic, 8 bytes
    8      uint64: bytes of text that are complete
    16     uint64: the process that counts
    64     text: a line of JSON for the model, and one for each series, with the place of its values
    65536  float64 values
"""

import fcntl
import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

SUFFIX = ".sheet"
MAGIC = b"marship1"
"""Another one where series of the same name get other bounds: older files start anew then."""
_TEXT, _VALUES, _SIZE = 64, 1 << 16, 3 << 15
SPARE = 64
"""Values at the end that no series has: see `Sheet.spare`."""
_HEAD = struct.Struct("8sQQ")
_MOST_FILES = 1 << 12

Kind = Literal["counter", "gauge", "histogram"]
_KINDS = get_args(Kind)
_NAME = re.compile(r"[a-zA-Z_]\w*", re.ASCII)
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One metric with its labels.

    Attributes:
        name: The metric's.
        kind: A gauge is meant while its worker lives; all else is a sum.
        labels: Beside the model's.
        bounds: Upper bounds of a histogram's buckets; one more has what is larger.
        at: The place of its first value. A histogram has its buckets, not cumulated, and its sum.
    """

    name: str
    kind: Kind
    labels: Labels
    bounds: tuple[float, ...]
    at: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Sheet:
    """Values that a worker counts in.

    Args:
        memory: What they stand in; see `claimed` for a file.

    Attributes:
        values: All of them; whoever counts adds to them in place.
        series: Those that were declared, by name and labels.

    Example:
        >>> sheet = Sheet()
        >>> sheet.values[sheet.place("requests_total", "counter")] += 2
        >>> [(series.name, values) for series, values in sheet.read()]
        [('requests_total', (2.0,))]
    """

    def __init__(self, memory: "mmap.mmap | bytearray | None" = None) -> None:
        self._memory = memory if memory is not None else bytearray(_SIZE)
        self.values = np.frombuffer(self._memory, np.float64, offset=_VALUES)
        self.series: dict[tuple[str, Labels], Series] = {}
        self._end = 0

    @property
    def spare(self) -> int:
        """A place that may be counted in, and is never read."""
        return len(self.values) - SPARE

    def place(
        self, name: str, kind: Kind, labels: Labels = (), bounds: Sequence[float] = ()
    ) -> int:
        """Where a series' values begin; it is declared if it is not yet.

        Raises:
            ValueError: There is no room for another one.
        """
        if found := self.series.get((name, labels)):
            return found.at
        made = Series(name, kind, labels, tuple(bounds), self._end)
        row = {"name": name, "kind": kind, "labels": labels, "bounds": bounds, "at": made.at}
        self._write(row, made.at + made.size)
        self._enter(made)
        return made.at

    def _enter(self, series: Series) -> None:
        self.series[series.name, series.labels] = series
        self._end = max(self._end, series.at + series.size)

    def _write(self, row: object, end: int) -> None:
        line = json.dumps(row).encode() + b"\n"
        (used,) = struct.unpack_from("Q", self._memory, 8)
        if end > self.spare or _TEXT + used + len(line) > _VALUES:
            raise ValueError("a sheet must have room for each series, got too many of them.")
        self._memory[_TEXT + used : _TEXT + used + len(line)] = line
        struct.pack_into("Q", self._memory, 8, used + len(line))  # from now on readers see it

    def read(self) -> Iterator[tuple[Series, tuple[float, ...]]]:
        """Each series with its values."""
        for one in self.series.values():
            yield one, tuple(self.values[one.at : one.at + one.size].tolist())

    def begin(self, model: str, version: str) -> None:
        """Count for a model from now on; what the worker before has counted stays, but gauges."""
        head = {"model": model, "version": version}
        magic, used, _ = _HEAD.unpack_from(self._memory)
        rows: list[dict[str, Any]] = []
        with suppress(ValueError):  # what is no sheet starts anew
            rows = _rows(bytes(self._memory[_TEXT : _TEXT + used])) if magic == MAGIC else []
        if rows[:1] != [head]:
            rows = []
            self._memory[:] = bytes(_SIZE)
            self._write(head, 0)
        for row in rows[1:]:
            self._enter(_series(row))
        for one in self.series.values():
            if one.kind == "gauge":
                self.values[one.at] = 0.0
        _HEAD.pack_into(
            self._memory, 0, MAGIC, struct.unpack_from("Q", self._memory, 8)[0], os.getpid()
        )


def claimed(folder: Path, model: str, version: str) -> Sheet:
    """A sheet that nobody else counts in, as long as it is kept, or until the process ends.

    Raises:
        OSError: The folder cannot be written to.
    """
    stem = hashlib.sha256(f"{model}\0{version}".encode()).hexdigest()[:16]
    for number in range(_MOST_FILES):
        file = os.open(folder / f"{stem}-{number}{SUFFIX}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(file, 0, _SIZE)  # else a full disk would end who counts
            memory = mmap.mmap(file, _SIZE)  # it keeps the file open, and so the lock
        except BlockingIOError:
            continue
        finally:
            os.close(file)
        sheet = Sheet(memory)
        sheet.begin(model, version)
        return sheet
    raise OSError(f"{folder} must have fewer than {_MOST_FILES} sheets of a version")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one sheet says.

    Attributes:
        model: The model's name.
        version: Its version.
        number: The sheet's number among those of its version.
        pid: The worker's; 0 where none counts in it now.
        series: Each with its values.
    """

    model: str
    version: str
    number: int
    pid: int
    series: tuple[tuple[Series, tuple[float, ...]], ...]


def read(folder: Path) -> Iterator[Reading]:
    """Every sheet in a folder; a file that is none of this form is left out."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError, struct.error):
            yield _read(path)


def _read(path: Path) -> Reading:
    with path.open("rb") as file:
        lives = _is_held(file.fileno())
        data = file.read(_SIZE)
    magic, used, pid = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"{path} must be a sheet, got another file.")
    head, *rows = _rows(data[_TEXT : _TEXT + used])
    values = np.frombuffer(data, np.float64, offset=_VALUES)
    series = [_series(row) for row in rows]
    if any(one.at < 0 or one.at + one.size > len(values) for one in series):
        raise ValueError(f"{path} must hold the values of all series, got a place outside.")
    return Reading(
        head["model"],
        head["version"],
        int(path.stem.rpartition("-")[2]),
        pid if lives else 0,
        tuple((one, tuple(values[one.at : one.at + one.size].tolist())) for one in series),
    )


def _rows(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def _series(row: Mapping[str, Any]) -> Series:
    """A declared series.

    Raises:
        ValueError: It is none that can be shown; a handler of one's own may have written it.
    """
    labels = tuple((str(name), str(value)) for name, value in row["labels"])
    bounds, at = tuple(map(float, row["bounds"])), int(row["at"])
    names = [str(row["name"]), *(name for name, _ in labels)]
    if row["kind"] not in _KINDS or not all(map(_NAME.fullmatch, names)):
        raise ValueError(f"a series must have a kind and names of Prometheus' form, got {row}.")
    return Series(names[0], row["kind"], labels, bounds, at)


def _is_held(file: int) -> bool:
    """Whether a worker counts in it."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
