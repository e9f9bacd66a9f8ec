"""Strict reading of an archive, so that all zip readers agree on its contents.

TorchServe unpacks with Java's ZipInputStream, which reads local headers sequentially and ignores
the central directory; Python, unzip and most others read the central directory. An archive may
show them different files. So only a plain subset of the format (PKWARE APPNOTE 6.3.10) is accepted:
entries without gaps from the first byte on, stored or deflated (RFC 1951), with sizes in their
headers, the same in the central directory in the same order, no extra fields except those of Zip64
and those of times and owners, and nothing before, between or after them. That is what
torch-model-archiver, `marship package` and Info-ZIP's `zip` write.

The file is read once from start to end, and all digests are of that reading.
"""

import hashlib
import os
import re
import stat
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from marship import texts
from marship.contract import LIBRARIES_FOLDER
from marship.errors import PackageError, UsageError

MANIFEST_FILE = "MAR-INF/MANIFEST.json"
MAX_FILES = 10_000
MAX_UNPACKED_BYTES = 64 << 30
MAX_RATIO = 100  # of unpacked to packed size, of the whole archive
MAX_NAME_BYTES = 1024
MAX_VERSION = 63  # of the format that a reader must support, as in Python's zipfile
MAX_PART_BYTES = 255  # of a path component

_CHUNK = 1 << 20
_NATIVE = re.compile(rf"^{LIBRARIES_FOLDER}/|\.so[.\d]*$")
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"  # APPNOTE 4.3.7, .12, .16
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"  # 4.3.14, 4.3.15
_LOCAL_REST = struct.Struct("<5H3L2H")
_CENTRAL_REST = struct.Struct("<6H3L5H2L")
_END_REST = struct.Struct("<4H2LH")
_END64_REST = struct.Struct("<Q2H2L4Q")
_LOCATOR64_REST = struct.Struct("<LQL")
_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11  # 4.4.4
_ALLOWED_FLAGS = 0b110 | _UTF8  # bits 1 and 2 are deflate's compression level
_STORED, _DEFLATED = 0, 8
_FULL, _FULL_COUNT = 0xFFFFFFFF, 0xFFFF  # "see the Zip64 field", 4.4.8, 4.4.9, 4.4.16, 4.4.22
_ZIP64_FIELD = 1  # 4.5.3
_FIELD = struct.Struct("<2H")
_TIMES_AND_OWNERS = {0x5455, 0x7875}  # Info-ZIP's "UT" and "ux": no reader takes data from them


