"""A party's shares of a model, and what it does with a batch."""

from dataclasses import dataclass
from math import prod

import numpy as np

from marship.serving.private.mpc import shares
from marship.serving.private.mpc.program import Gathering, ProgramStep, SharedProgram
from marship.serving.private.mpc.protocol import Party
from marship.serving.private.mpc.ring import FRACTION_BITS, Words, encode, product


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """A step's weights, as this party multiplies with them.

    Attributes:
        stacked: w_i + w_(i+1) above w_i, shape (2 taps, width) or (2, size).
        bias: Shares, shape (2, width) or (2, size).
    """

    stacked: Words
    bias: Words


class SharedModel:
    """A party's part of a model.

    Args:
        program: The model.
        number: The party's.
        part: What it got when the weights were dealt.
    """

    def __init__(self, program: SharedProgram, number: int, part: bytes) -> None:
        self.program, self.number = program, number
        shapes = program.shapes()
        flat = shares.take(part, number, (sum(map(prod, shapes)),))
        ends = np.cumsum([prod(shape) for shape in shapes])[:-1]
        arrays = [
            piece.reshape(2, *shape)
            for piece, shape in zip(np.split(flat, ends, axis=1), shapes, strict=True)
        ]
        *weights, self._golden_input, self._golden_output = arrays
        self._weights = [_weights(step, weights) for step in program.steps]

    def run(self, party: Party, rows: Words) -> Words:
        """Compute a batch with the other two.

        Args:
            party: This party in a session with them.
            rows: Shares, shape (2, rows, input size).

        Returns:
            Shares of the outputs, shape (2, rows, output size).
        """
        values = [rows]
        for step, weights in zip(self.program.steps, self._weights, strict=True):
            given = [values[n] for n in step.inputs]
            values.append(_run(party, step, weights, given))
        return values[-1]

    def golden_misses(self, party: Party) -> int:
        """How many golden outputs are further from the reference than the tolerance.

        Their number is opened, and no more: which ones, or the outputs, would tell of the model.
        """
        apart = self.run(party, self._golden_input) - self._golden_output
        limit = encode(np.full(apart.shape[1:], self.program.tolerance))
        public = _public(party.number, limit)
        missed = party.negative(public - apart) + party.negative(public + apart)
        return int(party.opened(missed.sum((1, 2))[:, None])[0])


def _weights(step: ProgramStep, arrays: list[Words]) -> SharedWeights | None:
    if not step.weights():
        return None
    factor, bias = arrays.pop(0), arrays.pop(0)
    both = [factor[0] + factor[1], factor[0]]
    return SharedWeights(
        np.concatenate(both) if step.operation == "linear" else np.stack(both), bias
    )


def _run(
    party: Party, step: ProgramStep, weights: SharedWeights | None, given: list[Words]
) -> Words:
    first = given[0]
    if weights is not None:
        return _weighted(party, step, weights, first)
    if step.operation == "relu":
        return party.relu(first)
    if step.operation in ("sum", "difference"):
        return first + given[1] if step.operation == "sum" else first - given[1]
    if step.operation == "multiply":
        other = given[1]
        return party.rescaled(first[0] * (other[0] + other[1]) + first[1] * other[0])
    if step.operation == "maximum":
        windows = _gathered(first, step.window) if step.window else np.stack(given, -1)
        return _maximum(party, windows)
    return _averaged(party, first, step.window)


def _weighted(party: Party, step: ProgramStep, weights: SharedWeights, share: Words) -> Words:
    if step.operation == "linear":
        return _linear(party, step, weights, share)
    part = share[0] * weights.stacked[0] + share[1] * weights.stacked[1]
    return party.rescaled(part) + weights.bias[:, None]


def _linear(party: Party, step: ProgramStep, weights: SharedWeights, share: Words) -> Words:
    """X W, shape (2, rows, size): all positions of all rows in one product."""
    rows = share.shape[1]
    gathered = _gathered(share, step.window) if step.window else share
    both = gathered.reshape(2, rows * step.positions, step.taps)
    done = party.rescaled(product(np.concatenate([both[0], both[1]], 1), weights.stacked))
    done = done + weights.bias[:, None]
    if step.is_channelled:
        done = done.reshape(2, rows, step.positions, step.width).transpose(0, 1, 3, 2)
    return done.reshape(2, rows, step.size)


def _gathered(share: Words, window: Gathering | None) -> Words:
    """Windows, shape (..., positions, taps), of values of shape (..., size)."""
    if window is None:
        return share
    if not window.repeats and any(window.pads):
        nothing = np.zeros((*share.shape[:-1], 1), np.uint64)
        share = np.concatenate([share, nothing], -1)
    return share.take(window.index, -1)


def _averaged(party: Party, share: Words, window: Gathering | None) -> Words:
    """The sum of each window times 1 / its size, a number that everybody knows."""
    if window is None:
        raise ValueError("average without a window")
    share = _gathered(share, window)
    if window.chunks > 1:
        starts = range(0, share.shape[-1], 1 << FRACTION_BITS)
        share = party.rescaled(np.add.reduceat(share[0], starts, -1))
    share = share.sum(-1, dtype=np.uint64)
    for factor in window.factors:
        share = party.rescaled(share[0] * factor)
    return share


def _maximum(party: Party, windows: Words) -> Words:
    """The largest of the last axis: max(a, b) = b + relu(a - b), half of them in each turn."""
    while windows.shape[-1] > 1:
        half = windows.shape[-1] // 2
        left, right, odd = (
            windows[..., :half],
            windows[..., half : 2 * half],
            windows[..., 2 * half :],
        )
        larger = right + party.relu(left - right)
        windows = np.concatenate([larger, odd], -1)
    return windows[..., 0]


def _public(number: int, value: Words) -> Words:
    """Shares of what everybody knows: in slot 0, which parties 0 and 2 hold."""
    nothing = np.zeros_like(value)
    return np.stack([[value, nothing], [nothing, nothing], [nothing, value]][number])
