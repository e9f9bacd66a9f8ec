"""Clients' evaluation keys on disk, shared by all workers of a server.

    ROOT/lock                     held while something is written
    ROOT/<plan>/<id>/manifest     the digests of the set's pieces
    ROOT/<plan>/<id>/0, 1, ...    the pieces
    ROOT/<plan>/<id>/answered     there once the set has answered a question

Plan and id are digests, in hexadecimal. Folders have mode 0700, files 0600, and a file appears
under its name when it is whole. The keys are public for the server, yet nobody else needs them.

Anybody may send keys, and random bytes of the right lengths cannot be told from them. So nobody is
refused, and what is there is bounded as a segmented LRU cache is (Karedla, Love and Wherry 1994):
sets that have not answered yet share a quarter of the room, the others have the rest, and in each
part those used longest ago give way. Junk displaces junk, or clients who are uploading; to displace
a client that has answered takes three quarters of the room in sets that were asked as well. Who was
displaced uploads again.
"""

import errno
import fcntl
import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from marship.errors import KeysMissingError, KeyStoreFullError, MalformedError
from marship.serving.private.keys import DIGEST_BYTES, PIECE_BYTES, set_id

_MANIFEST, _ANSWERED = "manifest", "answered"
NEW_SHARE = 4
"""Sets that have not answered yet share 1 / NEW_SHARE of the room."""
_NEW_S = 600
"""So long a set may wait for its first question."""
_USED_S = 60
"""A set's use is noted on disk once in this time; so often unused ones are looked for."""
_SWEEPS = 64
"""The store is walked once for each 1 / _SWEEPS of its room that was written."""
_BLOCK_BYTES = 4096
_SHOWN = 5


