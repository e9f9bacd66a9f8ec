"""An archive passes only if Java, which reads it forwards, and Python see the same in it."""

import hashlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from marship.errors import PackageError
from marship.packaging.step import PackageSettings, package
from marship.trust import contents
from marship.trust.contents import MANIFEST_FILE, read
from signed import FILES, manifest, write


def entry(name: bytes, data: bytes, flags: int = 0, extra: bytes = b"") -> bytes:
    """A stored file with its local header."""
    sizes = (zlib.crc32(data), len(data), len(data), len(name), len(extra))
    return struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, 0, 0, 33, *sizes) + name + extra + data


def listed(name: bytes, data: bytes, offset: int, flags: int = 0) -> bytes:
    """The same file in the central directory."""
    sizes = (zlib.crc32(data), len(data), len(data), len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, 0, 0, 33, *sizes) + name


def joined(entries: list[bytes], central: list[bytes]) -> bytes:
    """A zip file of entries and directory."""
    body, directory = b"".join(entries), b"".join(central)
    count = len(central)
    end = (0, 0, count, count, len(directory), len(body), 0)
    return body + directory + struct.pack("<4s4H2LH", b"PK\5\6", *end)


def plain(*names: bytes, flags: int = 0) -> bytes:
    """A zip file of small files with these names, and a manifest."""
    entries, central, offset = [], [], 0
    for name, data in [*((name, b"x") for name in names), (MANIFEST_FILE.encode(), manifest())]:
        entries.append(entry(name, data, flags))
        central.append(listed(name, data, offset, flags))
        offset += len(entries[-1])
    return joined(entries, central)


def refused(path: Path, data: bytes, fault: str) -> None:
    """The archive is refused for this reason."""
    path.write_bytes(data)
    with pytest.raises(PackageError, match=fault):
        read(path)


@pytest.mark.parametrize("deflate", [False, True])
def test_every_file_has_its_digest(tmp_path: Path, deflate: bool) -> None:
    """Stored or deflated: names, sizes and digests of the files, and of the archive."""
    path = write(tmp_path / "lin.mar", deflate=deflate)
    found = read(path)
    assert (found.model, found.version) == ("lin", "1.0")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.size_bytes == path.stat().st_size
    assert set(found.files) == {*FILES, MANIFEST_FILE}
    for name, data in FILES.items():
        assert found.files[name].sha256 == hashlib.sha256(data).hexdigest()
        assert found.files[name].size_bytes == len(data)


def test_archives_of_marship_and_of_the_archiver_pass(linear_onnx: Path, tmp_path: Path) -> None:
    """What `marship package` writes, and torch-model-archiver's deflated default."""
    from model_archiver.model_packaging import generate_model_archive
    from model_archiver.model_packaging_utils import ModelArchiverConfig

    mar = package(linear_onnx, PackageSettings(model_store=tmp_path, name="own"))
    assert "marship/serving/handler.py" in read(mar).files
    handler = tmp_path / "handler.py"
    handler.write_text("class Handler: pass\n")
    generate_model_archive(
        ModelArchiverConfig(
            model_name="archived",
            handler=str(handler),
            version="2.0",
            serialized_file=str(linear_onnx),
            export_path=str(tmp_path),
        )
    )
    assert (read(tmp_path / "archived.mar").model) == "archived"


def test_a_large_archive_with_zip64_fields_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python writes files over 2 GiB: sizes, offsets and the end in Zip64 fields."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = write(tmp_path / "lin.mar", {f"{i}.bin": b"y" * 300 for i in range(5)})
    assert b"PK\x06\x06" in path.read_bytes()
    assert read(path).files["4.bin"].size_bytes == 300
    data = path.read_bytes()
    refused(path, data.replace(struct.pack("<Q", 300), struct.pack("<Q", 301), 1), "two sizes")
    at = data.index(b"PK\x06\x06") + 32
    refused(path, data[:at] + b"\7" + data[at + 1 :], "Zip64 end that disagrees")
    for at in (len(data) - 10, len(data) - 6):  # the directory's size and start: 32 bits wide
        path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
        assert read(path).model == "lin"
        refused(path, data[:at] + b"\xff\xff\0\0" + data[at + 4 :], "end that disagrees")


def test_a_directory_of_another_name_is_refused(tmp_path: Path) -> None:
    """Python would see handler.py, and Java unpack evil.py."""
    body = [entry(b"evil.py", b"x")]
    refused(tmp_path / "x.mar", joined(body, [listed(b"handler.py", b"x", 0)]), "disagree on evil")


def test_a_file_that_the_directory_does_not_name_is_refused(tmp_path: Path) -> None:
    """Java unpacks it all the same."""
    first, hidden = entry(b"a.py", b"x"), entry(b"hidden.py", b"y")
    refused(
        tmp_path / "x.mar",
        joined([first, hidden], [listed(b"a.py", b"x", 0)]),
        r"disagree on hidden\.py",
    )


