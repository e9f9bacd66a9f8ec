"""Signs an archive, with a detached signature that leaves the archive unchanged.

Ed25519 (RFC 8032) over a statement of all digests, in a DSSE envelope; with a P-256 key, a
signature of OpenSSF Model Signing.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from marship.errors import UsageError
from marship.storage import replacing
from marship.trust import openssf
from marship.trust.contents import ArchiveContents, read
from marship.trust.envelope import Envelope, encoded
from marship.trust.keys import PrivateKey
from marship.trust.statement import Statement

SUFFIX = ".sig"


@dataclass(frozen=True, slots=True)
class Signed:
    """A new signature."""

    path: Path
    contents: ArchiveContents
    key_id: str


def beside(archive: Path) -> Path:
    """The path of an archive's signature."""
    return archive.with_name(archive.name + SUFFIX)


def sign(archive: str | Path, key: PrivateKey) -> Signed:
    """Sign an archive; an older signature of it is replaced.

    Args:
        archive: A `.mar` file.
        key: Ed25519, or P-256 for a signature of OpenSSF Model Signing.

    Raises:
        UsageError: The archive does not exist, or model-signing is not installed.
        PackageError: It is corrupted, or ambiguous to zip readers.
    """
    archive = Path(archive)
    if archive.suffix != ".mar":
        raise UsageError(f"what is signed must be a .mar file, got {archive}.")
    contents = read(archive)
    with replacing(beside(archive)) as draft:
        if isinstance(key.raw, ed25519.Ed25519PrivateKey):
            payload = Statement(archive.name, contents, key.id).to_bytes()
            signature = key.raw.sign(encoded(payload))
            draft.write_bytes(Envelope(payload, key.id, signature).to_bytes())
        else:
            openssf.sign(archive, draft, key)
    return Signed(beside(archive), contents, key.id)
