"""A party's file in an archive: the program, which all three share, and its sealed shares.

It begins with the length of the program in 4 bytes, little endian; then come the program in JSON,
and what is sealed for the party with HPKE (RFC 9180).
"""

import hashlib
import logging
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from marship.errors import LoadError, SealError
from marship.serving.private.mpc import identity, shares
from marship.serving.private.mpc.boxes import Desk, Sizes
from marship.serving.private.mpc.identity import PartyKey
from marship.serving.private.mpc.links import Doors, Link
from marship.serving.private.mpc.model import SharedModel
from marship.serving.private.mpc.party import Participant
from marship.serving.private.mpc.program import SharedProgram

logger = logging.getLogger(__name__)

PARTY_FILE = "party.mpc"
_LENGTH = struct.Struct("<I")
EXPERIMENTAL = "three-party computation is experimental: it has not been reviewed independently"


@dataclass(frozen=True, slots=True)
class Station:
    """A party's place: all that it needs but the others.

    Attributes:
        own: The party.
        program: The model.
        sizes: The model's, with its digest.
        model: The party's shares.
        doors: How it reaches the others.
        desk: Opens its boxes.
    """

    own: PartyKey
    program: SharedProgram
    sizes: Sizes
    model: SharedModel
    doors: Doors
    desk: Desk

    def sit(self, before: Link, after: Link) -> Participant:
        """The party in a session."""
        circle, *streams = self.doors.circle(before, after)
        return Participant(self.model, self.desk, self.sizes, circle, (streams[0], streams[1]))


def shares_info(model: str, version: str, sharing: str, party: int) -> bytes:
    """What a party's sealed shares are bound to."""
    return f"marship mpc shares 1\0{model}\0{version}\0{sharing}\0{party}".encode()


def sizes_of(program: SharedProgram) -> Sizes:
    """A program's sizes and digest."""
    digest = hashlib.sha256(program.to_json()).digest()
    return Sizes(digest, program.input_size, program.output_size)


def pack(program: SharedProgram, sealed: bytes) -> bytes:
    """A party's file."""
    text = program.to_json()
    return _LENGTH.pack(len(text)) + text + sealed


def load(data: bytes, key: Path) -> Station:
    """Open a party's file.

    Args:
        data: What `pack` made.
        key: The party's private key.

    Raises:
        LoadError: It is another, or does not belong to the key.
    """
    end = _LENGTH.size + int.from_bytes(data[: _LENGTH.size], "little")
    program, sealed = SharedProgram.from_json(data[_LENGTH.size : end]), data[end:]
    own = identity.load(key, program)
    number = own.number
    if hashlib.sha256(sealed).hexdigest() != program.sealed[number]:
        raise LoadError(
            f"{PARTY_FILE} must be that of party {number}, whose key {key} is, got another "
            "party's, or a modified one. Take the archive that was packaged for this party."
        )
    info = shares_info(program.model, program.version, program.sharing, number)
    try:
        part = own.open(sealed, info)
    except SealError as error:
        raise LoadError(f"{PARTY_FILE} must open with {key}, got: {error}") from error
    count = sum(map(prod, program.shapes()))
    if len(part) != shares.dealt_bytes(number, count):
        raise LoadError(
            f"{PARTY_FILE} must hold {count} words, got {len(part)} bytes. Package the model again."
        )
    sizes = sizes_of(program)
    logger.warning("%s", EXPERIMENTAL)
    doors = Doors(own, program, sizes.digest)
    return Station(own, program, sizes, SharedModel(program, number, part), doors, Desk(own, sizes))


def read(folder: Path, key: Path) -> Station:
    """Open a party's file in an extracted archive.

    Raises:
        LoadError: It is missing, or does not belong to the key.
    """
    try:
        data = (folder / PARTY_FILE).read_bytes()
    except OSError as error:
        raise LoadError(
            f"{PARTY_FILE} must be in the archive, got: {error.strerror}. Package the model again, "
            "with --private mpc."
        ) from error
    return load(data, key)