def test_a_second_handler_for_java_alone_is_refused(tmp_path: Path) -> None:
    """Java unpacks both, the second over the first; the directory, and so Python, has the first."""
    entries = [entry(b"a.py", b"Python's"), entry(b"a.py", b"for Java")]
    data = joined(entries, [listed(b"a.py", b"Python's", 0)])
    assert zipfile.ZipFile(io.BytesIO(data)).read("a.py") == b"Python's"
    refused(tmp_path / "x.mar", data, r"a\.py twice")


def test_a_directory_that_skips_the_first_entry_is_refused(tmp_path: Path) -> None:
    """Python allows data before its first entry; Java unpacks it."""
    first = entry(b"hidden.py", b"for Java")
    data = joined([first, entry(b"a.py", b"x")], [listed(b"a.py", b"x", len(first))])
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["a.py"]
    refused(tmp_path / "x.mar", data, r"disagree on hidden\.py")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda data: b"#!/bin/sh\n" + data, "does not begin"),
        (lambda data: data + b"more", "bytes behind its end"),
        (lambda data: data[:-2] + b"\1\0!", "a comment at its end"),
        (lambda data: data[:-40], "cut off"),
        (lambda _: b"", "no zip file"),
        (lambda data: data.replace(b"PK\1\2", b"gap!PK\1\2", 1), "disagree"),
        (lambda data: data.replace(b"PK\5\6", b"gap!PK\5\6", 1), "bytes between"),
        (lambda data: data[:-6] + b"\0\0\0\0\0\0", "end that disagrees"),
    ],
)
def test_anything_around_the_entries_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], fault: str
) -> None:
    """A prefix, a suffix, a comment, a gap, a cut: another reader may start elsewhere."""
    refused(tmp_path / "x.mar", change(plain(b"a.py")), fault)


@pytest.mark.parametrize("names", [(b"a.py", b"a.py"), (b"a.py", b"A.py"), (b"a", b"a/b")])
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, names: tuple[bytes, bytes]) -> None:
    """Also if only the case differs, or one is a file and a folder."""
    refused(tmp_path / "x.mar", plain(*names), "twice")


def test_two_ways_to_write_an_umlaut_are_one_name(tmp_path: Path) -> None:
    """Some disks do not tell them apart."""
    names = ("\u00e4.txt".encode(), "a\u0308.txt".encode())
    refused(tmp_path / "x.mar", plain(*names, flags=1 << 11), "twice")
    (tmp_path / "y.mar").write_bytes(plain(names[0], flags=1 << 11))
    assert "\u00e4.txt" in read(tmp_path / "y.mar").files


