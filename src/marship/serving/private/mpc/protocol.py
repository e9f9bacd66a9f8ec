"""What one party computes and sends for each operation on shares.

A share is an array of shape (2, ...): x_i and x_(i+1) of party i. Values that only some parties
know are written with the slots that hold them: slot 0 is with parties 0 and 2, slot 1 with 0 and 1,
slot 2 with 1 and 2. Zero sharings mask whatever is sent, so that every message is uniform to the
party that gets it. Sources: Araki et al. 2016, sections 2 and 3; ABY3 2018, sections 5.1 to 5.4.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from marship.serving.private.mpc.ring import FRACTION_BITS, Words
from marship.serving.private.mpc.streams import MaskStream

Share = npt.NDArray[Any]
"""Words of 64 bits that add up, or of 32 bits whose exclusive or is the value."""

_LOW = np.uint32
_ONE, _TOP = np.uint32(1), np.uint32(31)


class Neighbours(Protocol):
    """A party's way to the one before it, and from the one after it."""

    def send(self, data: bytes) -> None:
        """Send to the party before this one."""

    def receive(self, size_bytes: int) -> bytes:
        """Exactly so many bytes of the party after this one."""


class Party:
    """One of the three.

    Args:
        number: 0, 1 or 2.
        channel: To the others.
        before: The stream shared with the party before.
        after: The stream shared with the party after.
    """

    def __init__(
        self, number: int, channel: Neighbours, before: MaskStream, after: MaskStream
    ) -> None:
        self.number = number
        self._channel, self._before, self._after = channel, before, after

    def product(self, multiply: Callable[[], Words]) -> Words:
        """Shares of x * y whose scale stays: for bits.

        Args:
            multiply: This party's part, `x[0] * (y[0] + y[1]) + x[1] * y[0]`.
        """
        part = multiply()
        return self._turn(part + self._zero(part.shape))

    def rescaled(self, part: Words) -> Words:
        """Shares of the sum of all parties' parts, divided by 2^13: ABY3, section 5.1.

        Party 0 learns the sum of its part and party 1's, masked by party 2's, cuts it, and shares
        it with a mask; parties 1 and 2 cut party 2's part. The result is one unit off at most,
        or wrong by 2^51 with a probability of |sum| 2^-64 for each element.

        Args:
            part: This party's part, any shape.
        """
        part = part + self._zero(part.shape)
        if self.number == 0:
            cut = _cut(part + self._receive(part))
            mask = self._after.draw(part.shape, np.uint64)
            self._send(cut - mask)
            return np.stack([cut - mask, mask])
        self._send(part)  # of party 1 to 0, of party 2 to 1
        if self.number == 1:
            mask = self._before.draw(part.shape, np.uint64)
            return np.stack([mask, _cut_rest(self._receive(part))])
        return np.stack([_cut_rest(part), self._receive(part)])

    def relu(self, share: Words) -> Words:
        """Shares of max(x, 0) for |x| < 2^31 as a word.

        With n = c xor d the sign, c known to party 0 and d to the others, x n = u + c (x - 2 u)
        for u = x d, which needs no message but that which shares it anew.
        """
        sign = self._sign(share)
        known, common = self._split_bit(sign)
        times_common = np.zeros(share.shape[1:], np.uint64)
        if common is not None:  # parties 1 and 2: x1 + x2, and x0
            times_common = (share[0] + share[1] if self.number == 1 else share[1]) * common
        chosen, flip = self._turn_and_give(times_common + self._zero(times_common.shape), known)
        rest = share - np.uint64(2) * chosen
        flipped = self.product(lambda: rest[0] * (flip[0] + flip[1]) + rest[1] * flip[0])
        positive: Words = share - chosen - flipped
        return positive

    def opened(self, share: Words) -> Words:
        """The value itself, told to all parties."""
        self._send(share[1])
        total: Words = share[0] + share[1] + self._receive(share[0])
        return total

    def negative(self, share: Words) -> Words:
        """Shares of 1 where x < 0, else of 0, as words without fraction bits."""
        known, common = self._split_bit(self._sign(share))
        shape = share.shape[1:]
        left = self._give(known, shape, np.uint64, is_sum=True)
        right = self._common(common, shape, np.uint64)
        both = self.product(lambda: left[0] * (right[0] + right[1]) + left[1] * right[0])
        sign: Words = left + right - np.uint64(2) * both
        return sign

    def _sign(self, share: Words) -> Share:
        """Boolean shares of the sign bit, in the lowest bit of 32-bit words.

        The low 32 bits of the shares are shares of the low 32 bits: x = (x0 + x1) + x2 there, the
        first known to party 0, the second to the others. The carry into the sign bit is a parallel
        prefix (Kogge and Stone 1973) of generate and propagate bits, 5 rounds. An error of 2^51 or
        2^38, which a rescaling may leave, is not in these bits.
        """
        low, shape = share.astype(_LOW), share.shape[1:]
        known = low[0] + low[1] if self.number == 0 else None
        left = self._give(known, shape, _LOW, is_sum=False)
        right = self._common(self._slot_two(low), shape, _LOW)
        propagate = left ^ right
        generate, top = self._both(left, right), propagate
        for shift in (1, 2, 4, 8):
            by = _LOW(shift)
            pair = np.stack([propagate, propagate], 1)
            found = self._both(pair, np.stack([generate << by, propagate << by], 1))
            generate, propagate = generate ^ found[:, 0], found[:, 1]
        generate = generate ^ self._both(propagate, generate << _LOW(16))
        return (top ^ (generate << _ONE)) >> _TOP

    def _split_bit(self, bit: Share) -> tuple[Words | None, Words | None]:
        """Two bits whose exclusive or is a shared one: party 0's, and that of the others."""
        if self.number == 0:
            return (bit[0] ^ bit[1]).astype(np.uint64), None
        return None, self._slot_two(bit).astype(np.uint64)

    def _slot_two(self, share: Share) -> Any:  # noqa: ANN401  None for party 0
        return None if self.number == 0 else share[2 - self.number]

    def _both(self, left: Share, right: Share) -> Share:
        """Boolean shares of `left & right`."""
        part = (left[0] & (right[0] ^ right[1])) ^ (left[1] & right[0])
        mask = self._before.draw(part.shape, _LOW) ^ self._after.draw(part.shape, _LOW)
        return self._turn(part ^ mask)

    def _give(
        self, value: Share | None, shape: tuple[int, ...], dtype: type, *, is_sum: bool
    ) -> Share:
        """Shares of what party 0 knows: masked in slot 0, the mask in slot 1."""
        if self.number == 0:
            mask = self._after.draw(shape, dtype)
            masked = value - mask if is_sum else value ^ mask  # type: ignore[operator]
            self._send(masked)
            return np.stack([masked, mask])
        nothing: Share = np.zeros(shape, dtype)
        if self.number == 1:
            return np.stack([self._before.draw(shape, dtype), nothing])
        return np.stack([nothing, self._receive(nothing)])

    def _common(self, value: Share | None, shape: tuple[int, ...], dtype: type) -> Share:
        """Shares of what parties 1 and 2 know: in slot 2."""
        nothing: Share = np.zeros(shape, dtype)
        if value is None:
            return np.stack([nothing, nothing])
        return np.stack([nothing, value] if self.number == 1 else [value, nothing])

    def _zero(self, shape: tuple[int, ...]) -> Words:
        """This party's part of a fresh sharing of 0: Araki et al. 2016, section 2.2."""
        drawn: Words = self._before.draw(shape, np.uint64) - self._after.draw(shape, np.uint64)
        return drawn

    def _turn(self, part: Share) -> Share:
        """Replicated shares of masked parts: one message to each party."""
        self._send(part)
        return np.stack([part, self._receive(part)])

    def _turn_and_give(self, part: Words, known: Words | None) -> tuple[Words, Words]:
        """`_turn`, and `_give` of words, in one round."""
        shape, nothing = part.shape, np.zeros(part.shape, np.uint64)
        if known is not None:
            mask = self._after.draw(shape, np.uint64)
            self._send(np.stack([part, known - mask]))
            return np.stack([part, self._receive(part)]), np.stack([known - mask, mask])
        self._send(part)
        if self.number == 1:
            given = np.stack([self._before.draw(shape, np.uint64), nothing])
            return np.stack([part, self._receive(part)]), given
        other, masked = self._receive(np.stack([part, part]))
        return np.stack([part, other]), np.stack([nothing, masked])

    def _send(self, part: Share) -> None:
        self._channel.send(part.tobytes())

    def _receive(self, like: Share) -> Share:
        data = self._channel.receive(like.nbytes)
        return np.frombuffer(data, like.dtype).reshape(like.shape)


def _cut(total: Words) -> Words:
    cut: Words = (total.view(np.int64) >> FRACTION_BITS).view(np.uint64)
    return cut


def _cut_rest(total: Words) -> Words:
    return -_cut(-total)
