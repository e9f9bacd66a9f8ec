"""Shares of values: dealt by whoever knows them, joined by whoever gets all.

x0 and x1 are drawn from two seeds, x2 = x - x0 - x1. Party 0 gets both seeds, party 1 the second
seed and x2, party 2 x2 and the first seed: each has what x_i and x_(i+1) take, in half the bytes.
"""

import secrets
from collections.abc import Sequence

import numpy as np

from marship.errors import PrivateError
from marship.serving.private.mpc.ring import Words
from marship.serving.private.mpc.streams import KEY_BYTES, MaskStream

PARTIES = 3


def deal(values: Words) -> tuple[bytes, bytes, bytes]:
    """What parties 0, 1 and 2 get of words of any shape: bytes that alone are noise.

    Example:
        >>> [len(part) for part in deal(np.zeros(4, np.uint64))]
        [64, 64, 64]
    """
    first, second = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
    rest = (values - _drawn(first, values.shape) - _drawn(second, values.shape)).tobytes()
    return first + second, second + rest, rest + first


def dealt_bytes(party: int, count: int) -> int:
    """The size of what a party gets of so many words."""
    return 2 * KEY_BYTES if party == 0 else KEY_BYTES + 8 * count


def take(part: bytes, party: int, shape: tuple[int, ...]) -> Words:
    """A party's shares, shape (2, *shape): x_i and x_(i+1).

    Args:
        part: What the party got, `dealt_bytes` long.
        party: Its number.
        shape: The values' shape.
    """
    if party == 0:
        both = (_drawn(part[:KEY_BYTES], shape), _drawn(part[KEY_BYTES:], shape))
    elif party == 1:
        both = (_drawn(part[:KEY_BYTES], shape), _words(part[KEY_BYTES:], shape))
    else:
        both = (_words(part[:-KEY_BYTES], shape), _drawn(part[-KEY_BYTES:], shape))
    return np.stack(both)


def join(parts: Sequence[Words]) -> Words:
    """The values of all three parties' shares, each of shape (2, *shape).

    Raises:
        PrivateError: Two parties disagree about the share that both hold.
    """
    for party in range(PARTIES):
        after = (party + 1) % PARTIES
        if not np.array_equal(parts[party][1], parts[after][0]):
            raise PrivateError(
                f"parties {party} and {after} must agree about the share that both hold, got two. "
                "One of them did not follow the protocol: do not use this answer."
            )
    total: Words = parts[0][0] + parts[1][0] + parts[2][0]
    return total


def _drawn(seed: bytes, shape: tuple[int, ...]) -> Words:
    return MaskStream(seed).draw(shape, np.uint64).view(np.uint64)


def _words(data: bytes, shape: tuple[int, ...]) -> Words:
    return np.frombuffer(data, np.uint64).reshape(shape)