@pytest.mark.parametrize(
    "name", [b"../x", b"a/../../x", b"/etc/x", b"a\\x", b"./x", b"a//x", b"", b"a\0b", b"a\nb"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: bytes) -> None:
    """A path that climbs out, an absolute one, a backslash, an empty part, a zero byte."""
    refused(tmp_path / "x.mar", plain(name), "an entry with path traversal")


def test_a_name_that_no_disk_takes_is_refused(tmp_path: Path) -> None:
    """TorchServe would fail in the middle of unpacking; a folder's name counts by itself."""
    for name in (b"a" * 256, b"b/" + b"a" * 256 + b"/c"):
        refused(tmp_path / "x.mar", plain(name), "too long for a disk")
    (tmp_path / "y.mar").write_bytes(plain(b"a" * 255, b"b" * 255 + b"/" + b"c" * 255))
    assert len(read(tmp_path / "y.mar").files) == 3


def test_a_name_that_python_and_java_read_differently_is_refused(tmp_path: Path) -> None:
    """Without the UTF-8 flag Python takes cp437, and Java UTF-8."""
    refused(tmp_path / "x.mar", plain("\u00e4.txt".encode()), "no UTF-8")


@pytest.mark.parametrize(
    ("flags", "fault"), [(1, "encrypted"), (8, "differently"), (1 << 5, "differently")]
)
def test_odd_forms_are_refused(tmp_path: Path, flags: int, fault: str) -> None:
    """Encrypted files, and sizes that stand behind the data."""
    refused(tmp_path / "x.mar", plain(b"a", flags=flags), fault)


def test_a_link_is_refused(tmp_path: Path) -> None:
    """Python's zipfile would write its target, others follow it."""
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w") as zipped:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "/etc/passwd")
        zipped.writestr(MANIFEST_FILE, manifest())
    refused(path, path.read_bytes(), "link as a link")


def test_an_extra_field_is_refused(tmp_path: Path) -> None:
    """Info-ZIP's 0x7075 gives a file a second name, which some readers take."""
    name = b"a.py"
    extra = struct.pack("<2HBL", 0x7075, 12, 1, zlib.crc32(name)) + b"evil.py"
    data = joined([entry(name, b"x", extra=extra)], [listed(name, b"x", 0)])
    refused(tmp_path / "x.mar", data, r"extra fields for a\.py")


@pytest.mark.parametrize(
    "extra",
    [
        struct.pack("<2HBL", 0x5455, 5, 1, 0),
        struct.pack("<2HBL", 0x5455, 5, 1, 0) + struct.pack("<2HBBHBH", 0x7875, 7, 1, 2, 0, 2, 0),
    ],
)
def test_times_and_owners_of_info_zip_are_passed_over(tmp_path: Path, extra: bytes) -> None:
    """`zip` writes them with every file, and its archives are served by TorchServe."""
    path = tmp_path / "x.mar"
    path.write_bytes(with_extra(extra))
    assert set(read(path).files) == {"a.py", MANIFEST_FILE}


@pytest.mark.parametrize(
    "extra",
    [
        b"\x55",
        b"UT\5\0",
        struct.pack("<2HB", 0x5455, 5, 1),
        struct.pack("<2HBL", 0x5455, 5, 1, 0) * 2,
        struct.pack("<2H", 1, 0),
        struct.pack("<2HQ", 1, 8, 1),
        struct.pack("<2HBL", 0x5455, 5, 1, 0) + struct.pack("<2HQ", 1, 8, 1),
        struct.pack("<2HBL", 0x5455, 5, 1, 0) + struct.pack("<2HBL", 0x7075, 5, 1, 0),
        b"\0\0\0\0",
    ],
)
def test_other_extra_fields_are_refused(tmp_path: Path, extra: bytes) -> None:
    """Cut off, twice, sizes that nothing asks for, or unknown."""
    refused(tmp_path / "x.mar", with_extra(extra), r"extra fields for a\.py")


def with_extra(extra: bytes) -> bytes:
    """An archive with these extra fields in the local header of its first file."""
    first, second = entry(b"a.py", b"x", extra=extra), (MANIFEST_FILE.encode(), manifest())
    central = [listed(b"a.py", b"x", 0), listed(*second, len(first))]
    return joined([first, entry(*second)], central)


def test_a_folder_may_be_there_but_hold_nothing(tmp_path: Path) -> None:
    """Folders are entries of many archivers; what they hold would be lost to some readers."""
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.mkdir("MAR-INF")
        zipped.writestr(MANIFEST_FILE, manifest())
    assert set(read(path).files) == {MANIFEST_FILE}
    refused(path, plain(b"folder/"), "folder with contents")


def test_a_changed_byte_is_reported_with_its_file(tmp_path: Path) -> None:
    """The zip checksum finds accidents before any signature does."""
    data = write(tmp_path / "x.mar").read_bytes()
    refused(
        tmp_path / "x.mar",
        data.replace(b"Handler", b"Hacker!"),
        r"checksum mismatch in handler\.py",
    )


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """1000 times its size, honestly stated: nothing of it is read."""
    path = write(tmp_path / "x.mar", {"zeros": bytes(20 << 20)}, deflate=True)
    refused(path, path.read_bytes(), "when unpacked")


def test_a_zip_bomb_that_lies_is_refused(tmp_path: Path) -> None:
    """It states a small size in both headers; unpacking stops there."""
    path = write(tmp_path / "x.mar", {"zeros": bytes(20 << 20)}, deflate=True)
    lying = path.read_bytes().replace(struct.pack("<L", 20 << 20), struct.pack("<L", 1000))
    refused(path, lying, "another size for zeros")


def test_what_follows_deflated_data_is_refused(tmp_path: Path) -> None:
    """Java would go on reading headers there."""
    deflated = zlib.compress(b"x" * 50, wbits=-15) + b"hidden"
    sizes = (zlib.crc32(b"x" * 50), len(deflated), 50, 1)
    head = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, *sizes, 0)
    refused(tmp_path / "x.mar", head + b"a" + deflated + bytes(30), "bytes behind")


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that no model needs to pass."""
    monkeypatch.setattr(contents, "MAX_FILES", 3)
    refused(tmp_path / "x.mar", plain(b"a", b"b", b"c"), "more than 3 files")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{}", "without a model"),
        (b'{"model": {"modelName": "a", "modelName": "b", "modelVersion": "1"}}', "readable"),
        (b'{"model": {"modelName": 1, "modelVersion": "1"}}', "without a model's name"),
        (b'{"model": {"modelName": "a\\u001b[2J", "modelVersion": "1"}}', "without a model's name"),
        (b'{"model": [1]}', "without a model"),
        (b'{"model": {"modelName": "a", "modelVersion": "1", "handler": 3}}', "handler is no name"),
        (b'{"model": {"modelName": "a", "modelVersion": "1", "configFile": []}}', "configFile is"),
        (b'{"model": {"modelName": "\\udc00", "modelVersion": "1"}}', "surrogate"),
        ('{"model": {}}'.encode("utf-16"), "utf-8"),
    ],
)
def test_a_manifest_has_one_meaning(tmp_path: Path, text: bytes, fault: str) -> None:
    """Names that stand twice, or are no text, or would move a terminal's cursor."""
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(MANIFEST_FILE, text)
    refused(path, path.read_bytes(), fault)
