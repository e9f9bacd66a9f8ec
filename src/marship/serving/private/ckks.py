"""CKKS (Cheon, Kim, Kim, Song 2016) by Microsoft SEAL, through `tenseal.sealapi`.

SEAL reads and writes files only: memory files (memfd_create(2)) keep keys and ciphertexts off
disks. It inflates whatever it is given, and takes damaged data and trailing bytes. So everything
is inflated here, with a limit, and must have the exact length for its ring before SEAL sees it.

An object in SEAL's format is a header (serialization.h, SEALHeader) and its members, compressed:

    offset  bytes
         0      2  0xa15e, little endian as all numbers
         2      1  the header's size, 16
         3      2  SEAL's version, major and minor
         5      1  the compression: 0 none, 1 zlib, 2 zstd
         6      2  0
         8      8  the size of header and members together
"""

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from marship.errors import LoadError, MalformedError, RequestError, UsageError
from marship.serving.formats import forms

if TYPE_CHECKING:
    from types import ModuleType

Vector = npt.NDArray[np.float64]
SealObject = Any
"""A ciphertext, plaintext or key: the library is untyped."""

MOST_BITS = {4096: 106, 8192: 214, 16384: 430}
"""Of the modulus by the ring's degree, for 128 bits of security against classical attacks with
ternary secrets: Bossuat et al. 2024, "Security Guidelines for Implementing Homomorphic Encryption"
(ePrint 2024/463), Table 5.2. They are below those of the standard of 2018, which SEAL enforces."""

SEAL_ERRORS = (RuntimeError, ValueError, IndexError, MemoryError, OverflowError, TypeError)
_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, _NONE, _ZSTD = 0xA15E, 0, 2
_HEAD_BYTES = _HEADER.size
_MOST_DOUBLE = 2.0**1000
_ROOT = 3
"""Generates the rotations of slots: step s is the automorphism X -> X^(3^s mod 2N)."""


@cache
def library() -> "ModuleType":
    """`tenseal.sealapi`.

    Raises:
        LoadError: It is not installed.
    """
    try:
        import tenseal.sealapi as seal
    except ImportError as error:
        raise LoadError(
            "tenseal must be installed where models are encrypted or asked, got none. Run: "
            'pip install "marship[private]"'
        ) from error
    module: ModuleType = seal
    return module


