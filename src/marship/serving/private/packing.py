"""Where the values of a vector lie in a ciphertext's slots, and matrices as diagonals of it.

A ciphertext adds and multiplies slot by slot, and rotates all slots: nothing else. A matrix is
therefore applied by its diagonals (Halevi and Shoup 2014, "Algorithms in HElib", 4.3): the sum over
k of diagonal k times the vector rotated by k. Rotations cost by far the most, so there are few, by
baby steps and giant steps (Halevi and Shoup 2018), and few keys for them: baby steps rotate by 1
again and again, giant steps follow Horner's scheme, so that all steps are powers of two.

A vector of d values, d a power of two, is repeated in all slots. The client may pack a model's
input with its copies shifted against each other: then most rotations are done before encryption.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from marship.serving.private.ckks import Vector

_KEY = 1.5
"""Rotations that one more key is worth."""

Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def power_of_two(size: int) -> int:
    """The smallest power of two from `size` on."""
    return 1 << max(0, math.ceil(math.log2(max(1, size))))


@dataclass(frozen=True, slots=True)
class Packing:
    """A vector in slots: slot s holds value (s + shift(s)) mod period, or as an index says.

    Attributes:
        period: The vector's length with zeros up to a power of two.
        width: Slots of a block; all copies in a block are shifted alike.
        copies: Blocks of different shifts, which then repeat; 1 is without shifts.
        group: By how much a block is shifted against the one before.
        index: The value in each slot, -1 for zero; it repeats. Empty for the shifts above. Its
            copies are blocks, of which a product sums those of one place.
    """

    period: int
    width: int = 1
    copies: int = 1
    group: int = 0
    index: tuple[int, ...] = field(default=(), repr=False)

    def held(self, slots: int) -> Indices:
        """The index of the value in each slot, int64 (slots,); -1 is zero."""
        place = np.arange(slots)
        if self.index:
            return np.asarray(self.index)[place % len(self.index)]
        return np.asarray((place + place // self.width % self.copies * self.group) % self.period)

    def pack(self, values: Vector, slots: int) -> Vector:
        """A vector of up to `period` values, float64, in all slots."""
        padded = np.zeros(self.period + 1)  # the last one is what -1 finds
        padded[: len(values)] = values
        return padded[self.held(slots)]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` gave, as JSON has it."""
        return cls(**{**value, "index": tuple(value["index"])})

    def extent(self, rows: int) -> int:
        """Slots from the first one on that a product with `rows` rows is summed over."""
        return self.width * self.copies if self.copies > 1 else max(self.period, rows)

    @classmethod
    def shifted(cls, inputs: int, outputs: int, slots: int) -> "Packing":
        """The packing of an input whose first matrix has this shape.

        As many copies as fit, so that each block does a part of the diagonals at once.
        """
        period, rows = power_of_two(inputs), power_of_two(outputs)
        width, diagonals = max(period, rows), min(period, rows)
        group = math.ceil(diagonals / (slots // width))
        return cls(period, width, power_of_two(math.ceil(diagonals / group)), group)


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix applied to a ciphertext.

    Attributes:
        baby: How often the ciphertext is rotated by 1.
        giant: The width of a giant step; 0 for none.
        giants: How many giant steps there are.
        sums: Rotations that add the result to itself, in their order.
        diagonals: By number, float64 (slots,); those of a giant step are rotated back already.
    """

    baby: int
    giant: int
    giants: int
    sums: tuple[int, ...]
    diagonals: Mapping[int, Vector] = field(repr=False)

    def zeros(self, slots: int) -> range:
        """Slots of the result that are zero, where it stands once.

        Sums carry numbers back over the first slot, to the last ones.
        """
        filled = [np.flatnonzero(diagonal) for diagonal in self._diagonals_back()]
        return range(1 + max(int(one[-1]) for one in filled), slots - sum(self.sums))

    def _diagonals_back(self) -> Iterator[Vector]:
        """The diagonals as they were before they were rotated for their giant steps."""
        width = self.giant or 1
        for number, diagonal in self.diagonals.items():
            yield np.roll(diagonal, -(number // width * self.giant))

    @property
    def rotations(self) -> int:
        """How many there are in all."""
        return self.baby + self.giants + len(self.sums)

    @property
    def steps(self) -> set[int]:
        """The rotations that need a key."""
        return {
            *({1} if self.baby else ()), *({self.giant} if self.giants else ()), *self.sums
        }  # fmt: skip


def product(matrix: Matrix, packing: Packing, slots: int, *, once: bool = False) -> Product:
    """A matrix (m, d) by its diagonals; the result is repeated with the period of m.

    Args:
        matrix: What is applied.
        packing: Of the vector that it is applied to.
        slots: Of the ciphertext.
        once: The result need not be repeated: what is last is for the client. Other slots are zero
            then, and tell where a number exceeds the modulus: it is wrong in all slots.
    """
    if packing.index:
        return _indexed(matrix, packing, slots)
    period, rows = packing.period, power_of_two(matrix.shape[0])
    padded = np.zeros((rows, period))
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    place, held, most = np.arange(slots), packing.held(slots), min(period, rows)
    count = packing.group if packing.copies > 1 else most
    diagonals: dict[int, Vector] = {}
    for number in range(count):
        # the values after the rotation, across blocks that are shifted otherwise, too
        column = np.roll(held, -number)
        diagonal = padded[place % rows, column] * ((column - place) % period < most)
        if once:
            diagonal[packing.extent(rows) :] = 0
        if diagonal.any():
            diagonals[number] = diagonal
    sums = [packing.width << k for k in range(int(math.log2(packing.copies)))]
    sums += [rows << k for k in range(int(math.log2(max(1, period // rows))))]
    return _stepped(diagonals, tuple(sums), count)


def _indexed(matrix: Matrix, packing: Packing, slots: int) -> Product:
    """A matrix by the diagonals that it needs: each weight is in the first that has its value."""
    waiting = np.zeros((packing.width, packing.period + 1))
    waiting[: matrix.shape[0], : matrix.shape[1]] = matrix
    place, held = np.arange(slots) % packing.width, packing.held(slots)
    diagonals: dict[int, Vector] = {}
    for number in range(len(packing.index)):
        if not waiting.any():
            break
        column = np.roll(held, -number)
        diagonal = waiting[place, column]
        if diagonal.any():
            diagonals[number] = diagonal
            waiting[place, column] = 0
    sums = tuple(packing.width << k for k in range(int(math.log2(packing.copies))))
    return _stepped(diagonals, sums, max(diagonals) + 1)


def summed(matrix: Matrix, packing: Packing, slots: int) -> Product | None:
    """A matrix (m, d) by one product: row i is summed over the d slots from i * d on.

    The result i stands in slot i * d. None where that does not fit, leaves no zeros, or takes more
    rotations.
    """
    outputs, period = matrix.shape[0], packing.period
    if packing.copies > 1 or packing.index or outputs * period > slots:
        return None
    padded = np.zeros((outputs, period))
    padded[:, : matrix.shape[1]] = matrix
    diagonal = np.zeros(slots)
    diagonal[: padded.size] = padded.ravel()
    sums = tuple(period >> k for k in range(1, int(math.log2(period)) + 1))
    one = Product(0, 0, 0, sums, {0: diagonal})
    if not one.zeros(slots):  # by which the client tells a wrong answer
        return None
    return one if one.rotations <= product(matrix, packing, slots, once=True).rotations else None


def _stepped(diagonals: dict[int, Vector], sums: tuple[int, ...], count: int) -> Product:
    """Diagonals in baby steps and giant steps; of the widths, the one with fewest rotations."""
    if not diagonals:
        return Product(0, 0, 0, sums, {})
    powers = [1 << k for k in range(int(math.log2(power_of_two(count))) + 1)]

    def rotations(width: int) -> tuple[int, int]:
        return max(k % width for k in diagonals), max(diagonals) // width

    # other widths need a key of their own
    width = min(
        [*powers, *range(1, count + 1)],
        key=lambda one: sum(rotations(one)) + _KEY * (one not in powers),
    )
    baby, giants = rotations(width)
    moved = {k: np.roll(diagonal, k // width * width) for k, diagonal in diagonals.items()}
    return Product(baby, width if giants else 0, giants, sums, moved)
