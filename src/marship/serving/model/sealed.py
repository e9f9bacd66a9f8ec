"""Sealed files: encrypted at rest, and decrypted in memory only.

A sealed file of an archive has the suffix `.sealed`. Numbers are big endian:

    offset  bytes
         0      8  "marship" and the format's number, 1
         8      4  C, the bytes of each chunk but the last, before encryption
        12      8  N, the bytes of the whole file, before encryption
        20     16  the sealing: random, and the same in all sealed files of an archive
        36      7  P, the prefix of the chunks' nonces, random
        43      8  the operator key's name: HMAC-SHA256(operator key, "marship seal key"), cut
        51     12  the wrap's nonce, random
        63     48  the data key under the operator key: AES-256-GCM, 32 bytes and the tag
       111         the chunks: AES-256-GCM under the data key, each with its tag of 16 bytes

There are max(1, ceil(N / C)) chunks. Nonces are those of STREAM (Hoang, Reyhanitabar, Rogaway,
Vizar 2015, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", section
7): P, the chunk's number in 4 bytes, and a byte that is 1 for the last chunk and 0 for others.
So no chunk can be dropped, repeated or moved. The data key is random and for this file alone.

The associated data of each chunk are bytes 0 to 42 and the binding: the model's name, its
version and the file's path in the archive, in UTF-8, each behind its length in 4 bytes. Those of
the wrap are the same and then the operator key's name. GCM is NIST SP 800-38D. A new operator
key changes bytes 43 to 110 and no others.
"""

import copy
import hmac
import io
import json
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from marship.contract import CHUNK_BYTES
from marship.errors import SealError
from marship.serving.model import dumps, keysource

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SUFFIX = ".sealed"
MANIFEST_FILE = "MAR-INF/MANIFEST.json"
MAGIC = b"marship\x01"
TAG_BYTES = 16
_FORM = struct.Struct(">8sIQ16s7s8s12s48s")
HEADER_BYTES = _FORM.size
_FIXED_BYTES = 43
ADVICE = "Package the model again, or put the archive back as it was."
"""What messages about a damaged or foreign file end with."""

Buffer = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SealHeader:
    """The header before the chunks; its fields are those of the module docstring, in order."""

    chunk_bytes: int
    size_bytes: int
    sealing: bytes
    prefix: bytes
    key_name: bytes
    wrap_nonce: bytes
    wrapped: bytes

    @classmethod
    def parse(cls, data: bytes, path: str) -> "SealHeader":
        """Parse a header; it is not authenticated before `unwrap`.

        Raises:
            SealError: It is not the header of this format.
        """
        if len(data) < HEADER_BYTES or not data.startswith(MAGIC):
            raise SealError(
                f"{path} must be a sealed file of format {MAGIC[-1]}, got another. {ADVICE}"
            )
        return cls(*_FORM.unpack(data[:HEADER_BYTES])[1:])

    def pack(self) -> bytes:
        """The header's bytes."""
        return _FORM.pack(
            MAGIC,
            self.chunk_bytes,
            self.size_bytes,
            self.sealing,
            self.prefix,
            self.key_name,
            self.wrap_nonce,
            self.wrapped,
        )

    @property
    def fixed(self) -> bytes:
        """The part that does not depend on the operator key."""
        return self.pack()[:_FIXED_BYTES]

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The size of each chunk before encryption, and its nonce."""
        count = max(1, -(-self.size_bytes // self.chunk_bytes))
        for index in range(count):
            size = min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)
            yield size, self.prefix + struct.pack(">IB", index, index == count - 1)

    def file_bytes(self) -> int:
        """The size of the sealed file."""
        count = max(1, -(-self.size_bytes // self.chunk_bytes))
        return HEADER_BYTES + self.size_bytes + count * TAG_BYTES


def key_name(key: bytes) -> bytes:
    """A name for an operator key, which does not reveal the key."""
    return hmac.digest(key, b"marship seal key", "sha256")[:8]


def binding(model: str, version: str, path: str) -> bytes:
    """The associated data that bind a sealed file to its model, version and path."""
    texts = [text.encode() for text in (model, version, path)]
    return b"".join(struct.pack(">I", len(text)) + text for text in texts)


def cipher(key: bytes) -> "AESGCM":
    """AES-256-GCM under a key.

    Raises:
        SealError: The library is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise SealError(
            "cryptography must be installed where models are sealed or sealed models are served, "
            "got none. Run: pip install cryptography"
        ) from error
    return AESGCM(key)


