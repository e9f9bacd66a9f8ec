"""The output file: a row for each predicted file, written when its response arrives.

It is valid after any interruption, including a kill: an incomplete row is dropped. During a run,
rows are in the order of responses, and a file's last row counts; at the end the output is rewritten
sorted by name, with one row each.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from marship import storage
from marship.errors import DataError, StorageError, UsageError
from marship.predict.rows import CsvFormat, JsonLinesFormat, Row
from marship.predict.sources import Source, Stamp


class RowFormat(Protocol):
    """Encodes rows as bytes, and decodes them."""

    has_quotes: bool

    @property
    def is_fixed(self) -> bool:
        """Whether rows can be written: a table's columns are known."""

    def fix(self, response: Any) -> None:  # noqa: ANN401  any JSON value
        """Take the columns from a response."""

    def head(self) -> bytes:
        """The file's header."""

    def read_head(self, record: bytes) -> bool:
        """Take the columns from a file's first record; whether it is a header."""

    def encode(self, row: Row) -> bytes:
        """A row as a record."""

    def decode(self, record: bytes) -> Row:
        """Decode a record; raises ValueError if it is invalid."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The position of a record in the file."""

    start: int
    size_bytes: int


class Ledger:
    """The output file of one model, locked by one run at a time.

    Args:
        path: With suffix .jsonl it has whole responses, else it is a CSV.
        model: The model's name and version; a file with another model's responses is rejected.
        again: Discard the file's content.

    Attributes:
        is_torn: Whether the last row was incomplete, and was dropped.

    Raises:
        UsageError: The file was not written by marship, or holds another model's responses.
        DataError: A row is corrupted.
        StorageError: Another run has locked it, or it cannot be written to.
    """

    def __init__(self, path: Path, model: str, *, again: bool = False) -> None:
        self.path, self.model, self.is_torn = path, model, False
        self._form: RowFormat = (
            JsonLinesFormat() if path.suffix.lower() == ".jsonl" else CsvFormat()
        )
        self._places: dict[str, _Place] = {}
        self._stamps: dict[str, Stamp] = {}
        self._held: list[Row] = []  # failures, until a response determines the columns
        self._size_bytes = 0
        self._fd = _open(path)
        try:
            self._load(again=again)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._write_held()
        finally:
            os.close(self._fd)

    @property
    def keeps_responses(self) -> bool:
        """Whether rows have whole responses, not cells."""
        return isinstance(self._form, JsonLinesFormat)

    def remaining(self, sources: Iterable[Source]) -> list[Source]:
        """Sources without a response, or changed since."""
        return [source for source in sources if not self._has_response(source)]

    def add(self, row: Row) -> None:
        """Write a row; a failure before the first response is held until it, or until the end.

        Raises:
            StorageError: The disk is full.
        """
        if self._form.is_fixed:
            self._append([row])
            return
        self._held.append(row)
        if row.has_response:
            self._form.fix(row.answer)
            self._begin()

    def finish(self) -> None:
        """Rewrite the file sorted by name.

        Raises:
            StorageError: The disk is full; the unsorted file stays.
        """
        self._write_held()
        with storage.replacing(self.path) as draft, draft.open("wb") as stream:
            stream.write(self._form.head())
            for name in sorted(self._places):
                stream.write(self._record(self._places[name]))

    def rows(self, sources: Iterable[Source]) -> Iterator[Row]:
        """The rows of these sources; those without a row are omitted."""
        for source in sources:
            if (place := self._places.get(source.name)) is not None:
                yield self._form.decode(self._record(place))

    def _has_response(self, source: Source) -> bool:
        stamp = self._stamps.get(source.name)
        if stamp is None:
            return False
        try:
            return stamp == source.stamp()
        except OSError:
            return False  # predicted again, its row will tell

    def _record(self, place: _Place) -> bytes:
        return os.pread(self._fd, place.size_bytes, place.start)

    def _load(self, *, again: bool) -> None:
        rows = []
        with open(self._fd, "rb", closefd=False) as stream:
            for number, record in enumerate(_records(stream, self._form.has_quotes), start=1):
                self._size_bytes += len(record)
                if number == 1 and self._form.read_head(record):
                    continue
                row = self._read(record, number)
                if row.model != self.model and not again:
                    raise self._other_model(row.model)
                self._note(row, self._size_bytes - len(record), len(record))
                if not row.has_response:
                    rows.append(row)
        self.is_torn = os.fstat(self._fd).st_size > self._size_bytes
        if again:
            self._forget()
        elif self.is_torn:
            os.ftruncate(self._fd, self._size_bytes)
        if not self._stamps:  # then no response has named the columns
            self._form = type(self._form)()
            self._held = [] if again or self._form.is_fixed else rows

    def _read(self, record: bytes, number: int) -> Row:
        try:
            return self._form.decode(record)
        except ValueError as error:
            kind = UsageError if number == 1 else DataError
            raise kind(
                f"row {number} of {self.path} must be one that marship predict wrote, got: "
                f"{error}. Name another file with --out."
            ) from error

    def _other_model(self, model: str) -> UsageError:
        return UsageError(
            f"{self.path} must hold predictions of {self.model}, got those of {model}. "
            "Name another file with --out, or replace them with --again."
        )

    def _note(self, row: Row, start: int, size_bytes: int) -> None:
        self._places[row.file] = _Place(start, size_bytes)
        self._stamps.pop(row.file, None)
        if row.has_response and row.stamp is not None:
            self._stamps[row.file] = row.stamp

    def _forget(self) -> None:
        os.ftruncate(self._fd, 0)
        self._places, self._stamps, self._size_bytes, self.is_torn = {}, {}, 0, False

    def _write_held(self) -> None:
        """Write held failures if there is no response: a table without columns of its own."""
        if self._held:
            self._form.fix({})
            self._begin()

    def _begin(self) -> None:
        """Write the file's header, and the held rows."""
        self._forget()
        rows, self._held = self._held, []
        self._write(self._form.head())
        self._append(rows)

    def _append(self, rows: Iterable[Row]) -> None:
        for row in rows:
            record = self._form.encode(row)
            start = self._size_bytes
            self._write(record)
            self._note(row, start, len(record))

    def _write(self, data: bytes) -> None:
        """Write a row with one system call: atomic under a kill, but not on a full disk."""
        rest = data
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                raise StorageError(
                    f"{self.path} must take another row, got: {error.strerror}. "
                    "What it holds is kept: make room and run the same command again."
                ) from error
        self._size_bytes += len(data)


def _open(path: Path) -> int:
    """Open and lock a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise StorageError(
            f"{path} must be writable, got: {error.strerror}. Choose another file with --out."
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass  # locked by another run, or just replaced by its sorted rows
    os.close(fd)
    raise StorageError(
        f"{path} must be written by one run at a time, got another one that goes on. "
        "Wait for it, or choose another file with --out."
    )


def _records(stream: Iterable[bytes], has_quotes: bool) -> Iterator[bytes]:
    """The complete records; a line end within quotes is part of a record (RFC 4180, 2.6)."""
    lines: list[bytes] = []
    quotes = 0
    for line in stream:
        lines.append(line)
        quotes += line.count(b'"') if has_quotes else 0
        if quotes % 2 == 0 and line.endswith(b"\n"):
            yield b"".join(lines)
            lines, quotes = [], 0
