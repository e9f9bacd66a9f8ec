"""The bytes of requests and responses: a header, and a payload whose digest is checked first.

    offset  bytes
         0      4  "MHE1"
         4      1  the kind: Q a question, K a piece of keys, H which pieces are there, A an answer
         5     32  the digest of the plan
        37     32  the id of the set of keys
        69      4  K: the number of the piece, from 0
        73      4  K: how many pieces there are
        77      8  the payload's length
        85     32  its SHA-256
       117     32  A: the SHA-256 of the question's payload
       149         the payload: of Q and A a ciphertext, of K the manifest and the piece, of H none

Numbers are big endian; what a kind has no use for is zero. Damage on the way is found before
anything is parsed, and so is an answer to another question, which a cache or a proxy mixed up. A
server that means to give one states the digest that is wanted.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Self

from marship.errors import MalformedError

HE_TYPE = "application/vnd.marship.he"
QUESTION, PIECE, HAVE, ANSWER = b"Q", b"K", b"H", b"A"
MAGIC = b"MHE1"
_HEAD = struct.Struct(">4sc32s32sIIQ32s32s")
HEAD_BYTES = _HEAD.size


@dataclass(frozen=True, slots=True)
class HeMessage:
    """A request or a response.

    Attributes:
        kind: QUESTION, PIECE, HAVE or ANSWER.
        plan: The digest of the plan, 32 bytes.
        keys: The id of the set of keys, 32 bytes.
        payload: What it carries.
        number: Of a piece, from 0.
        count: How many pieces there are.
        asked: Of an answer, the `digest` of its question.
    """

    kind: bytes
    plan: bytes
    keys: bytes
    payload: bytes | memoryview = b""
    number: int = 0
    count: int = 0
    asked: bytes = bytes(32)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the payload."""
        return hashlib.sha256(self.payload).digest()

    def to_bytes(self) -> bytes:
        """The body of a request or a response."""
        head = _HEAD.pack(
            MAGIC, self.kind, self.plan, self.keys, self.number, self.count, len(self.payload),
            self.digest, self.asked,
        )  # fmt: skip
        return head + bytes(self.payload)

    @classmethod
    def from_bytes(cls, body: bytes | memoryview) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedError: It is something else, or was damaged on its way.
        """
        if len(body) < HEAD_BYTES or bytes(body[: len(MAGIC)]) != MAGIC:
            raise MalformedError(
                f"an encrypted body must begin with {MAGIC.decode()} and its header, got "
                f"{len(body)} other bytes. Ask with marship.private.HeClient."
            )
        _, kind, plan, keys, number, count, size, digest, asked = _HEAD.unpack_from(body)
        payload = memoryview(body)[HEAD_BYTES:]
        if len(payload) != size or hashlib.sha256(payload).digest() != digest:
            raise MalformedError(
                f"the payload must have the {size} bytes and the SHA-256 that its header states, "
                f"got {len(payload)} bytes, or other ones. Send it again."
            )
        return cls(kind, plan, keys, payload, number, count, asked)