class Sealer:
    """Encrypts files that belong together, such as those of one archive.

    Args:
        key: The operator's key.
        model: The model's name, as in the archive's manifest.
        version: The model's version.
    """

    def __init__(self, key: bytes, model: str, version: str) -> None:
        self._key, self._model, self._version = key, model, version
        self._sealing = secrets.token_bytes(16)

    def write(
        self, folder: Path, name: str, plain: BinaryIO, *, chunk_bytes: int = CHUNK_BYTES
    ) -> Path:
        """Encrypt a stream into the file `<name>.sealed`."""
        path = f"{name}{SUFFIX}"
        with (folder / path).open("wb") as file:
            self.seal(path, plain, file, chunk_bytes=chunk_bytes)
        return folder / path

    def seal(
        self, path: str, plain: BinaryIO, file: BinaryIO, *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """Encrypt a stream into an open file, bound to the path that it is opened at."""
        bound = binding(self._model, self._version, path)
        size = plain.seek(0, io.SEEK_END)
        plain.seek(0)
        key = secrets.token_bytes(keysource.KEY_BYTES)
        header = SealHeader(chunk_bytes, size, self._sealing, secrets.token_bytes(7), b"", b"", b"")
        header = wrapped(header, key, self._key, bound)
        aead = cipher(key)
        file.write(header.pack())
        file.writelines(
            aead.encrypt(nonce, plain.read(count), header.fixed + bound)
            for count, nonce in header.chunks()
        )


def wrapped(header: SealHeader, data_key: bytes, key: bytes, bound: bytes) -> SealHeader:
    """The header with the data key encrypted under an operator's key."""
    name, nonce = key_name(key), secrets.token_bytes(12)
    data = cipher(key).encrypt(nonce, data_key, header.fixed + bound + name)
    return replace(header, key_name=name, wrap_nonce=nonce, wrapped=data)


def unwrap(header: SealHeader, key: bytes, bound: bytes, path: str) -> bytes:
    """Decrypt the data key, which authenticates the header.

    Raises:
        SealError: Wrong operator key, corrupted, or of another model, version or path.
    """
    aead = cipher(key)
    from cryptography.exceptions import InvalidTag

    if not hmac.compare_digest(header.key_name, key_name(key)):
        raise SealError(
            f"{path} must be opened with the key {header.key_name.hex()}, got the key "
            f"{key_name(key).hex()}."
        )
    try:
        return aead.decrypt(
            header.wrap_nonce, header.wrapped, header.fixed + bound + header.key_name
        )
    except InvalidTag:
        raise SealError(
            f"{path} must be as it was sealed, for this model, version and place, got another or "
            f"altered one. {ADVICE}"
        ) from None


def decrypt(file: BinaryIO, data_key: bytes, bound: bytes, path: str) -> Buffer:
    """Decrypt a sealed file in memory.

    Args:
        file: The sealed bytes, from the start.
        data_key: The file's key, from `unwrap`.
        bound: The associated data, from `binding`.
        path: Its name in messages.

    Raises:
        SealError: A byte was modified, removed, moved or added.
    """
    file.seek(0)
    header = SealHeader.parse(file.read(HEADER_BYTES), path)
    aead = cipher(data_key)
    from cryptography.exceptions import InvalidTag

    size_bytes = file.seek(0, io.SEEK_END)
    if size_bytes != header.file_bytes():
        raise SealError(
            f"{path} must have its {header.file_bytes()} bytes, got {size_bytes}. {ADVICE}"
        )
    file.seek(HEADER_BYTES)
    plain = np.empty(header.size_bytes, np.uint8)
    window = plain.data
    sealed = memoryview(bytearray(min(header.chunk_bytes, header.size_bytes) + TAG_BYTES))
    bound = header.fixed + bound
    done = 0
    for index, (size, nonce) in enumerate(header.chunks()):
        chunk = sealed[: size + TAG_BYTES]
        try:
            file.readinto(chunk)  # type: ignore[attr-defined]  # typeshed's BinaryIO lacks it
            aead.decrypt_into(nonce, chunk, bound, window[done : done + size])
        except InvalidTag:
            raise SealError(
                f"{path} must be as it was sealed, got another chunk {index}. {ADVICE}"
            ) from None
        done += size
    return plain


@dataclass(slots=True)
class _Keys:
    """What the openers of one archive share.

    Attributes:
        operator: The operator's key, until it is forgotten.
        sealing: The sealing of the files opened before.
        data: The data keys of those, by path.
    """

    operator: bytes | None
    sealing: bytes | None = None
    data: dict[str, bytes] = field(default_factory=dict)


class Opener:
    """Decrypts the sealed files of an extracted archive.

    Args:
        folder: The extracted archive.
        model: The model's name in its manifest.
        version: The model's version.
        key: The operator's key.
    """

    def __init__(self, folder: Path, model: str, version: str, key: bytes) -> None:
        self._folder, self._model, self._version = folder, model, version
        self._keys, self._place = _Keys(key), ""

    def within(self, place: str) -> "Opener":
        """The opener of a folder in the archive: of the same sealing, with the same keys."""
        inner = copy.copy(self)
        inner._place = f"{self._place}{place}/"
        return inner

    def forget_key(self) -> None:
        """Forget the operator's key, but keep the data keys of files opened so far.

        They reveal no more than the files' contents, which are in memory already.
        """
        self._keys.operator = None

    def open(self, name: str) -> Buffer:
        """The decrypted bytes of a file, by its name without `.sealed`.

        Raises:
            SealError: It is missing, not sealed, or cannot be decrypted.
        """
        path, keys = f"{self._place}{name}{SUFFIX}", self._keys
        try:
            with (self._folder / path).open("rb") as file:
                header = SealHeader.parse(file.read(HEADER_BYTES), path)
                self._check_sealing(header.sealing, path)
                bound = binding(self._model, self._version, path)
                if path not in keys.data:
                    if keys.operator is None:
                        raise SealError(f"{path} must be opened before the key is forgotten.")
                    keys.data[path] = unwrap(header, keys.operator, bound, path)
                return decrypt(file, keys.data[path], bound, path)
        except OSError as error:
            raise SealError(
                f"{path} must be in an archive that is sealed, got: {error.strerror}. {ADVICE}"
            ) from error

    def stream(self, name: str) -> BinaryIO:
        """A file as a stream in memory."""
        return io.BytesIO(self.open(name).tobytes())

    def _check_sealing(self, sealing: bytes, path: str) -> None:
        """Reject a file of another build of the same model and version."""
        self._keys.sealing = self._keys.sealing or sealing
        if sealing != self._keys.sealing:
            raise SealError(
                f"{path} must be sealed together with the archive's other files, got one of "
                f"another sealing. {ADVICE}"
            )


def opener(folder: Path) -> Opener | None:
    """The opener of an extracted archive; None if nothing in it is sealed.

    The key is removed from the environment; core dumps are disabled before it is read.

    Raises:
        SealError: There is no key, or the archive does not name its model.
    """
    try:
        if not any(folder.glob(f"*{SUFFIX}")):
            return None
        dumps.forbid()
        try:
            model = json.loads((folder / MANIFEST_FILE).read_bytes())["model"]
            name, version = str(model["modelName"]), str(model["modelVersion"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SealError(f"{MANIFEST_FILE} must name the model, got: {error!r}.") from error
        return Opener(folder, name, version, _key())
    finally:
        keysource.forget()


def _key() -> bytes:
    source = os.environ.get(keysource.SOURCE_VARIABLE)
    if not source:
        raise SealError(
            f"{keysource.SOURCE_VARIABLE} must name the source of the key to this sealed model, "
            "got none. Start the server with: marship serve --seal-key file:PATH"
        )
    return keysource.read(source)
