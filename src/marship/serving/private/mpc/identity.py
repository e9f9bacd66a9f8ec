"""A party's private key: what proves its number to the others, and opens what is sealed for it.

`partyN.key` is a file of mode 0600 with three PEM blocks: the private key and the certificate for
TLS, and an X25519 private key. `partyN.card.json` is the public half, a `Card`.
"""

import os
import ssl
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from marship.errors import LoadError, SealError
from marship.serving.private.mpc.program import Card, SharedProgram

KEY_VARIABLE = "MARSHIP_PARTY_KEY"
"""The environment variable with the path of a worker's party's key."""
SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
SEALED_BYTES = 48
"""What sealing adds: the sender's public key and the tag, RFC 9180."""
_BEGIN = "-----BEGIN "


@dataclass(frozen=True, slots=True)
class PartyKey:
    """A party that may prove its number.

    Attributes:
        card: What everybody knows of it.
        path: Its private key's file.
        sealing_key: Opens what is sealed for it.
    """

    card: Card
    path: Path
    sealing_key: X25519PrivateKey

    @property
    def number(self) -> int:
        """The party's number."""
        return self.card.party

    def open(self, box: bytes, info: bytes) -> bytes:
        """What was sealed for this party, under this info.

        Raises:
            SealError: It was sealed for another, under another info, or was modified.
        """
        try:
            return SUITE.decrypt(box, self.sealing_key, info=info)
        except (InvalidTag, ValueError) as error:
            raise SealError(
                f"the box must be sealed for party {self.number} and unmodified, got another."
            ) from error

    def context(self, program: SharedProgram, *, is_server: bool) -> ssl.SSLContext:
        """Mutual TLS 1.3 with the three parties of a model, and nobody else."""
        side = ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.path)
        context.load_verify_locations(cadata="\n".join(c.certificate for c in program.cards))
        context.verify_mode = ssl.CERT_REQUIRED
        if is_server:
            context.num_tickets = 0  # nobody resumes, and the dialling side may never read them
        return context


def seal(card: Card, plain: bytes, info: bytes) -> bytes:
    """Seal bytes for one party: HPKE, RFC 9180, base mode."""
    return SUITE.encrypt(plain, _public(card.sealing_key), info=info)


@cache
def _public(text: str) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(bytes.fromhex(text))


def load(path: Path, program: SharedProgram) -> PartyKey:
    """Read a party's private key, and find its card among a program's.

    Raises:
        LoadError: The file is missing, others can read it, or it is no party's of this model.
    """
    text = _read(path)
    blocks = [_BEGIN + block for block in text.split(_BEGIN)[1:]]
    certificate = next((block for block in blocks if block.startswith(f"{_BEGIN}CERT")), "")
    card = next((c for c in program.cards if c.certificate.strip() == certificate.strip()), None)
    if card is None:
        raise LoadError(
            f"{path} must be the key of a party for which {program.model} {program.version} was "
            "packaged, got another. Package the model with that party's card, or take its key."
        )
    try:
        key = serialization.load_pem_private_key(blocks[-1].encode(), None)
    except ValueError as error:
        raise _no_key(path) from error
    if not isinstance(key, X25519PrivateKey):
        raise _no_key(path)
    return PartyKey(card, path, key)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(1 << 16)
    except OSError as error:
        raise LoadError(
            f"{path} must be a party's key, got: {error.strerror}. Name the file in {KEY_VARIABLE}."
        ) from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise LoadError(
            f"{path} must be readable by its owner alone, got mode {mode:04o}. Run: chmod 600 "
            f"{path}"
        )
    return text.decode(errors="replace")


def _no_key(path: Path) -> LoadError:
    return LoadError(
        f"{path} must be a party's key with three parts, got something else. Make one with: "
        "marship party-keys NUMBER"
    )
