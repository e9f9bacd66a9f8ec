"""Files at URLs: listed, stamped and read as those of a folder."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from marship.errors import StorageError, UsageError
from marship.predict import sources, urls
from marship.predict.transcripts import Transcripts


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL of a folder in memory: two pictures, metadata, and what is hidden."""
    system = fsspec.filesystem("memory")
    names = ("b.jpg", "deep/a.png", "facts.json", ".hidden.jpg", ".d/x.jpg", "notes")
    for name in names:
        system.pipe_file(f"/pets/{name}", name.encode())
    yield "memory://pets"
    system.rm("/pets", recursive=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server with a folder's list, one file of which is slow to tell its size: never."""
    (tmp_path / "in").mkdir()
    for name in ("1.json", "2.json", "x.txt"):
        (tmp_path / "in" / name).write_text(f'"{name}"')
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/in"
        server.shutdown()


def test_a_url_is_read_as_a_folder_is(memory: str) -> None:
    """Pictures before their metadata, hidden ones never; names are whole URLs."""
    found = sources.find([memory])
    assert [source.name for source in found.sources] == [
        "memory:///pets/b.jpg",
        "memory:///pets/deep/a.png",
    ]
    assert found.passed_over == ["memory:///pets/facts.json", "memory:///pets/notes"]
    assert [source.read() for source in found.sources] == [b"b.jpg", b"deep/a.png"]
    assert [source.kind for source in found.sources] == ["image/jpeg", "image/png"]
    chosen = sources.find([memory], ["json"])
    assert [source.read() for source in chosen.sources] == [b"facts.json"]
    (one,) = sources.find(["memory:///pets/notes"]).sources
    assert one.read() == b"notes"


@pytest.mark.parametrize("name", ["a#1.json", "b?c=d.json", "c?.json", "#.json"])
def test_a_name_may_hold_any_sign(name: str) -> None:
    """Keys of object stores are no URLs: their suffix says what they are all the same."""
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/odd/{name}", b"1")
    try:
        (found,) = sources.find(["memory://odd"]).sources
        assert (found.kind, found.read()) == ("application/json", b"1")
    finally:
        system.rm("/odd", recursive=True)


def test_a_changed_file_has_another_stamp(memory: str) -> None:
    """Its size or its time: the ledger predicts it again then."""
    before = [source.stamp() for source in sources.find([memory]).sources]
    assert before == [source.stamp() for source in sources.find([memory]).sources]
    fsspec.filesystem("memory").pipe_file("/pets/b.jpg", b"c.jpg")
    after = [source.stamp() for source in sources.find([memory]).sources]
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    assert after[0].size_bytes == before[0].size_bytes == 5


def test_a_web_server_is_a_folder(web: str) -> None:
    """Sizes and times are asked for, where the list has none."""
    found = sources.find([web]).sources
    assert [source.name for source in found] == [f"{web}/1.json", f"{web}/2.json"]
    assert [source.read() for source in found] == [b'"1.json"', b'"2.json"']
    assert [source.stamp().size_bytes for source in found] == [8, 8]
    assert all(source.stamp().modified for source in found)
    gone = urls.UrlSource.of(f"{web}/3.json", found[0].stamp())
    with pytest.raises(OSError, match=r"3\.json"):
        gone.read()


MISTAKES = [
    ("s9://bucket/x", UsageError, "fsspec reads here, got s9://bucket/x: Protocol not known: s9"),
    ("ftp://me:secret@host/x", UsageError, "a URL must hold no password"),
    ("memory://nothing/there", UsageError, "must be a file or a folder, got none there"),
    ("http://127.0.0.1:9/x", StorageError, "must be a folder that can be listed, got: .*onnect"),
    ("zip://*.json::file:///none.zip", StorageError, "must be a folder that can be listed, got: "),
]


@pytest.mark.parametrize(("url", "kind", "line"), MISTAKES)
def test_a_mistake_is_one_line(url: str, kind: type[Exception], line: str) -> None:
    """It names the URL, but no password."""
    with pytest.raises(kind, match=line) as told:
        sources.find([url])
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)


def test_what_cannot_be_listed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each system has errors of its own."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("access denied")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "find", refuse)
    with pytest.raises(StorageError, match=r"memory://pets must be .*access denied"):
        sources.find(["memory://pets"])


def test_transcripts_lie_beside_files_of_this_machine() -> None:
    """A URL has no folder beside it."""
    with pytest.raises(UsageError, match=r"--as must come with files .*got s3://talks"):
        Transcripts.beside(Path("out.csv"), ["s3://talks"], ["srt"])


def test_a_table_is_named_after_a_urls_last_part() -> None:
    """And a `file:` URL is a path."""
    assert sources.default_out(["s3://pets/cats/"]) == Path("cats.predictions.csv")
    assert sources.local_path("file:///a%20b") == "/a b"
