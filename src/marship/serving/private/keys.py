"""A client's evaluation keys: one stream of bytes, cut in pieces that fit in a request.

The stream is each key behind its length, 4 bytes, big endian: the key for products first, if the
plan has any, then those of rotations in the plan's order. Its pieces have PIECE_BYTES, the last one
what is left. The manifest is the SHA-256 of each piece. The set's id is the SHA-256 of the plan's
digest and the manifest: so a set is what its id says, and nobody can replace another's.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Self

from marship.errors import MalformedError
from marship.serving.private import ckks
from marship.serving.private.ckks import SecretKey
from marship.serving.private.evaluate import EvaluationKeys
from marship.serving.private.public import PublicPlan

PIECE_BYTES = 1_000_000
"""Under the smallest usual limit of a request, nginx's megabyte."""
DIGEST_BYTES = hashlib.sha256().digest_size
_LENGTH = struct.Struct(">I")
_LEAST_ENTROPY = 0.99
_MOST_OVERHEAD = 1024
"""Of one key's compression, header and length: keys are random, and do not get shorter."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The evaluation keys of one client for one plan.

    Attributes:
        manifest: The digests of the pieces.
        pieces: The pieces.
        id: What names the set, 32 bytes.
    """

    manifest: bytes
    pieces: tuple[bytes, ...]
    id: bytes

    @classmethod
    def of(cls, plan: PublicPlan, stream: bytes) -> Self:
        """The set of a stream."""
        cuts = range(0, len(stream), PIECE_BYTES)
        pieces = tuple(stream[place : place + PIECE_BYTES] for place in cuts)
        manifest = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
        return cls(manifest, pieces, set_id(plan.digest, manifest))

    @property
    def size_bytes(self) -> int:
        """Of all pieces."""
        return sum(map(len, self.pieces))


def generate(plan: PublicPlan, secret: SecretKey) -> bytes:
    """The stream of new evaluation keys."""
    made = secret.evaluation_keys(plan.steps, multiplies=plan.multiplies)
    return b"".join(part for key in made for part in (_LENGTH.pack(len(key)), key))


def set_id(plan_digest: str, manifest: bytes) -> bytes:
    """The id of a set, 32 bytes."""
    return hashlib.sha256(bytes.fromhex(plan_digest) + manifest).digest()


def stream_bytes(plan: PublicPlan) -> range:
    """How long the stream of a plan's keys can be.

    Half of each key is random, and half a seed for it: no compression gets below the entropy of
    the random numbers, which is some thousandths less than their primes have bits.
    """
    most_bytes = sum(size + _MOST_OVERHEAD for size in plan.key_bytes)
    return range(int(_LEAST_ENTROPY * len(plan.key_bytes) * plan.ring.key_bits / 8), most_bytes + 1)


def loaded(plan: PublicPlan, stream: bytes) -> EvaluationKeys:
    """The keys in a stream, which anybody may have sent.

    Raises:
        MalformedError: They are not the keys of this plan.
    """
    parts, place = [], 0
    for size in plan.key_bytes:
        end = place + _LENGTH.size
        length = _LENGTH.unpack_from(stream, place)[0] if end <= len(stream) else 0
        place = end + length
        if not 0 < length <= size + _MOST_OVERHEAD or place > len(stream):
            raise _others(plan)
        parts.append((memoryview(stream)[end:place], size))
    if place != len(stream):
        raise _others(plan)
    products = None
    if plan.multiplies:
        data, size = parts.pop(0)
        products = ckks.load("RelinKeys", plan.ring, data, size)
    rotations = {}
    for step, (data, size) in zip(plan.steps, parts, strict=True):
        key = ckks.load("GaloisKeys", plan.ring, data, size)
        if not key.has_key(plan.ring.automorphism(step)):
            raise _others(plan)
        rotations[step] = key
    return EvaluationKeys(rotations, products)


def _others(plan: PublicPlan) -> MalformedError:
    return MalformedError(
        f"evaluation keys must be the {len(plan.key_bytes)} of the model, got others. Use the "
        "client file of the model that is asked."
    )
