"""SEAL behind exact lengths: what it would take, and is not given."""

import struct

import numpy as np
import pytest
from backports import zstd

from marship.errors import LoadError, MalformedError
from marship.serving.private import ckks
from marship.serving.private.ckks import Ring, SecretKey

SMALL = Ring(4096, (40, 30, 36), 30)
RINGS = [SMALL, Ring(8192, (46, 36, 36, 36, 46), 36), Ring(16384, (50, 40, 40, 40, 50), 40)]
SCALE = 1 << 30


def inflated_bytes(data: bytes) -> int:
    """The length of an object's members."""
    return len(zstd.decompress(data[16:]))


@pytest.mark.parametrize("ring", RINGS, ids=lambda ring: str(ring.degree))
def test_lengths_are_those_that_seal_writes(ring: Ring) -> None:
    """Of keys, questions and answers, at every level: so any other length is damage."""
    secret = SecretKey(ring)
    keys = secret.evaluation_keys([1, 64], multiplies=True)
    assert list(map(inflated_bytes, keys)) == [ring.relin_bytes(), *[ring.galois_bytes()] * 2]
    question = secret.encrypt(np.ones(ring.slots))
    assert inflated_bytes(question) == ring.question_bytes()
    assert inflated_bytes(secret.dump()) == ring.secret_bytes()
    ciphertext = ckks.load_question(ring, question)
    for level in range(1, ring.levels + 1):
        ring.evaluator.mod_switch_to_next_inplace(ciphertext)
        assert inflated_bytes(ckks.dump(ciphertext)) == ring.answer_bytes(level)


@pytest.mark.parametrize(
    ("degree", "bits"),
    [(4096, (38, 31, 38)), (8192, (60, 50, 50, 55)), (16384, (60,) * 7 + (11,)), (2048, (27, 27))],
)
def test_rings_below_128_bits_of_security_are_refused(degree: int, bits: tuple[int, ...]) -> None:
    """By the guidelines of 2024, which are stricter than what SEAL enforces."""
    with pytest.raises(LoadError, match="must have a ring of 4096, 8192, 16384 and at most 106"):
        assert Ring(degree, bits, 28).context


def test_a_wrong_key_decrypts_to_noise() -> None:
    """Nothing is raised: only the imaginary parts tell."""
    secret, other = SecretKey(SMALL), SecretKey(SMALL)
    question = ckks.load_question(SMALL, secret.encrypt(np.ones(SMALL.slots)))
    sent = ckks.dump(question)
    assert np.abs(secret.decrypt(sent, 0).imag).max() < 1e-3
    assert np.abs(other.decrypt(sent, 0).imag).max() > 1e3


def test_a_secret_key_is_read_back() -> None:
    """What it encrypted before decrypts."""
    secret = SecretKey(SMALL)
    sent = ckks.dump(ckks.load_question(SMALL, secret.encrypt(np.ones(SMALL.slots))))
    again = SecretKey(SMALL, secret.dump())
    assert again.decrypt(sent, 0).real == pytest.approx(np.ones(SMALL.slots), abs=1e-3)


def bomb() -> bytes:
    """A gigabyte of zeros as zstd, behind a right header."""
    body = zstd.compress(bytes(1 << 30), 1)
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 2, 0, 16 + len(body)) + body


def question() -> bytes:
    """A right one."""
    return SecretKey(SMALL).encrypt(np.ones(SMALL.slots))


def with_header(data: bytes, place: int, value: int) -> bytes:
    """A byte of the header changed."""
    return data[:place] + bytes([value]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("change", "said"),
    {
        "nothing": (lambda _: b"", "must have its header"),
        "junk": (lambda _: b"junk" * 100, "another header"),
        "bomb": (lambda _: bomb(), "must have at most 65,714 bytes"),
        "longer": (lambda data: data + b"\0", "another header"),
        "cut": (lambda data: data[:-1], "another header"),
        "of zlib": (lambda data: with_header(data, 5, 1), "another header"),
        "not compressed": (lambda data: with_header(data, 5, 0), "another header"),
    }.values(),
)
def test_what_has_another_length_never_reaches_seal(change: object, said: str) -> None:
    """Damage, and what would inflate to more memory than there is."""
    with pytest.raises(MalformedError, match=said):
        ckks.load_question(SMALL, change(question()))  # type: ignore[operator]


def test_a_ciphertext_of_another_ring_is_refused() -> None:
    """Also one of the same length: SEAL compares the parameters."""
    other = Ring(4096, (40, 31, 35), 30)
    sent = SecretKey(other).encrypt(np.ones(other.slots))
    with pytest.raises(MalformedError, match="must be a Ciphertext of the model"):
        ckks.load_question(SMALL, sent)


def test_a_ciphertext_of_another_scale_is_refused() -> None:
    """Its values would be wrong by that factor."""
    other = Ring(4096, SMALL.bits, 29)
    sent = SecretKey(other).encrypt(np.ones(other.slots))
    with pytest.raises(MalformedError, match="level and scale"):
        ckks.load_question(SMALL, sent)
