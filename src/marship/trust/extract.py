"""Extracts files of an archive, verified against the digests of an earlier strict reading.

An archive may be modified between two readings. So extracted data is verified with the digests
of `contents.read`.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from marship import texts
from marship.errors import PackageError
from marship.trust.contents import ArchiveContents

_CHUNK = 1 << 20


def files(
    path: Path, contents: ArchiveContents, names: Collection[str], most_bytes: int
) -> dict[str, bytes]:
    """Read some files of an archive, by name.

    Args:
        path: The archive.
        contents: The archive's contents as read before.
        names: The names of the files, which must exist.
        most_bytes: Maximum total size.

    Raises:
        PackageError: They are larger, or have changed.
    """
    size_bytes = sum(contents.files[name].size_bytes for name in names)
    if size_bytes > most_bytes:
        what = next(iter(names)) if len(names) == 1 else f"its {len(names):,} files to be read"
        raise PackageError(
            f"{path} must have at most {most_bytes:,} bytes in {what}, got {size_bytes:,}. "
            "Package the model again."
        )
    with _opened(path, contents) as opened:
        return {name: opened.read(name) for name in names}


def file(path: Path, contents: ArchiveContents, name: str) -> bytes:
    """Read one file of an archive, of any size.

    Raises:
        PackageError: It has changed.
    """
    return files(path, contents, [name], contents.files[name].size_bytes)[name]


def unpack(path: Path, contents: ArchiveContents, folder: Path) -> None:
    """Write all files of an archive into a folder.

    Raises:
        PackageError: The archive has changed.
    """
    with _opened(path, contents) as opened:
        for name in contents.files:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as sink:
                opened.copy(name, sink)


def head(path: Path, contents: ArchiveContents, name: str, size_bytes: int) -> bytes:
    """The first bytes of a file of an archive, not verified.

    Raises:
        PackageError: The archive has changed.
    """
    with _opened(path, contents) as opened, opened.zipped.open(name) as source:
        return source.read(size_bytes)


def rewrite(
    path: Path,
    contents: ArchiveContents,
    target: Path,
    *,
    files: Mapping[str, bytes] | None = None,
    heads: Mapping[str, bytes] | None = None,
) -> None:
    """Copy an archive with some files replaced; names, order and times are kept.

    Args:
        path: The archive.
        contents: The archive's contents as read before.
        target: The copy.
        files: New contents of files, by name.
        heads: New first bytes of files, by name.

    Raises:
        PackageError: It has changed.
    """
    files, heads = files or {}, heads or {}
    with _opened(path, contents) as opened, zipfile.ZipFile(target, "w") as sink:
        for info in opened.zipped.infolist():
            name = info.filename
            fresh = _entry(info)
            if name in files:
                sink.writestr(fresh, files[name])
            elif name.endswith("/"):
                sink.writestr(fresh, b"")
            else:
                with sink.open(fresh, "w") as writer:
                    opened.copy(name, writer, heads.get(name, b""))


def _entry(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The entry without Zip64 fields, which zipfile would write a second time."""
    fresh = zipfile.ZipInfo(info.filename, info.date_time)
    fresh.compress_type, fresh.external_attr = info.compress_type, info.external_attr
    fresh.create_system, fresh.file_size = info.create_system, info.file_size
    return fresh


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open archive whose files are verified when read."""

    zipped: zipfile.ZipFile
    path: Path
    contents: ArchiveContents

    def read(self, name: str) -> bytes:
        data = BytesIO()
        self.copy(name, data)
        return data.getvalue()

    def copy(self, name: str, sink: IO[bytes], first: bytes = b"") -> None:
        """Copy one file with its first bytes replaced, and no more bytes than its size."""
        known, digest = self.contents.files[name], hashlib.sha256()
        left, skipped = known.size_bytes, len(first)
        sink.write(first)
        with self.zipped.open(name) as source:
            while left and (data := source.read(min(left, _CHUNK))):
                digest.update(data)
                left -= len(data)
                sink.write(data[skipped:])
                skipped = max(0, skipped - len(data))
        if left or digest.hexdigest() != known.sha256:
            raise _changed(self.path, f"another {name}")


@contextmanager
def _opened(path: Path, contents: ArchiveContents) -> Iterator[_Opened]:
    try:
        with texts.open_file(path) as file, zipfile.ZipFile(file) as zipped:
            if os.fstat(file.fileno()).st_size != contents.size_bytes:
                raise _changed(path, "another size")
            if {n for n in zipped.namelist() if not n.endswith("/")} != set(contents.files):
                raise _changed(path, "other files")
            yield _Opened(zipped, path, contents)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
        raise _changed(path, "a damaged one") from error


def _changed(path: Path, found: str) -> PackageError:
    return PackageError(f"{path} must stay as it is while it is used, got {found}. Try again.")
