"""Files and rows on their way between nodes: tables of Arrow, without pickles."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from marship.predict.rows import JsonLinesFormat, Row
from marship.predict.sources import Source, Stamp
from marship.predict.urls import UrlSource

_FORM = JsonLinesFormat()


def packed(source: Source) -> dict[str, Any]:
    """A file as a row of a table."""
    url, stamp = None, Stamp(0, "")
    if isinstance(source, UrlSource):
        url, stamp = source.url, source.listed
    return {
        "path": os.fsencode(source.path.absolute()),  # nodes have other current folders
        "name": source.name,
        "url": url,
        "size": stamp.size_bytes,
        "changed": stamp.modified,
    }


def unpacked(row: dict[str, Any]) -> Source:
    """The file again."""
    if (url := row["url"]) is not None:
        return UrlSource.of(url, Stamp(row["size"], row["changed"]))
    return Source(Path(os.fsdecode(row["path"])), row["name"])


def table(rows: Sequence[Row]) -> Any:  # noqa: ANN401  Arrow's
    """Rows as a table."""
    import pyarrow as pa

    return pa.table({"row": pa.array([_FORM.encode(row) for row in rows], pa.large_binary())})


def rows(found: Any) -> Iterator[Row]:  # noqa: ANN401  Arrow's
    """The rows of a table."""
    for record in found["row"]:
        yield _FORM.decode(record.as_py())