@dataclass(frozen=True)
class Ring:
    """The parameters of a scheme: polynomials modulo X^degree + 1 and a product of primes.

    Attributes:
        degree: A power of two; a ciphertext has half as many slots.
        bits: Of each prime: the last to stay, those that rescaling drops, and the one for keys.
        scale_bits: Values are multiplied by 2^scale_bits and rounded.
    """

    degree: int
    bits: tuple[int, ...]
    scale_bits: int

    def check(self) -> Self:
        """Refuse parameters that are not 128 bits secure, or not parameters.

        Raises:
            LoadError: The message says why.
        """
        most = MOST_BITS.get(self.degree, 0)
        if sum(self.bits) > most or min(self.bits) <= 0 or self.scale_bits <= 0:
            raise LoadError(
                f"an encrypted model must have a ring of {', '.join(map(str, MOST_BITS))} and at "
                f"most {', '.join(map(str, MOST_BITS.values()))} bits, got {self.degree} with "
                f"{sum(self.bits)}. Package the model again."
            )
        return self

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.degree // 2

    @property
    def levels(self) -> int:
        """How often a fresh ciphertext can be rescaled."""
        return len(self.bits) - 2

    @property
    def scale(self) -> float:
        """What values are multiplied by."""
        return float(2.0**self.scale_bits)

    @cached_property
    def context(self) -> SealObject:
        """SEAL's context.

        Raises:
            LoadError: SEAL refuses the parameters.
        """
        seal = library()
        self.check()
        try:
            parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
            parameters.set_poly_modulus_degree(self.degree)
            parameters.set_coeff_modulus(seal.CoeffModulus.Create(self.degree, list(self.bits)))
            context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
            reason = None if context.parameters_set() else context.parameters_error_message()
        except SEAL_ERRORS as error:
            reason = str(error)
        if reason is not None:
            raise LoadError(f"SEAL must take the parameters of the model, got: {reason}.")
        return context

    @cached_property
    def chain(self) -> list[tuple[list[int], int]]:
        """For each level, the first one first: SEAL's id, and the prime that is dropped next."""
        found, data = [], self.context.first_context_data()
        while data is not None:
            found.append((list(data.parms_id()), int(data.parms().coeff_modulus()[-1].value())))
            data = data.next_context_data()
        return found

    def automorphism(self, step: int) -> int:
        """The automorphism that rotates slots to the left by `step`."""
        return pow(_ROOT, step, 2 * self.degree)

    @cached_property
    def encoder(self) -> SealObject:
        """Encodes vectors as plaintexts."""
        return library().CKKSEncoder(self.context)

    @cached_property
    def evaluator(self) -> SealObject:
        """Computes on ciphertexts."""
        return library().Evaluator(self.context)

    def encode(self, values: Vector, level: int, scale: float) -> SealObject:
        """A vector of all slots as a plaintext of a level.

        Raises:
            UsageError: Its values exceed the modulus.
        """
        plain, largest = library().Plaintext(), float(np.abs(values).max())
        error: Exception | None = None
        try:
            if largest < _MOST_DOUBLE / scale:  # beyond, SEAL's transform gives infinity unnoticed
                self.encoder.encode(values.tolist(), self.chain[level][0], scale, plain)
                return plain
        except ValueError as found:
            error = found
        raise UsageError(
            f"values to encrypt must fit the model's ring, got {largest:.3g}. Ask with values as "
            "the model was trained on."
        ) from error

    # The exact lengths, inflated. A polynomial has 8 bytes for each coefficient and prime. A seed
    # stands for the second polynomial of what its owner encrypts. Found by saving, and held by
    # tests/unit/serving/private/test_ckks.py.

    def question_bytes(self) -> int:
        """Of a fresh ciphertext, whose second polynomial is a seed."""
        return self._polynomials(1, self.levels + 1) + 178

    def answer_bytes(self, level: int) -> int:
        """Of a ciphertext after so many levels."""
        return self._polynomials(2, self.levels + 1 - level) + 97

    def galois_bytes(self) -> int:
        """Of the key of one rotation: the list has a place for each automorphism."""
        return self._key_bytes() + 40 + 8 * self.degree

    def relin_bytes(self) -> int:
        """Of the key that makes products linear again."""
        return self._key_bytes() + 48

    def secret_bytes(self) -> int:
        """Of a secret key."""
        return self._polynomials(1, self.levels + 2) + 72

    @property
    def key_bits(self) -> int:
        """Of the random numbers that an evaluation key is sent as."""
        return (self.levels + 1) * self.degree * sum(self.bits)

    def loaded_key_bytes(self) -> int:
        """Of an evaluation key in memory: seeds are polynomials again, each place is a vector."""
        return (self.levels + 1) * self._polynomials(2, self.levels + 2) + 24 * self.degree

    def _key_bytes(self) -> int:
        return (self.levels + 1) * (self._polynomials(1, self.levels + 2) + 178 + 16)

    def _polynomials(self, count: int, primes: int) -> int:
        return 8 * count * primes * self.degree


