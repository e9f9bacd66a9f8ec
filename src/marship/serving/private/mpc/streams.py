"""Random words that two parties draw alike, without a message."""

from math import prod

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

KEY_BYTES = 32
_REKEY_BYTES = 1 << 36
"""ChaCha20's block counter has 32 bits in RFC 8439: a stream takes a new key long before."""


class MaskStream:
    """The words of ChaCha20 (RFC 8439) under a key of 32 bytes.

    Example:
        >>> one, other = MaskStream(bytes(32)), MaskStream(bytes(32))
        >>> (one.draw((2, 3), np.uint64) == other.draw((2, 3), np.uint64)).all().item()
        True
    """

    def __init__(self, key: bytes) -> None:
        self._start(key)

    def _start(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._drawn_bytes = 0

    def draw(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.unsignedinteger]:
        """The next words, uniform, in an array of this shape."""
        kind = np.dtype(dtype)
        size_bytes = prod(shape) * kind.itemsize
        if self._drawn_bytes + size_bytes > _REKEY_BYTES:
            self._start(self._cipher.update(bytes(KEY_BYTES)))
        self._drawn_bytes += size_bytes
        drawn: npt.NDArray[np.unsignedinteger] = np.frombuffer(
            self._cipher.update(bytes(size_bytes)), kind
        )
        return drawn.reshape(shape)
