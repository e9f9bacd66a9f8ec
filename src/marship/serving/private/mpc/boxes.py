"""Requests and answers of the three parties' model, as bytes.

A request, sent to party 0, which passes two of its boxes on unread:

    offset  bytes
         0      4  "MPC1"
         4     32  the model: SHA-256 of its program
        36     16  the request's id, random
        52      2  R, the rows, little endian
        54         the boxes of parties 0, 1 and 2

A box is sealed with HPKE (RFC 9180, base mode, X25519, HKDF-SHA256, AES-128-GCM) under an info that
binds model, party, id and rows. In it: the time in seconds (8 bytes), a key of 32 bytes for the
answer, used once, and what the party gets of the dealt input.

A response is "MPC1", the id, and an answer of each party: 12 bytes of nonce, then AES-256-GCM under
the key for the answer of the party's shares of the output, x_i and x_(i+1).
"""

import secrets
import struct
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from marship.errors import (
    InvalidInputError,
    MalformedError,
    PrivateError,
    ReplayError,
    RequestError,
    SealError,
)
from marship.serving.private.mpc import identity, shares
from marship.serving.private.mpc.identity import SEALED_BYTES, PartyKey
from marship.serving.private.mpc.program import Card
from marship.serving.private.mpc.ring import Words
from marship.serving.private.mpc.shares import PARTIES

MAGIC = b"MPC1"
ID_BYTES = 16
MOST_ROWS = 64
"""Rows of one request."""
WINDOW_S = 300
"""How far a client's clock may be off; ids are remembered as long."""
MOST_REMEMBERED = 2_000_000
_HEAD = struct.Struct("<4s32s16sH")
_INNER = struct.Struct("<Q32s")
_NONCE_BYTES, _TAG_BYTES = 12, 16

OK, UNREADABLE, REPLAYED, STALE, FULL = range(5)
"""What a party makes of its box."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes, and the digest of its program: what both ends of a request need."""

    digest: bytes
    input_size: int
    output_size: int

    def box_bytes(self, party: int, rows: int) -> int:
        """The size of a party's box in a request of so many rows."""
        dealt = shares.dealt_bytes(party, rows * self.input_size)
        return SEALED_BYTES + _INNER.size + dealt

    def answer_bytes(self, rows: int) -> int:
        """The size of one party's answer."""
        return _NONCE_BYTES + _TAG_BYTES + 2 * 8 * rows * self.output_size


@dataclass(frozen=True, slots=True)
class Question:
    """A request, as party 0 reads it: the boxes are for each party alone."""

    id: bytes
    rows: int
    boxes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A party's box, opened.

    Attributes:
        key: For the answer.
        share: Of the input, shape (2, rows, input size).
    """

    key: bytes
    share: Words


def parse(body: bytes, sizes: Sizes) -> Question:
    """Read a request.

    Raises:
        MalformedError: It has another form or length.
        InvalidInputError: It is for another model.
    """
    if len(body) < _HEAD.size or not body.startswith(MAGIC):
        raise MalformedError(
            "a request must be sealed for the three parties of this model, got something else; "
            "plain inputs are refused. Send it with marship.private.MpcClient."
        )
    _, digest, request_id, rows = _HEAD.unpack_from(body)
    if digest != sizes.digest:
        raise InvalidInputError(
            f"a request must be for the model {sizes.digest.hex()[:16]}, got one for "
            f"{digest.hex()[:16]}. Use the client file that was packaged with this model."
        )
    lengths = [sizes.box_bytes(party, rows) for party in range(PARTIES)]
    if not 1 <= rows <= MOST_ROWS or len(body) != _HEAD.size + sum(lengths):
        raise MalformedError(
            f"a request must hold from 1 to {MOST_ROWS} rows in as many bytes as they take, got "
            f"{rows} rows in {len(body)} bytes."
        )
    return Question(request_id, rows, cut(body[_HEAD.size :], lengths))


def cut(data: bytes, lengths: Sequence[int]) -> tuple[bytes, ...]:
    """Pieces of these lengths, from the start."""
    ends = np.cumsum([0, *lengths]).tolist()
    return tuple(data[start:end] for start, end in pairwise(ends))


def seal(
    values: Words, sizes: Sizes, cards: Sequence[Card]
) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """Deal an input and seal it.

    Args:
        values: Fixed point words, shape (rows, input size).
        sizes: The model's.
        cards: The three parties'.

    Returns:
        The request, its id, and the key for each party's answer.
    """
    rows, request_id = len(values), secrets.token_bytes(ID_BYTES)
    keys = tuple(secrets.token_bytes(32) for _ in range(PARTIES))
    now = int(time.time())
    boxes = [
        identity.seal(card, _INNER.pack(now, key) + part, _info(sizes, party, request_id, rows))
        for party, (card, key, part) in enumerate(
            zip(cards, keys, shares.deal(values), strict=True)
        )
    ]
    head = _HEAD.pack(MAGIC, sizes.digest, request_id, rows)
    return b"".join([head, *boxes]), request_id, keys


def unseal(body: bytes, sizes: Sizes, request_id: bytes, keys: Sequence[bytes], rows: int) -> Words:
    """The output of a response, words of shape (rows, output size).

    Raises:
        PrivateError: It is not the response to this request, or the parties disagree.
    """
    length = sizes.answer_bytes(rows)
    head = MAGIC + request_id
    if len(body) != len(head) + PARTIES * length or not body.startswith(head):
        raise PrivateError(
            f"an answer must be to this request and have {len(head) + PARTIES * length} bytes, got "
            f"another of {len(body)}."
        )
    parts: list[Words] = []
    for party, box in enumerate(cut(body[len(head) :], [length] * PARTIES)):
        bound = _info(sizes, party, request_id, rows)
        try:
            plain = AESGCM(keys[party]).decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], bound)
        except InvalidTag as error:
            raise PrivateError(
                f"the answer of party {party} must arrive as it was sealed, got another."
            ) from error
        parts.append(np.frombuffer(plain, np.uint64).reshape(2, rows, sizes.output_size))
    return shares.join(parts)


def seal_answer(
    opened: Opened, output: Words, sizes: Sizes, party: int, question: tuple[bytes, int]
) -> bytes:
    """A party's answer, for the client alone."""
    nonce = secrets.token_bytes(_NONCE_BYTES)  # the key is used once, unless a request is replayed
    bound = _info(sizes, party, *question)
    return nonce + AESGCM(opened.key).encrypt(nonce, output.tobytes(), bound)


