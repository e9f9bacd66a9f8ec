"""One way to read an archive: every reader refuses what is not plain, and notices exchanges."""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marship.engines.torchserve.store import check_archive, files_of
from marship.errors import PackageError
from marship.packaging import configure, sealing
from marship.packaging.sbom import model
from marship.trust import archive, contents, extract, signature
from signed import make_key, manifest, write

SOURCE = Path(archive.__file__).parents[1]
READERS: dict[str, Callable[[Path], object]] = {
    "inspect": archive.read,
    "sbom": model.describe,
    "configure": lambda path: configure.configure(path, ["a=1"]),
    "register": lambda path: check_archive(path.parent, path.name),
    "rewrap": lambda path: sealing.rewrap(path, "env:A", "env:B"),
    "sign": lambda path: signature.sign(path, make_key(path.parent)),
    "verify": contents.read,
}


def overlapping(count: int) -> bytes:
    """An archive whose directory names one deflated megabyte `count` times."""
    data = zlib.compress(bytes(1 << 20), 9, wbits=-15)
    sizes = (zlib.crc32(bytes(1 << 20)), len(data), 1 << 20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr(contents.MANIFEST_FILE, manifest())
        zipped.writestr("handler.py", "class Handler: pass")
    whole = buffer.getvalue()
    start, end = whole.index(b"PK\1\2"), whole.rindex(b"PK\5\6")
    name = b"model.onnx"
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, *sizes, len(name), 0) + name
    body = whole[:start] + local + data
    central = whole[start:end] + count * (
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 33, *sizes, len(name), *[0] * 5, start
        )
        + name
    )
    return body + central + struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, count + 2, count + 2, len(central), len(body), 0
    )  # fmt: skip


def commented(path: Path) -> bytes:
    """An archive with a comment, where another directory might hide."""
    data = write(path).read_bytes()
    return data[:-2] + b"\1\0!"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["overlap", "ratio", "comment"])
def test_no_reader_takes_what_is_not_plain(tmp_path: Path, reader: str, kind: str) -> None:
    """20 GB were hashed for a file of 1 MB; what signing refuses, all refuse."""
    path = tmp_path / "lin.mar"
    if kind == "overlap":
        path.write_bytes(overlapping(3))
    elif kind == "ratio":
        write(path, {"handler.py": b"", "zeros": bytes(8 << 20)}, deflate=True)
    else:
        path.write_bytes(commented(path))
    with pytest.raises(PackageError, match="must be a plain archive"):
        READERS[reader](path)


def test_archives_are_opened_in_one_place() -> None:
    """A new reader goes through trust.extract; these others open what they or torch wrote."""
    openers = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(r"ZipFile\((?!\w+, \"w\")", path.read_text())
    }
    assert openers == {
        "trust/extract.py",
        "packaging/mar.py",  # its own, from torch-model-archiver
        "engines/store.py",  # the directory alone, of what was admitted
        "fit/torchfile.py",  # PyTorch's
        "proof/examples.py",  # how large an npz of inputs is, before NumPy reads it
    }


@pytest.mark.parametrize("deflate", [False, True])
def test_a_copy_differs_in_what_was_changed_alone(tmp_path: Path, deflate: bool) -> None:
    """Whole files and first bytes; order, times and all else stay, and it is plain again."""
    path = write(tmp_path / "x.mar", {"b": b"one" * 9, "a": b"two" * 9, "c": b""}, deflate=deflate)
    with zipfile.ZipFile(path, "a") as zipped:
        zipped.mkdir("folder")
    found = contents.read(path)
    extract.rewrite(path, found, tmp_path / "y.mar", files={"b": b"new"}, heads={"a": b"TWO"})
    after = contents.read(tmp_path / "y.mar")
    assert list(after.files) == list(found.files)
    assert extract.file(tmp_path / "y.mar", after, "b") == b"new"
    assert extract.file(tmp_path / "y.mar", after, "a") == b"TWO" + b"two" * 8
    extract.rewrite(path, found, tmp_path / "z.mar")
    assert (tmp_path / "z.mar").read_bytes() == path.read_bytes()


def test_a_large_archive_stays_plain_when_it_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Zip64 fields were written twice: nobody could read or sign it any more."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    config = {archive.CONFIG_FILE: b"handler: {a: 1}\n", "model.onnx": b"y" * 300}
    path = write(tmp_path / "lin.mar", config)
    assert configure.configure(path, ["a=2"]).after == {"a": 2}
    assert archive.read(path).config == {"handler": {"a": 2}}


def test_an_entry_that_asks_for_a_later_reader_is_refused(tmp_path: Path) -> None:
    """Python's zipfile raises an error of no kind of ours for it; Java does not look."""
    path = write(tmp_path / "x.mar")
    data = path.read_bytes()
    at = data.index(b"PK\1\2") + 6
    path.write_bytes(data[:at] + b"\x40" + data[at + 1 :])
    with pytest.raises(PackageError, match="must know version 64"):
        contents.read(path)
    assert files_of(path) is None


def test_what_is_exchanged_in_between_is_noticed(tmp_path: Path) -> None:
    """Also a file of the same size, and before anything of it is used."""
    path = write(tmp_path / "x.mar", {"a.py": b"first"})
    found = contents.read(path)
    for other in ({"a.py": b"later"}, {"b.py": b"first"}, {"a.py": b"longer"}):
        write(path, other)
        with pytest.raises(PackageError, match="must stay as it is"):
            extract.files(path, found, ["a.py"], 100)
        with pytest.raises(PackageError, match="must stay as it is"):
            extract.rewrite(path, found, tmp_path / "y.mar")
    path.write_bytes(b"no zip")
    with pytest.raises(PackageError, match="must stay as it is"):
        extract.head(path, found, "a.py", 3)


EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "cut", "put"]),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(EDITS, st.booleans())
def test_a_damaged_archive_is_read_or_refused(
    tmp_path: Path, edits: list[tuple[float, str, bytes]], deflate: bool
) -> None:
    """Bytes changed, cut out and put in, anywhere: no reader fails in a way of its own."""
    texts = {"handler.py": b"class H: pass", archive.CONFIG_FILE: b"a: 1", "a/b": b"x" * 50}
    path = write(tmp_path / "lin.mar", texts, deflate=deflate)
    data = bytearray(path.read_bytes())
    for share, kind, piece in edits:
        at = int(share * len(data))
        data[at : at if kind == "put" else at + len(piece)] = b"" if kind == "cut" else piece
    path.write_bytes(data)
    for read in (archive.read, READERS["register"]):
        with suppress(PackageError):
            read(path)
    files_of(path)