def dump(thing: SealObject) -> bytes:
    """An object of SEAL's in its format, compressed."""
    descriptor = os.memfd_create("marship", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        thing.save(f"/proc/self/fd/{descriptor}")
        return file.read()


def load(kind: str, ring: Ring, data: bytes | memoryview, exact_bytes: int) -> SealObject:
    """An object of a kind, such as Ciphertext, from bytes that anybody may have sent.

    Args:
        kind: SEAL's class.
        ring: What it must belong to.
        data: In SEAL's format.
        exact_bytes: The length of its members, inflated.

    Raises:
        MalformedError: They are not of this kind and ring.
    """
    members = _inflated(data, exact_bytes)
    thing = getattr(library(), kind)()
    descriptor = os.memfd_create("marship", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        size = _HEAD_BYTES + len(members)
        file.write(_HEADER.pack(_MAGIC, _HEAD_BYTES, *data[3:5], _NONE, 0, size))
        file.write(members)
        file.flush()
        try:
            thing.load(ring.context, f"/proc/self/fd/{descriptor}")
        except SEAL_ERRORS as error:
            raise MalformedError(
                f"what was sent must be a {kind} of the model, got: {error}. "
                "Use the client file of the model that is asked."
            ) from error
    return thing


def _inflated(data: bytes | memoryview, exact_bytes: int) -> bytes:
    """The members of an object, of exactly this length."""
    if len(data) < _HEAD_BYTES:
        raise MalformedError(f"an object of SEAL must have its header, got {len(data)} bytes.")
    magic, head, _, _, compression, rest, size = _HEADER.unpack_from(data)
    if (magic, head, compression, rest) != (_MAGIC, _HEAD_BYTES, _ZSTD, 0) or size != len(data):
        raise MalformedError(
            f"an object of SEAL must be {len(data)} bytes of zstd behind their header, got "
            f"another header: {bytes(data[:_HEAD_BYTES]).hex()}."
        )
    try:
        members: bytes = forms.undo_encodings(memoryview(data)[_HEAD_BYTES:], "zstd", exact_bytes)
    except RequestError as error:
        raise MalformedError(f"an object of SEAL must inflate, got: {error}") from error
    if len(members) != exact_bytes:
        raise MalformedError(
            f"an object of the model must have {exact_bytes} bytes, got {len(members)}. Use the "
            "client file of the model that is asked."
        )
    return members


def load_question(ring: Ring, data: bytes | memoryview) -> SealObject:
    """A client's ciphertext, of the first level and the ring's scale.

    Raises:
        MalformedError: It is another one.
    """
    ciphertext = load("Ciphertext", ring, data, ring.question_bytes())
    check(ciphertext, ring, level=0, scale=ring.scale)
    return ciphertext


def check(ciphertext: SealObject, ring: Ring, *, level: int, scale: float) -> None:
    """Refuse a ciphertext of another form than a plan's.

    Raises:
        MalformedError: It has another level, scale or number of polynomials.
    """
    is_of_level = list(ciphertext.parms_id()) == ring.chain[level][0]
    is_close = abs(ciphertext.scale / scale - 1) < 1e-9  # noqa: PLR2004  floats of one formula
    if not (is_of_level and is_close and ciphertext.size() == 2 and ciphertext.is_ntt_form()):  # noqa: PLR2004
        raise MalformedError(
            "a ciphertext must have the model's level and scale, got others. Use the client file "
            "of the model that is asked."
        )


class SecretKey:
    """A client's secret key, and what it makes: evaluation keys, questions, answers.

    Args:
        ring: The plan's.
        saved: What `dump` gave; None makes a new one.

    Raises:
        MalformedError: `saved` is of another ring.
    """

    def __init__(self, ring: Ring, saved: bytes | None = None) -> None:
        seal = library()
        self.ring = ring
        if saved is None:
            self._generator = seal.KeyGenerator(ring.context)
        else:
            secret = load("SecretKey", ring, saved, ring.secret_bytes())
            self._generator = seal.KeyGenerator(ring.context, secret)
        secret = self._generator.secret_key()
        self._encryptor = seal.Encryptor(ring.context, secret)
        self._decryptor = seal.Decryptor(ring.context, secret)

    def dump(self) -> bytes:
        """The key's bytes: whoever has them reads everything."""
        return dump(self._generator.secret_key())

    def evaluation_keys(self, steps: Sequence[int], *, multiplies: bool) -> list[bytes]:
        """The key for products, if any, and that of each rotation: public for the server."""
        makers: list[Callable[[], SealObject]] = []
        if multiplies:
            makers.append(self._generator.create_relin_keys)
        makers += [self._maker(step) for step in steps]
        return [dump(make()) for make in makers]

    def _maker(self, step: int) -> Callable[[], SealObject]:
        return lambda: self._generator.create_galois_keys([self.ring.automorphism(step)])

    def encrypt(self, slots: Vector) -> bytes:
        """A ciphertext of all slots, by the secret key: half as long as by a public one."""
        plain = self.ring.encode(slots, 0, self.ring.scale)
        return dump(self._encryptor.encrypt_symmetric(plain))

    def decrypt(self, data: bytes | memoryview, level: int) -> npt.NDArray[np.complex128]:
        """All slots of a ciphertext of the ring's scale; imaginary parts are noise.

        Raises:
            MalformedError: It is no ciphertext of this level.
        """
        ciphertext = load("Ciphertext", self.ring, data, self.ring.answer_bytes(level))
        check(ciphertext, self.ring, level=level, scale=self.ring.scale)
        plain = library().Plaintext()
        self._decryptor.decrypt(ciphertext, plain)
        return np.array(self.ring.encoder.decode_complex(plain))