@dataclass(frozen=True, slots=True)
class File:
    """One file of an archive."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ArchiveContents:
    """The contents of an archive, on which all zip readers agree.

    Attributes:
        size_bytes: The archive's size.
        sha256: The archive's digest, hexadecimal.
        files: Its files, by name.
        model: The model's name.
        version: The model's version.
        manifest: The parsed MANIFEST.json; not part of a signed statement.
    """

    size_bytes: int
    sha256: str
    files: Mapping[str, File]
    model: str
    version: str
    manifest: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def native_code(self) -> tuple[str, ...]:
        """Names of shared libraries: code that is run with the model, and that nobody can read."""
        return tuple(name for name in sorted(self.files) if _NATIVE.search(name))


@dataclass(frozen=True, slots=True)
class _Header:
    """The fields that must be equal in a local header and in the central directory."""

    offset: int
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    name: bytes


def read(path: Path) -> ArchiveContents:
    """Read an archive from start to end.

    Raises:
        UsageError: The file does not exist or cannot be read.
        PackageError: It is corrupted, ambiguous to zip readers, or unpacks to more than the
            limits allow.
    """
    try:
        with texts.open_file(path) as file:
            return _Reading(path, file).contents()
    except FileNotFoundError as error:
        raise UsageError(f"{path} must be a .mar file, got no such file.") from error
    except OSError as error:
        raise UsageError(f"{path} must be a .mar file, got: {error.strerror}.") from error


@dataclass(slots=True)
class _Reading:
    path: Path
    file: BinaryIO
    position: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    files: dict[str, File] = field(default_factory=dict)
    headers: list[_Header] = field(default_factory=list)
    unpacked_bytes: int = 0
    manifest: bytes = b""

    def contents(self) -> ArchiveContents:
        size_bytes = os.fstat(self.file.fileno()).st_size
        names = _Names(self._fault)
        while (signature := self._take(4)) == _LOCAL:
            header = self._local()
            names.add(header)
            self._check_limits(header, size_bytes)
            self._unpack(header)
        if not self.headers:
            raise self._fault("none: it does not begin like a zip file")
        start = self.position - 4
        for header in self.headers:
            if signature != _CENTRAL or self._central() != header:
                raise self._fault(f"two headers that disagree on {_shown(header.name)}")
            signature = self._take(4)
        self._end(signature, start)
        if self.file.read(1):
            raise self._fault("bytes behind its end")
        manifest = self._manifest()
        model, version = manifest["model"]["modelName"], manifest["model"]["modelVersion"]
        return ArchiveContents(
            self.position, self.digest.hexdigest(), self.files, model, version, manifest
        )

    def _take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise self._fault("none: it is no zip file, or cut off")
        self.digest.update(data)
        self.position += count
        return data

    def _chunks(self, count: int) -> Iterator[bytes]:
        while count:
            data = self._take(min(count, _CHUNK))
            count -= len(data)
            yield data

    def _local(self) -> _Header:
        offset = self.position - 4
        _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL_REST.unpack(
            self._take(_LOCAL_REST.size)
        )
        name = self._name(name_length)
        if (packed == _FULL) != (size == _FULL):
            raise self._fault(f"two sizes for {_shown(name)}")
        size, packed = self._wide(name, extra_length, [size, packed])
        if flags & _ENCRYPTED:
            raise self._fault(f"an encrypted {_shown(name)}")
        if flags & ~_ALLOWED_FLAGS or method not in (_STORED, _DEFLATED):
            raise self._fault(
                f"{_shown(name)} in a form that readers take differently "
                f"(flags {flags:#06x}, method {method})"
            )
        header = _Header(offset, flags, method, crc, packed, size, name)
        self.headers.append(header)
        return header

    def _central(self) -> _Header:
        fields = _CENTRAL_REST.unpack(self._take(_CENTRAL_REST.size))
        version, flags, method, crc, packed, size = *fields[1:4], *fields[6:9]
        name_length, extra_length, comment_length, disk, _, attributes, offset = fields[9:]
        name = self._name(name_length)
        size, packed, offset = self._wide(name, extra_length, [size, packed, offset])
        kind = stat.S_IFMT(attributes >> 16)  # the upper half is Unix' st_mode, 4.4.15
        if kind not in (0, stat.S_IFDIR if name.endswith(b"/") else stat.S_IFREG):
            raise self._fault(f"{_shown(name)} as a link or a device")
        if version > MAX_VERSION:
            raise self._fault(f"{_shown(name)}, for which a reader must know version {version}")
        if comment_length or disk:
            raise self._fault(f"a comment, or another disk, for {_shown(name)}")
        return _Header(offset, flags, method, crc, packed, size, name)

    def _name(self, length: int) -> bytes:
        if length > MAX_NAME_BYTES:
            raise self._fault(f"a name of {length} bytes, where {MAX_NAME_BYTES} are allowed")
        return self._take(length)

    def _wide(self, name: bytes, extra_length: int, values: list[int]) -> list[int]:
        """Values that may be in a Zip64 field; all other extra fields must have no effect."""
        fields = self._fields(name, self._take(extra_length))
        wide = [index for index, value in enumerate(values) if value == _FULL]
        is_odd = (_ZIP64_FIELD in fields) != bool(wide)
        packed = fields.pop(_ZIP64_FIELD, b"")
        if is_odd or len(packed) != 8 * len(wide) or not fields.keys() <= _TIMES_AND_OWNERS:
            raise self._fault(f"extra fields for {_shown(name)}")
        for index, value in zip(wide, struct.unpack(f"<{len(wide)}Q", packed), strict=True):
            values[index] = value
        return values

    def _fields(self, name: bytes, extra: bytes) -> dict[int, bytes]:
        """Extra fields by their id, 4.5.1."""
        fields: dict[int, bytes] = {}
        while extra:
            key, length = _FIELD.unpack(extra[:4]) if len(extra) >= _FIELD.size else (0, len(extra))
            if key in fields or length > len(extra) - _FIELD.size:
                raise self._fault(f"extra fields for {_shown(name)}")
            fields[key] = extra[_FIELD.size : _FIELD.size + length]
            extra = extra[_FIELD.size + length :]
        return fields

    def _check_limits(self, header: _Header, archive_bytes: int) -> None:
        self.unpacked_bytes += header.size_bytes
        allowed = min(MAX_UNPACKED_BYTES, MAX_RATIO * archive_bytes)
        if self.unpacked_bytes > allowed:
            raise self._fault(
                f"more than {allowed:,} bytes when unpacked, which is {MAX_RATIO} times its size "
                "or more than a model needs"
            )
        if len(self.headers) > MAX_FILES:
            raise self._fault(f"more than {MAX_FILES:,} files")

    def _unpack(self, header: _Header) -> None:
        """Hash one file in chunks, unpacking no more than the size in its header."""
        name = header.name.decode()
        is_manifest = name == MANIFEST_FILE
        if is_manifest and header.size_bytes > texts.MOST_BYTES:
            raise self._fault(f"a {name} of {header.size_bytes:,} bytes")
        digest, crc, size = hashlib.sha256(), 0, 0
        for data in self._plain(header):
            digest.update(data)
            crc = zlib.crc32(data, crc)
            size += len(data)
            if size > header.size_bytes:
                break
            if is_manifest:
                self.manifest += data
        if size != header.size_bytes:
            raise self._fault(f"another size for {_shown(header.name)} than it states")
        if crc != header.crc:
            raise self._fault(f"a checksum mismatch in {_shown(header.name)}")
        if not name.endswith("/"):
            self.files[name] = File(size, digest.hexdigest())

    def _plain(self, header: _Header) -> Iterator[bytes]:
        if header.method == _STORED:
            if header.packed_bytes != header.size_bytes:
                raise self._fault(f"two sizes for {_shown(header.name)}")
            yield from self._chunks(header.packed_bytes)
            return
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for data in self._chunks(header.packed_bytes):
                if inflater.eof:
                    raise self._fault(f"bytes behind the end of {_shown(header.name)}")
                rest = data
                while rest and not inflater.eof:
                    yield inflater.decompress(rest, _CHUNK)
                    rest = inflater.unconsumed_tail
            while not inflater.eof and (data := inflater.decompress(b"", _CHUNK)):
                yield data
        except zlib.error as error:
            raise self._fault(f"a damaged {_shown(header.name)}: {error}") from error
        if not inflater.eof or inflater.unused_data:
            raise self._fault(f"bytes behind, or missing at, the end of {_shown(header.name)}")

    def _end(self, signature: bytes, start: int) -> None:
        """Check the end of central directory record, and that of Zip64 if there is one."""
        count, size = len(self.headers), self.position - 4 - start
        is_wide = signature == _END64
        if is_wide:
            own = self.position - 4
            length, _, _, *disks_and_place = _END64_REST.unpack(self._take(_END64_REST.size))
            if (length, disks_and_place) != (44, [0, 0, count, count, size, start]):
                raise self._fault("a Zip64 end that disagrees with its entries")
            located = self._take(4), _LOCATOR64_REST.unpack(self._take(_LOCATOR64_REST.size))
            if located != (_LOCATOR64, (0, own, 1)):
                raise self._fault("a Zip64 end that disagrees with its entries")
            signature = self._take(4)
        if signature != _END:
            raise self._fault("bytes between its entries")
        disk, first, here, total, size_said, start_said, comment = _END_REST.unpack(
            self._take(_END_REST.size)
        )
        said = (
            (here, count, _FULL_COUNT),
            (total, count, _FULL_COUNT),
            (size_said, size, _FULL),
            (start_said, start, _FULL),
        )
        if disk or first or any(a != b and not (is_wide and a == full) for a, b, full in said):
            raise self._fault("an end that disagrees with its entries")
        if comment:
            raise self._fault("a comment at its end")

    def _manifest(self) -> dict[str, Any]:
        if MANIFEST_FILE not in self.files:
            raise self._fault(f"none of torch-model-archiver: it has no {MANIFEST_FILE}")
        try:
            manifest: Any = texts.json_value(self.manifest)
        except texts.TextError as error:
            raise self._fault(f"none with a readable {MANIFEST_FILE}: {error}") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("model"), dict):
            raise self._fault(f"a {MANIFEST_FILE} without a model")
        model = manifest["model"]
        for name in ("modelName", "modelVersion"):
            if not _is_name(model.get(name)):
                raise self._fault(f"a {MANIFEST_FILE} without a model's name and version")
        for name in ("handler", "configFile"):
            if not _is_name(model.get(name, "none")):
                raise self._fault(f"a {MANIFEST_FILE} whose {name} is no name")
        return manifest

    def _fault(self, found: str) -> PackageError:
        return PackageError(
            f"{self.path} must be a plain archive without ambiguities, got {found}. "
            "Do not use it; package the model again."
        )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


class _Names:
    """The names of an archive: distinct paths below the folder it is unpacked to."""

    def __init__(self, fault: Callable[[str], PackageError]) -> None:
        self._fault = fault
        self._taken: set[str] = set()
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, header: _Header) -> None:
        """Check the next name.

        Raises:
            PackageError: It is ambiguous, a path traversal, or a duplicate.
        """
        name = self._decoded(header)
        is_folder = name.endswith("/")
        parts = name.removesuffix("/").split("/")
        if "\\" in name or not name.isprintable() or {"", ".", ".."} & set(parts):
            raise self._fault(f"an entry with path traversal, {_shown(header.name)}")
        if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
            raise self._fault(f"a name that is too long for a disk, {_shown(header.name)}")
        if is_folder and header.size_bytes:
            raise self._fault(f"a folder with contents, {_shown(header.name)}")
        # on some file systems a and A, or two normalizations of an umlaut, are one file
        key = unicodedata.normalize("NFC", "/".join(parts).casefold())
        chunks = key.split("/")
        parents = {"/".join(chunks[:end]) for end in range(1, len(chunks))}
        if key in self._taken or parents & self._files or (key in self._folders and not is_folder):
            raise self._fault(f"{_shown(header.name)} twice")
        self._taken.add(key)
        self._folders |= parents
        if not is_folder:
            self._files.add(key)

    def _decoded(self, header: _Header) -> str:
        """The name; Python decodes cp437 unless a flag says UTF-8; Java always UTF-8."""
        try:
            return header.name.decode("utf-8" if header.flags & _UTF8 else "ascii")
        except UnicodeDecodeError as error:
            raise self._fault(f"a name that is no UTF-8, {_shown(header.name)}") from error


def _shown(name: bytes) -> str:
    text = name.decode(errors="replace")
    return text if text.isprintable() and text else repr(text)
