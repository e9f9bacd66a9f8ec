"""Clients' evaluation keys on disk, shared by all workers of a server.

    ROOT/lock                     held while something is written
    ROOT/<plan>/<id>/manifest     the digests of the set's pieces
    ROOT/<plan>/<id>/0, 1, ...    the pieces

Plan and id are digests, in hexadecimal. Folders have mode 0700, files 0600, and a file appears
under its name when it is whole. The keys are public for the server, yet nobody else needs them.
A set that is not used for `lifetime_s` is removed, one that stays incomplete for `_UNFINISHED_S`,
too. When `most_bytes` are there, new ones are refused: those that others use stay.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marship.errors import KeysMissingError, KeyStoreFullError, MalformedError
from marship.serving.private.keys import DIGEST_BYTES, PIECE_BYTES, set_id

_MANIFEST = "manifest"
_UNFINISHED_S = 600
_USED_S = 60
"""A set's use is noted on disk once in this time."""
_BLOCK_BYTES = 4096
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class KeyStore:
    """The sets of keys for one plan, in a store for all.

    Attributes:
        root: The store's folder.
        plan: The plan's digest, in hexadecimal.
        most_pieces: Of a set.
        most_bytes: Of all sets of all plans.
        lifetime_s: A set that was not used for so long is removed.
    """

    root: Path
    plan: str
    most_pieces: int
    most_bytes: int
    lifetime_s: float

    def put(self, key_id: bytes, number: int, count: int, payload: bytes | memoryview) -> None:
        """Keep a piece, whose manifest stands before it.

        Raises:
            MalformedError: It is not the piece that the id states.
            KeyStoreFullError: There is no room.
        """
        manifest, piece = self._checked(key_id, number, count, payload)
        folder = self._folder(key_id)
        with self._locked():
            if (folder / str(number)).exists():
                return
            self.sweep()
            self._check_room(len(piece) + len(manifest))
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            _write(folder / _MANIFEST, manifest)
            _write(folder / str(number), piece)

    def have(self, key_id: bytes) -> list[int]:
        """The numbers of the pieces that are there."""
        folder = self._folder(key_id)
        count = self._count(folder)
        return [number for number in range(count) if (folder / str(number)).exists()]

    def read(self, key_id: bytes) -> bytes:
        """The stream of a set.

        Raises:
            KeysMissingError: A piece is missing; the message says which.
        """
        folder = self._folder(key_id)
        count, have = self._count(folder), self.have(key_id)
        if not count or len(have) < count:
            raise _missing([n for n in range(count) if n not in set(have)])
        try:
            stream = b"".join((folder / str(number)).read_bytes() for number in range(count))
        except OSError as error:  # removed meanwhile
            raise _missing([]) from error
        self.use(key_id)
        return stream

    def use(self, key_id: bytes) -> None:
        """Note that a set is in use; it is removed later then."""
        folder = self._folder(key_id)
        try:
            if time.time() - folder.stat().st_mtime > _USED_S:
                os.utime(folder)
        except OSError:
            pass  # removed meanwhile: its keys are loaded

    def remove(self, key_id: bytes) -> None:
        """Remove a set."""
        shutil.rmtree(self._folder(key_id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove sets that are not used any more, or were not completed."""
        now = time.time()
        for folder in self.root.glob("*/*"):
            try:
                idle_s = now - folder.stat().st_mtime
            except OSError:
                continue
            is_over = idle_s > self.lifetime_s or (
                idle_s > _UNFINISHED_S and self._is_unfinished(folder)
            )
            if is_over:
                shutil.rmtree(folder, ignore_errors=True)

    def _checked(
        self, key_id: bytes, number: int, count: int, payload: bytes | memoryview
    ) -> tuple[bytes, memoryview]:
        """The manifest and the piece, which the id and the manifest state."""
        if not 0 <= number < count <= self.most_pieces:
            raise MalformedError(
                f"the keys of this model must come in at most {self.most_pieces} pieces, got "
                f"number {number} of {count}. Use the client file of the model that is asked."
            )
        size = count * DIGEST_BYTES
        manifest, piece = bytes(payload[:size]), memoryview(payload)[size:]
        stated = manifest[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        is_own = set_id(self.plan, manifest) == key_id and len(manifest) == size
        if not (is_own and 0 < len(piece) <= PIECE_BYTES
                and hashlib.sha256(piece).digest() == stated):  # fmt: skip
            raise MalformedError(
                "a piece of keys must be the one that their id states, got another. Upload the "
                "keys under their own id."
            )
        return manifest, piece

    def _check_room(self, more_bytes: int) -> None:
        files = (path for path in self.root.rglob("*") if not path.name.startswith("."))
        used = sum(-(-_size(path) // _BLOCK_BYTES) * _BLOCK_BYTES for path in files)
        if used + more_bytes > self.most_bytes:
            raise KeyStoreFullError(
                f"keys of all clients must fit in {self.most_bytes:,} bytes, got {used:,} and "
                f"{more_bytes:,} more. Try again later, or package the model with a larger "
                "--option key_store_mb=N."
            )

    def _folder(self, key_id: bytes) -> Path:
        return self.root / self.plan / key_id.hex()

    def _count(self, folder: Path) -> int:
        return min(_size(folder / _MANIFEST) // DIGEST_BYTES, self.most_pieces)

    def _is_unfinished(self, folder: Path) -> bool:
        wanted = _size(folder / _MANIFEST) // DIGEST_BYTES
        return not wanted or not all((folder / str(n)).exists() for n in range(wanted))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(path: Path, data: bytes | memoryview) -> None:
    """Write a file of mode 0600, which appears when it is whole."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _missing(numbers: list[int]) -> KeysMissingError:
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
    got = f"none of pieces {shown}" if numbers else "none"
    return KeysMissingError(
        f"the client's evaluation keys must be on the server, got {got}. Upload what is missing."
    )
