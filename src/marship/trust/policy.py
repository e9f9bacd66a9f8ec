"""The trust folder: public keys pinned by the operator, and verifying archives with them."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from marship.errors import SignatureError, UsageError
from marship.trust import envelope, openssf, ownership
from marship.trust.contents import ArchiveContents, File, read
from marship.trust.keys import PUBLIC_SUFFIX, SHORT_ID, PublicKey, read_public
from marship.trust.signature import beside
from marship.trust.statement import Statement


@dataclass(frozen=True, slots=True)
class Verified:
    """An archive with a valid signature by a trusted key."""

    contents: ArchiveContents
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys of a trust folder."""

    folder: Path
    keys: tuple[PublicKey, ...]

    @classmethod
    def load(cls, folder: str | Path) -> "Trust":
        """Read the folder's `*.pem` files.

        Raises:
            UsageError: The folder does not exist, holds no key or other files than public keys,
                or others can change it.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UsageError(f"the trust folder must be a folder of public keys, got {folder}.")
        paths = sorted(folder.glob(f"*{PUBLIC_SUFFIX}"))
        if not paths:
            raise UsageError(
                f"the trust folder {folder} must hold public keys, got no {PUBLIC_SUFFIX} file. "
                "Copy there what marship keygen wrote."
            )
        ownership.check("the trust folder", folder, *paths)
        return cls(folder, tuple(read_public(path) for path in paths))

    def verify(self, archive: str | Path) -> Verified:
        """Verify an archive with its detached signature.

        Nothing in the archive is trusted, and the signature's statement is only trusted after
        it was verified by a key of the folder.

        Raises:
            UsageError: The archive does not exist.
            SignatureError: It is unsigned, modified, renamed, or signed by another key.
            PackageError: It is ambiguous to zip readers.
        """
        archive = Path(archive)
        if not archive.is_file():
            raise UsageError(f"{archive} must be a .mar file, got no such file.")
        path = beside(archive)
        value = envelope.load(path)
        if openssf.is_bundle(value):
            key = openssf.verify(archive, path, value, self._curves())
            return Verified(read(archive), key)
        statement, key = self._stated(archive, envelope.parse(value, path))
        contents = read(archive)
        _compare(archive.name, statement, contents)
        return Verified(contents, key)

    def stated_bytes(self, archive: Path) -> int | None:
        """The archive's size by its signature; the archive need not exist yet.

        Returns:
            None for a signature of OpenSSF Model Signing, which states no size. It is only
            checked to name a key of the folder.

        Raises:
            SignatureError: There is no signature, or it is not by a key of the folder.
        """
        path = beside(archive)
        value = envelope.load(path)
        if openssf.is_bundle(value):
            openssf.signer(archive, path, value, self._curves())
            return None
        statement, _ = self._stated(archive, envelope.parse(value, path))
        return statement.contents.size_bytes

    def stated_file(self, archive: Path, name: str) -> File:
        """Size and digest of one file of an archive by its signature; needs no archive.

        Raises:
            SignatureError: There is no signature by a key of the folder, or it states no such file.
        """
        path = beside(archive)
        value = envelope.load(path)
        if openssf.is_bundle(value):
            raise SignatureError(
                f"{path} must state the digests of files, got a signature of OpenSSF Model "
                "Signing, which has that of the archive alone. Sign with an Ed25519 key."
            )
        statement, _ = self._stated(archive, envelope.parse(value, path))
        if (found := statement.contents.files.get(name)) is None:
            raise SignatureError(
                f"{path} must be of an archive with {name}, got one without it. Get the signature "
                "of the private archive."
            )
        return found

    def _curves(self) -> list[PublicKey]:
        return [key for key in self.keys if isinstance(key.raw, ec.EllipticCurvePublicKey)]

    def _stated(self, archive: Path, signed: envelope.Envelope) -> tuple[Statement, PublicKey]:
        """The statement, verified by a key of the folder; the envelope's id is only a hint."""
        for key in self.keys:
            if key.id != signed.key_id or not isinstance(key.raw, ed25519.Ed25519PublicKey):
                continue
            try:
                key.raw.verify(signed.signature, envelope.encoded(signed.payload))
            except InvalidSignature as error:
                raise SignatureError(
                    f"the signature of {archive.name} must be one of key {key.id[:SHORT_ID]}, "
                    "got one that does not verify. Get it again, or sign again."
                ) from error
            statement = Statement.from_bytes(signed.payload)
            if statement.key_id == key.id:
                return statement, key
        raise SignatureError(
            f"{archive.name} must be signed with a key in {self.folder}, got one of key "
            f"{signed.key_id[:SHORT_ID]!r}. Put its public key there if you trust it."
        )


def _compare(name: str, statement: Statement, found: ArchiveContents) -> None:
    signed = statement.contents
    if name != statement.archive:
        if found.sha256 == signed.sha256:
            raise SignatureError(
                f"{name} must have the name that it was signed under, {statement.archive}. "
                "Rename it back, or sign it anew."
            )
        raise SignatureError(
            f"{name} must have a signature of its own, got that of {statement.archive}, "
            f"model {signed.model} {signed.version}. Sign it, or get the right signature."
        )
    if differences := statement.differences(found):
        raise SignatureError(
            f"{name} must be as it was signed, got {'; '.join(differences)}. "
            "Get the original again, or sign it anew after you looked at what changed."
        )
