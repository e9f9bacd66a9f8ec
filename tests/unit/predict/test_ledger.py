"""The output file: what a row keeps, and what survives a kill at any byte."""

import csv
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.errors import DataError, StorageError, UsageError
from marship.predict import sources
from marship.predict.ledger import Ledger
from marship.predict.rows import CsvFormat, JsonLinesFormat, Row, cells
from marship.predict.sources import Source, Stamp


def read(path: Path) -> list[dict[str, str]]:
    """A CSV's rows by column."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


CELLS = [
    ({"label": "cat", "p": 0.5, "n": 3, "ok": True, "none": None}, ["cat", "0.5", "3", "true", ""]),
    ({"tags": ["a", "b"], "xs": [1, 2.5]}, ["a;b", "1;2.5"]),
    ({"tags": ["a;b", "c"], "rows": [[1, 2], [3]]}, ['["a;b","c"]', "[[1,2],[3]]"]),
    (
        {"top": [{"label": "cat"}], "size": {"w": 1}, "deep": [[{}]], "none": []},
        ['[{"label":"cat"}]', '{"w":1}', "[[{}]]", ""],
    ),
    ({"a": "=1+1", "b": "-0.5", "c": "@x", "d": ["+y", "z"]}, ["'=1+1", "-0.5", "'@x", "'+y;z"]),
    ([0.5, 1], ["0.5;1"]),
    ("text", ["text"]),
]


@pytest.mark.parametrize(("answer", "texts"), CELLS)
def test_a_response_becomes_cells(answer: Any, texts: list[str]) -> None:
    """Scalars and lists of them are text, objects JSON, and no cell is a formula."""
    assert list(cells(answer).values()) == texts


@pytest.mark.parametrize("form", [CsvFormat, JsonLinesFormat])
@given(
    st.lists(
        st.text(st.sampled_from("a\r\n\",;'=\t\0\v\x85\u2028 |"), max_size=6),
        min_size=3,
        max_size=3,
    )
)
def test_any_text_comes_back_from_a_row(
    form: type[CsvFormat | JsonLinesFormat], texts: list[str]
) -> None:
    """Of the file's name, the answer and the error; a file's name may hold all but / and NUL."""
    name, answer, error = texts
    table = form()
    table.fix({"said": answer})
    row = Row(name, "m 1", 200, error, Stamp(1, "2026"), {"said": answer})
    record = table.encode(row)
    assert record.endswith(b"\n")
    back = table.decode(record)
    assert back.file == name
    for got, sent in ((back.error, error), (cells(back.answer)["said"], answer)):
        assert got.lstrip("'") == sent.lstrip("'")  # it may stand before what looks like a formula


def test_a_responses_names_are_columns_of_its_own() -> None:
    """A name that a row has already is marked, and none begins a formula."""
    assert list(cells({"status": 1, "=x": 2})) == ["answer.status", "'=x"]


def rows() -> list[Row]:
    """Three responses and a failure, with all that CSV must quote."""
    stamp = Stamp(7, "2026-01-01T00:00:00+00:00")
    return [
        Row('z"1\n.jpg', "m 1.0", 200, "", stamp, {"label": 'a,"b"\nc', "p": 1}),
        Row("y.jpg", "m 1.0", 400, "malformed: =no\npicture", stamp),
        Row("é.jpg", "m 1.0", 200, "", stamp, {"label": "ü", "p": 2}),
        Row("a.jpg", "m 1.0", 200, "", stamp, {"label": "", "more": "x", "q": 3}),
    ]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_file_cut_anywhere_keeps_its_whole_rows(name: str, tmp_path: Path) -> None:
    """At every byte: the rows before the cut count, the torn one is dropped, and one can go on."""
    path = tmp_path / name
    ends = []
    with Ledger(path, "m 1.0") as ledger:
        for row in rows():
            ledger.add(row)
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = [row for row, end in zip(rows(), ends, strict=True) if end <= cut]
        with Ledger(path, "m 1.0") as ledger:
            found = list(ledger.rows(Source(Path(), row.file) for row in rows()))
            assert [(r.file, r.status, r.stamp) for r in found] == [
                (r.file, r.status, r.stamp) for r in kept
            ]
            for row in rows()[len(kept) :]:
                ledger.add(row)
        if kept:
            assert path.read_bytes() == whole


def test_later_outputs_may_differ(tmp_path: Path) -> None:
    """The first response fixes the columns; what others lack is empty, what they add is in more."""
    path = tmp_path / "out.csv"
    with Ledger(path, "m 1.0") as ledger:
        for row in rows():
            ledger.add(row)
        ledger.finish()
    assert path.read_text().startswith("file,status,error,label,p,size_bytes,modified,model,more\n")
    first, *_, last = read(path)
    assert first["file"] == "a.jpg"
    assert first["p"] == ""
    assert orjson.loads(first["more"]) == {"answer.more": "x", "q": "3"}
    assert (last["file"], last["label"]) == ("é.jpg", "ü")


def test_failures_before_the_first_response_are_kept(tmp_path: Path) -> None:
    """They wait for the columns, and are there in the end even if no response came."""
    path = tmp_path / "out.csv"
    failure = rows()[1]
    with Ledger(path, "m 1.0") as ledger:
        ledger.add(failure)
        ledger.finish()
    assert [row["error"] for row in read(path)] == [failure.error]
    with Ledger(path, "m 1.0") as ledger:
        ledger.add(rows()[2])
    assert [(row["file"], row.get("label")) for row in read(path)] == [
        ("y.jpg", ""),
        ("é.jpg", "ü"),
    ]


def test_a_file_that_is_not_ours_stays(tmp_path: Path) -> None:
    """A foreign table is refused even with --again, another model's answers without it."""
    path = tmp_path / "out.csv"
    path.write_text("name,age\nx,1\n")
    with pytest.raises(UsageError, match="one that marship predict wrote"):
        Ledger(path, "m 1.0", again=True)
    assert path.read_text() == "name,age\nx,1\n"
    path.unlink()
    with Ledger(path, "m 1.0") as ledger:
        ledger.add(rows()[0])
        with pytest.raises(StorageError, match="one run at a time"):
            Ledger(path, "m 1.0")
    with pytest.raises(UsageError, match=r"predictions of m 2\.0, got those of m 1\.0"):
        Ledger(path, "m 2.0")
    with Ledger(path, "m 2.0", again=True) as ledger:
        assert list(ledger.rows([Source(Path(), rows()[0].file)])) == []


def test_a_damaged_row_is_reported(tmp_path: Path) -> None:
    """A row in the middle that lacks cells is an error with its number, not a file repeated."""
    path = tmp_path / "out.csv"
    with Ledger(path, "m 1.0") as ledger:
        ledger.add(rows()[2])
    path.write_text(path.read_text() + "x,200\n")
    with pytest.raises(DataError, match="row 3 of"):
        Ledger(path, "m 1.0")


def test_ten_thousand_files_are_found_and_skipped_fast(tmp_path: Path) -> None:
    """Reading 10,000 rows and looking at as many files takes under two seconds."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(10_000):
        (folder / f"{number}.jpg").touch()
    found = sources.find([str(folder)]).sources
    with Ledger(tmp_path / "out.csv", "m 1.0") as ledger:
        for source in found:
            stamp = Stamp.of(source.path.stat())
            ledger.add(Row(source.name, "m 1.0", 200, "", stamp, {"label": "x", "p": 0.5}))
    began = time.process_time()
    with Ledger(tmp_path / "out.csv", "m 1.0") as ledger:
        assert ledger.remaining(found) == []
    assert time.process_time() - began < 2
