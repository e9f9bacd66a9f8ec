"""Archives by digest: where they lie in a cluster, and how a node gets one."""

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from marship.engines import urls
from marship.errors import PackageError, StorageError, UsageError

Kept = Callable[[str], Iterator[bytes]]
"""Reads an archive by its digest."""
CHUNK_BYTES = 8 << 20
"""Larger ones would fill a small object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSource:
    """An archive as every node can get it, and what it must be.

    Attributes:
        file: The archive's file name, which is signed.
        digest: Its SHA-256.
        url: A folder or URL that all nodes can read, for fsspec; None is the cluster's keeper.
        signature: The signature's bytes; None where archives need none.
        keys: The trusted public keys by file name; empty where archives need no signature.
    """

    file: str
    digest: str
    url: str | None
    signature: bytes | None = None
    keys: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where the archive lies under `url`."""
        return f"{str(self.url).rstrip('/')}/{self.digest}.mar"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, some at a time."""
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield data


def upload(path: Path, source: ArchiveSource) -> None:
    """Put an archive where all nodes can read it, unless it is there.

    Raises:
        UsageError: There is no system for its URL here.
        StorageError: It cannot be written there.
    """
    try:
        system, place = urls.opened(source.address, "--archives")
        if system.exists(place) and system.size(place) == path.stat().st_size:
            return
        system.makedirs(place.rpartition("/")[0], exist_ok=True)
        draft = f"{place}.{secrets.token_hex(8)}.part"  # others may be sharing the same one
        system.put_file(str(path), draft)
        system.mv(draft, place)  # nobody reads half of it
    except UsageError:
        raise
    except Exception as error:  # each system has errors of its own
        raise StorageError(
            f"{source.url} must take archives for all nodes, got: {error!r}. Name a folder or URL "
            "that can be written here with --archives."
        ) from error


def download(source: ArchiveSource, sink: IO[bytes], kept: Kept, node: str) -> None:
    """Write an archive's bytes, and check them.

    Args:
        source: The archive.
        sink: Where to.
        kept: Reads what lies at no URL, by digest.
        node: This node's address, for errors.

    Raises:
        StorageError: It cannot be read.
        PackageError: It is another one.
    """
    seen = hashlib.sha256()
    try:
        for data in _read(source, kept):
            seen.update(data)
            sink.write(data)
    except Exception as error:  # each system has errors of its own
        where = source.address if source.url else "the cluster's keeper"
        raise StorageError(
            f"node {node} must read {source.file} from {where}, got: {error!r:.200}."
        ) from error
    if seen.hexdigest() != source.digest:
        raise PackageError(
            f"node {node} must get {source.file} as it was registered, SHA-256 "
            f"{source.digest[:16]}, got {seen.hexdigest()[:16]}. Register it again."
        )


def _read(source: ArchiveSource, kept: Kept) -> Iterator[bytes]:
    if source.url is None:
        yield from kept(source.digest)
        return
    system, place = urls.opened(source.address, "--archives")
    with system.open(place, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield data