@dataclass(slots=True)
class KeyStore:
    """The sets of keys for one plan, in a store for all.

    Attributes:
        root: The store's folder.
        plan: The plan's digest, in hexadecimal.
        set_bytes: How long a set can be.
        most_bytes: Of all sets of all plans; each worker may exceed it by 1 / 64.
        lifetime_s: A set that was not used for so long is removed.
        piece_bytes: Of all pieces but the last.
    """

    root: Path
    plan: str
    set_bytes: range
    most_bytes: int
    lifetime_s: float
    piece_bytes: int = PIECE_BYTES
    _unswept: float = field(default=math.inf, init=False)
    _swept_at: float = field(default=0.0, init=False)

    def put(self, key_id: bytes, number: int, count: int, payload: bytes | memoryview) -> None:
        """Keep a piece, whose manifest stands before it.

        The last one, which alone may be short, comes when all others are there: so a set on disk
        has cost whoever sent it a whole piece.

        Raises:
            MalformedError: It is not the piece that the id states, or of another length.
            KeysMissingError: It is the last one, and others are missing.
            KeyStoreFullError: The disk is full.
        """
        manifest, piece = self._checked(key_id, number, count, payload)
        folder = self._folder(key_id)
        with self._locked():
            if (folder / str(number)).exists():
                return
            missing = [n for n in range(count - 1) if not (folder / str(n)).exists()]
            if number == count - 1 and missing:
                raise _missing(missing)
            try:
                folder.parent.mkdir(mode=0o700, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
                _write(folder / _MANIFEST, manifest)
                _write(folder / str(number), piece)
            except OSError as error:
                self.remove(key_id)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise KeyStoreFullError(
                        f"keys of another client must fit on the server's disk, got: "
                        f"{error.strerror}. Try again later."
                    ) from error
                raise
            self._unswept += len(piece) + 2 * _BLOCK_BYTES
            if self._is_due():
                self._sweep()

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
            return b"".join((folder / str(number)).read_bytes() for number in range(count))
        except OSError as error:  # removed meanwhile
            raise _missing([]) from error

    def use(self, key_id: bytes) -> None:
        """Note that a set has answered a question."""
        folder = self._folder(key_id)
        with suppress(OSError):  # removed meanwhile: its keys are loaded
            if not (folder / _ANSWERED).exists():
                (folder / _ANSWERED).touch(0o600)
            elif time.time() - folder.stat().st_mtime > _USED_S:
                os.utime(folder)

    def remove(self, key_id: bytes) -> None:
        """Remove a set."""
        shutil.rmtree(self._folder(key_id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove sets that are not used any more, and those for which there is no room."""
        if self.root.exists():
            with self._locked():
                self._sweep()

    def _is_due(self) -> bool:
        is_much = self._unswept > self.most_bytes / _SWEEPS
        return is_much or time.monotonic() - self._swept_at > _USED_S

    def _sweep(self) -> None:
        self._unswept, self._swept_at = 0, time.monotonic()
        found = [_Set.of(folder) for folder in self.root.glob("*/*")]
        new_bytes = self.most_bytes // NEW_SHARE
        for has_answered, idle_s, most_bytes in (
            (False, _NEW_S, new_bytes),
            (True, self.lifetime_s, self.most_bytes - new_bytes),
        ):
            part = sorted(
                (one for one in found if one.has_answered is has_answered),
                key=lambda one: one.used_at,
                reverse=True,
            )
            self._keep(part, idle_s, most_bytes)

    @staticmethod
    def _keep(sets: list["_Set"], idle_s: float, most_bytes: int) -> None:
        """Keep the first of the sets, up to a size, and remove the others."""
        oldest, used_bytes = time.time() - idle_s, 0
        for one in sets:
            used_bytes += one.size_bytes
            if used_bytes > most_bytes or one.used_at < oldest:
                shutil.rmtree(one.folder, ignore_errors=True)
                with suppress(OSError):  # other sets of its plan are there
                    one.folder.parent.rmdir()

    def _checked(
        self, key_id: bytes, number: int, count: int, payload: bytes | memoryview
    ) -> tuple[bytes, memoryview]:
        """The manifest and the piece, which the id and the manifest state."""
        least, longest = self.set_bytes[0], self.set_bytes[-1]
        fewest, most = (-(-size // self.piece_bytes) for size in (least, longest))
        if not (fewest <= count <= most and 0 <= number < count):
            raise MalformedError(
                f"the keys of this model must come in {fewest} to {most} pieces, got number "
                f"{number} of {count}. Use the client file of the model that is asked."
            )
        size = count * DIGEST_BYTES
        manifest, piece = bytes(payload[:size]), memoryview(payload)[size:]
        stated = manifest[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        is_own = set_id(self.plan, manifest) == key_id and len(manifest) == size
        if not (is_own and hashlib.sha256(piece).digest() == stated):
            raise MalformedError(
                "a piece of keys must be the one that their id states, got another. Upload the "
                "keys under their own id."
            )
        if not self._is_long_enough(len(piece), number, count):
            raise MalformedError(
                f"piece {number} of {count} must have {self.piece_bytes} bytes, or as the last one "
                f"what is left of a set of {least} to {longest}, got {len(piece)}. "
                "Use the client file of the model that is asked."
            )
        return manifest, piece

    def _is_long_enough(self, size: int, number: int, count: int) -> bool:
        if number < count - 1:
            return size == self.piece_bytes
        is_cut = 0 < size <= self.piece_bytes
        return is_cut and (count - 1) * self.piece_bytes + size in self.set_bytes

    def _folder(self, key_id: bytes) -> Path:
        return self.root / self.plan / key_id.hex()

    def _count(self, folder: Path) -> int:
        try:
            return (folder / _MANIFEST).stat().st_size // DIGEST_BYTES
        except OSError:
            return 0

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


@dataclass(frozen=True, slots=True)
class _Set:
    """A set on disk, of any plan.

    Attributes:
        folder: Its folder.
        used_at: When it was used, or added to.
        size_bytes: What it takes.
        has_answered: Whether it has answered a question.
    """

    folder: Path
    used_at: float
    size_bytes: int
    has_answered: bool

    @classmethod
    def of(cls, folder: Path) -> "_Set":
        """As it is now; removed meanwhile, it is empty."""
        used_at, names, size = 0.0, set(), 0
        with suppress(OSError):
            used_at = folder.stat().st_mtime
            with os.scandir(folder) as files:
                for file in files:
                    names.add(file.name)
                    size += -(-file.stat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES
        return cls(folder, used_at, size + _BLOCK_BYTES, names >= {_MANIFEST, _ANSWERED})


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
