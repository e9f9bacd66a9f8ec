"""A row of the output file, and its two formats: CSV (RFC 4180) and JSON lines.

A CSV has the columns `file`, `status` and `error`, then those of the first response: numbers and
strings, lists of them separated by `;`, objects, lists of lists and lists of objects as JSON.
`more` has the fields of later responses that are not columns, as JSON.
"""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

from marship.predict.sources import FORMULA_STARTS, Stamp

FIRST = ("file", "status", "error")
LAST = ("size_bytes", "modified", "model", "more")
LIST_MARK = ";"


@dataclass(frozen=True, slots=True)
class Row:
    """The result for one file.

    Attributes:
        file: Its name, as `Source` has it.
        model: The model's name and version.
        status: The HTTP status; None without a response.
        error: A stable code and a message; empty on success.
        stamp: The file's stamp when it was sent; None if it could not be read.
        answer: The response, under its name in JSON lines: a JSON value; for a row read from a
            CSV its cells.
    """

    file: str
    model: str
    status: int | None = None
    error: str = ""
    stamp: Stamp | None = None
    answer: Any = None

    @property
    def has_response(self) -> bool:
        """Whether it has a response and need not be predicted again."""
        return self.status == HTTPStatus.OK


class CsvFormat:
    """Rows as a CSV in UTF-8; the first response determines its columns."""

    has_quotes = True

    def __init__(self) -> None:
        self._columns: tuple[str, ...] | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the columns are known."""
        return self._columns is not None

    def fix(self, response: Any) -> None:  # noqa: ANN401  any JSON value
        """Take the columns from a response."""
        self._columns = tuple(cells(response))

    def head(self) -> bytes:
        """The header with the columns' names."""
        return _line([*FIRST, *(self._columns or ()), *LAST])

    def read_head(self, record: bytes) -> bool:
        """Take the columns from a file's first line; whether it is a header."""
        names = _cells(record)
        end = len(names) - len(LAST)
        if tuple(names[: len(FIRST)]) != FIRST or tuple(names[end:]) != LAST:
            return False
        self._columns = tuple(names[len(FIRST) : end])
        return True

    def encode(self, row: Row) -> bytes:
        """A row as a line; a cell with line ends in quotes."""
        values = cells(row.answer) if row.has_response else {}
        columns = self._columns or ()
        more = {name: text for name, text in values.items() if name not in columns}
        stamp = (row.stamp.size_bytes, row.stamp.modified) if row.stamp else ("", "")
        status = "" if row.status is None else row.status
        return _line(
            [
                *(row.file, status, _harmless(row.error)),
                *(values.get(name, "") for name in columns),
                *(*stamp, row.model, orjson.dumps(more).decode() if more else ""),
            ]
        )

    def decode(self, record: bytes) -> Row:
        """A line as a row.

        Raises:
            ValueError: It was not written by `encode`.
        """
        texts = _cells(record)
        columns = (*FIRST, *(self._columns or ()), *LAST)
        if self._columns is None or len(texts) != len(columns):
            raise ValueError(f"{len(texts)} cells, the first of them {texts[:1]}")
        file, status, error = texts[: len(FIRST)]
        size_bytes, modified, model, more = texts[-len(LAST) :]
        response = dict(zip(self._columns, texts[len(FIRST) : -len(LAST)], strict=True))
        return Row(
            file=file,
            model=model,
            status=int(status) if status else None,
            error=error,
            stamp=Stamp(int(size_bytes), modified) if size_bytes else None,
            answer=response | (orjson.loads(more) if more else {}),
        )


class JsonLinesFormat:
    """Rows as JSON lines, with whole responses."""

    has_quotes = False
    is_fixed = True

    def fix(self, response: Any) -> None:  # noqa: ANN401  any JSON value
        """Nothing to do: every line has its names."""

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def read_head(self, record: bytes) -> bool:
        """JSON lines have no header."""
        del record
        return False

    def encode(self, row: Row) -> bytes:
        """A row as a line."""
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)

    def decode(self, record: bytes) -> Row:
        """A line as a row.

        Raises:
            ValueError: It is none that `encode` wrote.
        """
        values = orjson.loads(record)
        try:
            stamp = values.pop("stamp")
            return Row(**values, stamp=stamp and Stamp(**stamp))
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"other names than a row has ({error})") from error


def cells(response: Any) -> dict[str, str]:  # noqa: ANN401  any JSON value
    """The fields of a response as text, by column."""
    values = response if isinstance(response, Mapping) else {"answer": response}
    return {
        f"answer.{name}" if name in (*FIRST, *LAST) else _harmless(name): _text(value)
        for name, value in values.items()
    }


def _text(value: Any) -> str:  # noqa: ANN401  any JSON value
    if value is None:
        return ""
    if isinstance(value, str):
        return _harmless(value)
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    is_flat = isinstance(value, list) and not any(
        isinstance(item, list | Mapping) or LIST_MARK in str(item) for item in value
    )
    if not is_flat:
        return orjson.dumps(value).decode()
    return _harmless(LIST_MARK.join(map(_text, value)))


def _harmless(text: str) -> str:
    """The text, prefixed with ' if a spreadsheet would interpret it as a formula."""
    if not text.startswith(FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _line(values: Sequence[object]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\r\n").writerow(values)  # it quotes what holds one of these
    line = stream.getvalue().removesuffix("\r\n") + "\n"
    return line.encode("utf-8", "backslashreplace")


def _cells(record: bytes) -> list[str]:
    csv.field_size_limit(sys.maxsize)  # a text may be longer than the module's 131,072
    stream = io.StringIO(record.decode("utf-8"), newline="")
    try:
        return next(csv.reader(stream, strict=True), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error