class Desk:
    """Opens a party's boxes, each once.

    Args:
        own: The party.
        sizes: The model's.
    """

    def __init__(self, own: PartyKey, sizes: Sizes) -> None:
        self._own, self._sizes = own, sizes
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def open(self, question: tuple[bytes, int], box: bytes) -> tuple[int, Opened]:
        """Whether a box is good, and what is in it.

        One that is not opens to zeros: rows do not depend on each other, so the parties need not
        agree about it before they compute.

        Args:
            question: The request's id and rows.
            box: This party's.
        """
        request_id, rows = question
        shape = (rows, self._sizes.input_size)
        nothing = Opened(b"", np.zeros((2, *shape), np.uint64))
        try:
            plain = self._own.open(box, _info(self._sizes, self._own.number, request_id, rows))
        except SealError:
            return UNREADABLE, nothing
        sent_at, key = _INNER.unpack_from(plain)
        status = self._remembered(request_id, sent_at)
        if status != OK:
            return status, nothing
        part = plain[_INNER.size :]
        return OK, Opened(key, shares.take(part, self._own.number, shape))

    def _remembered(self, request_id: bytes, sent_at: int) -> int:
        now = time.time()
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        if abs(now - sent_at) > WINDOW_S:
            return STALE
        if request_id in self._seen:
            return REPLAYED
        if len(self._seen) >= MOST_REMEMBERED:
            return FULL
        self._seen[request_id] = now + 2 * WINDOW_S
        return OK


def refusal(status: int, party: int) -> RequestError:
    """The error for a box that a party did not take."""
    if status == REPLAYED:
        return ReplayError(
            f"a request's id must be new, got one that party {party} has seen. Send it with fresh "
            "shares."
        )
    if status == STALE:
        return InvalidInputError(
            f"a request must be at most {WINDOW_S} s old, got another time than party {party} has. "
            "Set the client's clock."
        )
    if status == FULL:
        return InvalidInputError(
            f"party {party} must remember at most {MOST_REMEMBERED} ids, got more. Ask again in "
            f"{WINDOW_S} s."
        )
    return MalformedError(
        f"a box must be sealed for party {party} of this model, got another or a modified one. Use "
        "the client file that was packaged with this model."
    )


def _info(sizes: Sizes, party: int, request_id: bytes, rows: int) -> bytes:
    return b"marship mpc 1" + sizes.digest + struct.pack("<BH", party, rows) + request_id
