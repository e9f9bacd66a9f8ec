"""A party's key and card: made by its operator, who gives away the card alone."""

import datetime as dt
import json
from dataclasses import asdict
from pathlib import Path

from marship import storage, texts, unversioned
from marship.errors import UsageError
from marship.serving.private.mpc.program import Card
from marship.serving.private.mpc.shares import PARTIES
from marship.trust import certificates, keys

CARD_SUFFIX, KEY_SUFFIX = ".card.json", ".key"
FORMAT = 1
_SEALING_KEY_BYTES = 32
LASTS = dt.timedelta(days=3650)
"""A card is pinned in archives: a new one means packaging again, and no authority renews it."""


def generate(number: int, address: str, folder: str | Path) -> tuple[Path, Path]:
    """Make a party's key and card.

    Args:
        number: 0 for the worker, 1 or 2.
        address: host:port at which party 1 or 2 listens; empty for party 0.
        folder: Takes partyN.key, of mode 0600, and partyN.card.json.

    Returns:
        The paths of both.

    Raises:
        UsageError: A value is invalid, or a file exists.
        StorageError: The folder cannot be written to.
    """
    folder = Path(folder)
    _check(number, address)
    private, public = (folder / f"party{number}{end}" for end in (KEY_SUFFIX, CARD_SUFFIX))
    for path in (private, public):
        if path.exists():
            raise UsageError(f"{path} must be a new file, got one that exists. Choose a folder.")
    secret, card = _made(number, address)
    with storage.explained(folder):
        unversioned.make_folder(folder)
        unversioned.ignore(private)
    keys.write_new(private, secret, 0o600)
    keys.write_new(public, json.dumps({"format": FORMAT, **asdict(card)}).encode() + b"\n", 0o644)
    return private, public


def read(path: str | Path) -> Card:
    """Read a card.

    Raises:
        UsageError: It is none.
    """
    path = Path(path)
    try:
        raw = texts.json_value(path.read_bytes())
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise ValueError("another format")
        card = Card(**raw)
        _check(card.party, card.address)
        if len(bytes.fromhex(card.sealing_key)) != _SEALING_KEY_BYTES:
            raise ValueError("another key")
        card.certificate.encode("ascii")
    except (OSError, ValueError, TypeError, AttributeError, texts.TextError) as error:
        raise UsageError(
            f"{path} must be a party's card, got: {error}. Its operator makes it with: marship "
            "party-keys NUMBER"
        ) from error
    return card


def trio(paths: tuple[str, ...]) -> tuple[Card, ...]:
    """The cards of parties 0, 1 and 2, from files in any order.

    Raises:
        UsageError: They are others, or one operator's key stands in two.
    """
    found = sorted((read(path) for path in paths), key=lambda card: card.party)
    numbers = [card.party for card in found]
    if numbers != list(range(PARTIES)) or len({card.sealing_key for card in found}) != PARTIES:
        raise UsageError(
            f"three parties must be 0, 1 and 2 with a card each, got {numbers or 'none'}. Give "
            "--party partyN.card.json three times; each operator makes one: marship party-keys N"
        )
    return tuple(found)


def _check(number: object, address: object) -> None:
    if number not in range(PARTIES):
        raise UsageError(f"a party's number must be 0, 1 or 2, got {number}.")
    host, _, port = str(address).rpartition(":")
    if number and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UsageError(
            f"the address of party {number} must be host:port, at which the others reach it, got "
            f"{address!r}. Give it with --address."
        )


def _made(number: int, address: str) -> tuple[bytes, Card]:
    """The private key's file, and the card."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import x25519

    private, certificate = certificates.self_signed([f"party{number}"], LASTS, is_root=False)
    sealing = x25519.X25519PrivateKey.generate()
    secret = sealing.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = sealing.public_key().public_bytes_raw().hex()
    return private + certificate + secret, Card(number, address, certificate.decode(), public)
