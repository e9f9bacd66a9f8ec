"""An archive that nobody has vouched for is read without harm: one line tells what is wrong."""

import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from marship import texts
from marship.engines.torchserve.store import check_archive
from marship.errors import PackageError
from marship.trust import archive, contents
from signed import FILES, manifest, write

MIB = 1 << 20
MANIFEST = archive.MANIFEST_FILE
DEEP = b"[" * 100_000
BOMB = b"a0: &a0 [x]\n" + b"".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n".encode() for i in range(1, 10)
)
"""YAML whose aliases stand for 9^9 values; after "billion laughs"."""


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Deflate these files and, unless it is among them, a manifest."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in {"handler.py": b"", MANIFEST: manifest(), **files}.items():
            zipped.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", [MANIFEST, archive.EVIDENCE_FILE, archive.CONFIG_FILE, "contract.json"]
)
@pytest.mark.parametrize("lies", [False, True])
def test_a_text_of_hundreds_of_megabytes_is_not_read(tmp_path: Path, name: str, lies: bool) -> None:
    """Where it is a small share of the archive, too, and where the headers state a small size."""
    size = 64 * MIB
    path = pack(tmp_path / "x.mar", {name: bytes(size), "weights": os.urandom(MIB)})
    if lies:
        path.write_bytes(path.read_bytes().replace(struct.pack("<L", size), struct.pack("<L", 9)))
    tracemalloc.start()
    with pytest.raises(PackageError, match="another size" if lies else "67,108,864"):
        archive.read(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 * MIB


@pytest.mark.parametrize(
    "files",
    [
        {MANIFEST: DEEP},
        {archive.EVIDENCE_FILE: DEEP},
        {archive.CONFIG_FILE: DEEP[:5000]},
        {archive.CONFIG_FILE: BOMB},
        {"contract.json": DEEP},
        {archive.EVIDENCE_FILE: b'{"a":' * 300 + b"1" + b"}" * 300},
        {archive.EVIDENCE_FILE: b"[1]"},
        {archive.CONFIG_FILE: b"- 1"},
        {archive.CONFIG_FILE: b"marship: [1]"},
        {archive.CONFIG_FILE: b"marship: {providers: cuda}"},
        {archive.CONFIG_FILE: b"marship: {providers: [[cpu]]}"},
        {MANIFEST: b'{"model": {}}'},
        {MANIFEST: b'{"model": "x"}'},
    ],
)
def test_a_text_that_nests_or_is_of_another_shape_is_reported(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    """As an error of the archive: none of it ends in a trace, or in minutes of walking."""
    (name,) = files
    with pytest.raises(PackageError, match=f"{name}.* must be a |{name} without a model|{name}: "):
        archive.read(pack(tmp_path / "x.mar", files | {"weights": os.urandom(4096)}))


@pytest.mark.parametrize(
    "read", [contents.read, lambda path: check_archive(path.parent, path.name)]
)
def test_a_deep_manifest_is_reported_when_signing_and_registering(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    """There, too, it is the archive's fault."""
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(MANIFEST, DEEP)
    with pytest.raises(PackageError, match="readable MAR-INF"):
        read(path)


def test_what_nests_a_little_is_read(tmp_path: Path) -> None:
    """Some levels, and an alias, as people write them."""
    settings = b"a: &a {b: [1, {c: 2}]}\nd: *a\n"
    found = archive.read(pack(tmp_path / "x.mar", {archive.CONFIG_FILE: settings}))
    assert found.config == {"a": {"b": [1, {"c": 2}]}, "d": {"b": [1, {"c": 2}]}}
    assert texts.json_value(json.dumps([[1]] * 1000).encode()) == [[1]] * 1000


def test_an_encrypted_file_is_reported(tmp_path: Path) -> None:
    """Reading and registering alike."""
    path = write(tmp_path / "x.mar")
    data = path.read_bytes()
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = data.index(mark) + at
        data = data[:place] + b"\1" + data[place + 1 :]
    path.write_bytes(data)
    with pytest.raises(PackageError, match="encrypted"):
        archive.read(path)
    with pytest.raises(PackageError, match="encrypted"):
        check_archive(tmp_path, "x.mar")


def test_a_file_that_is_exchanged_later_is_noticed(tmp_path: Path) -> None:
    """What is taken out of an archive is what was in it when it was read."""
    found = archive.read(write(tmp_path / "x.mar"))
    assert found.contents("handler.py") == FILES["handler.py"]
    write(tmp_path / "x.mar", {**FILES, "handler.py": b"class Hander: pass\n\n"})
    with pytest.raises(PackageError, match=r"must stay as it is .* another handler\.py"):
        found.contents("handler.py")
