"""Key files: a private key, readable by its owner only, and its public key.

Ed25519 (RFC 8032), as PKCS8 and SubjectPublicKeyInfo (RFC 8410) in PEM (RFC 7468). For
OpenSSF Model Signing, which does not support Ed25519, P-256 in the same formats (RFC 5480).

A key's id is the SHA-256 of the raw public key: the 32 bytes of RFC 8032, 5.1.5, or the
uncompressed point of SEC 1, 2.3.3.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from marship import storage, unversioned
from marship.errors import UsageError

PASSPHRASE_VARIABLE = "MARSHIP_KEY_PASSPHRASE"  # noqa: S105  the name, not the phrase
PRIVATE_SUFFIX, PUBLIC_SUFFIX = ".key", ".pem"
SHORT_ID = 16  # hexadecimal digits that people compare

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LARGEST_BYTES = 64 * 1024
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # those that model-signing takes

RawPublic = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
RawPrivate = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key, for verifying."""

    path: Path
    raw: RawPublic

    @property
    def id(self) -> str:
        """SHA-256 of the raw public key, hexadecimal."""
        return hashlib.sha256(_raw_bytes(self.raw)).hexdigest()


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key, for signing, and the passphrase of its file, if any."""

    path: Path
    raw: RawPrivate
    passphrase: str | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """The id of its public key."""
        return hashlib.sha256(_raw_bytes(self.raw.public_key())).hexdigest()


@dataclass(frozen=True, slots=True)
class Pair:
    """The two files of a new key pair."""

    private: Path
    public: Path
    id: str


def passphrase_from_environment() -> str:
    """The passphrase in MARSHIP_KEY_PASSPHRASE.

    Raises:
        UsageError: It is not set.
    """
    if not (found := os.environ.get(PASSPHRASE_VARIABLE)):
        raise UsageError(
            "the private key's passphrase must be known, got none. "
            f"Set it in {PASSPHRASE_VARIABLE}."
        )
    return found


def generate(
    name: str, folder: str | Path, *, openssf: bool = False, passphrase: str | None = None
) -> Pair:
    """Generate a key pair: the private key `<name>.key` and the public key `<name>.pem`.

    Args:
        name: The name of the files, without suffix.
        folder: Their folder; a new one is private. Git ignores the private key.
        openssf: Generate a P-256 key, for signatures of OpenSSF Model Signing.
        passphrase: Encrypts the private key; None relies on the file's mode.

    Raises:
        UsageError: The name is invalid, a file exists, or git would track the key.
        StorageError: The folder cannot be written to.
    """
    folder = Path(folder)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a key's name must be letters, digits, dots, dashes and underscores, got {name!r}."
        )
    private, public = (folder / f"{name}{end}" for end in (PRIVATE_SUFFIX, PUBLIC_SUFFIX))
    for path in (private, public):
        if path.exists():
            raise _exists(path)
    key: RawPrivate = (
        ec.generate_private_key(ec.SECP256R1()) if openssf else ed25519.Ed25519PrivateKey.generate()
    )
    with storage.explained(folder):
        unversioned.make_folder(folder)
        unversioned.ignore(private)
    write_new(private, _private_pem(key, passphrase), 0o600)
    write_new(public, _public_pem(key.public_key()), 0o644)
    return Pair(private, public, PrivateKey(private, key).id)


def read_private(
    path: str | Path, ask: Callable[[], str] = passphrase_from_environment
) -> PrivateKey:
    """Read a private key.

    Args:
        path: A PEM file.
        ask: Returns the passphrase; called if the file is encrypted.

    Raises:
        UsageError: It is not a private key, others can read it, or the passphrase is wrong.
    """
    path = Path(path)
    text = _read(path, private=True)
    passphrase = ask() if _is_encrypted(path, text) else None
    try:
        raw = serialization.load_pem_private_key(text, passphrase.encode() if passphrase else None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path} must open with its passphrase, got another one. Give the right one in "
            f"{PASSPHRASE_VARIABLE}."
        ) from error
    if not isinstance(raw, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise _no_key(path, "private")
    _check_curve(path, raw)
    return PrivateKey(path, raw, passphrase)


def read_public(path: str | Path) -> PublicKey:
    """Read a public key.

    Raises:
        UsageError: It is not a public key.
    """
    path = Path(path)
    text = _read(path, private=False)
    if b"PRIVATE KEY" in text:
        raise UsageError(
            f"{path} must be a public key, got a private one. Keep it where archives are "
            f"signed, and put its {PUBLIC_SUFFIX} file here."
        )
    try:
        raw = serialization.load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public") from error
    if not isinstance(raw, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
        raise _no_key(path, "public")
    _check_curve(path, raw)
    return PublicKey(path, raw)


def _read(path: Path, *, private: bool) -> bytes:
    """A key file's bytes; the mode is checked on the open file, so it cannot be swapped."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if private and mode & _OTHERS:
                raise UsageError(
                    f"{path} must be for its owner only, got mode {stat.S_IMODE(mode):o}. "
                    f"Run: chmod 600 {path}, and make a new key if others may have read it."
                )
            return file.read(_LARGEST_BYTES)
    except OSError as error:
        raise UsageError(f"{path} must be a readable key, got: {error.strerror}.") from error


def _is_encrypted(path: Path, text: bytes) -> bool:
    try:
        serialization.load_pem_private_key(text, None)
    except TypeError:
        return True
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private") from error
    return False


def _check_curve(path: Path, raw: RawPublic | RawPrivate) -> None:
    curve = getattr(raw, "curve", None)
    if curve is not None and not isinstance(curve, _CURVES):
        raise UsageError(f"{path} must be an Ed25519 or a P-256 key, got {curve.name}.")


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file of this mode.

    Raises:
        UsageError: It exists.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise _exists(path) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _private_pem(key: RawPrivate, passphrase: str | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _public_pem(key: RawPublic) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _raw_bytes(key: RawPublic) -> bytes:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.public_bytes_raw()
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} must be a new file, got one that exists. Choose another name.")


def _no_key(path: Path, kind: str) -> UsageError:
    return UsageError(
        f"{path} must hold a {kind} Ed25519 or P-256 key in PEM, got something else. "
        "Make one with: marship keygen NAME"
    )
