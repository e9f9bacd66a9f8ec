"""An input packed by the phases of a convolution: few diagonals in place of hundreds.

A convolution with stride s reads pixels that are s apart for outputs that are neighbours. The
pixels of one phase, y mod s and x mod s, are therefore a block of slots, in which outputs that are
neighbours read neighbours. All taps of a 5 x 5 kernel with stride 2 are then 9 rotations of all
blocks at once, whatever the channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product as pairs

import numpy as np

from marship.serving.private.packing import Indices, Matrix, Packing, power_of_two
from marship.serving.private.plan import INPUT, Affine, HePlan, Power, Step

_IMAGE_AXES = 3
_MOST_STRIDE = 4

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Phases:
    """The geometry: images of shape (channels, height, width), and the stride between outputs."""

    given: Shape
    made: Shape
    stride: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a phase."""
        return math.ceil(self.given[1] / self.stride), math.ceil(self.given[2] / self.stride)

    @property
    def width(self) -> int:
        """Slots of a block: a phase for each channel of the output."""
        return power_of_two(self.made[0] * self.grid[0] * self.grid[1])

    @property
    def blocks(self) -> int:
        """One for each phase and channel of the input."""
        return power_of_two(self.given[0] * self.stride**2)

    def packing(self, matrix: Matrix) -> Packing:
        """How the client packs the input, so that the first tap needs no rotation."""
        (rows, columns), places = self.grid, self.inputs()
        index = np.full(self.blocks * self.width, -1)
        for block, values in enumerate(places):
            for channel in range(self.made[0]):
                start = block * self.width + channel * rows * columns
                index[start : start + rows * columns] = values
        first = self._first_offset(matrix, places)
        shifted = tuple(int(value) for value in np.roll(index, -first))
        return Packing(int(np.prod(self.given)), self.width, self.blocks, 0, shifted)

    def inputs(self) -> list[Indices]:
        """The input's values of each block, -1 where a phase has none."""
        channels, height, width = self.given
        numbers = np.full((channels, *(self.stride * size for size in self.grid)), -1)
        numbers[:, :height, :width] = np.arange(channels * height * width).reshape(self.given)
        steps = range(self.stride)
        return [
            numbers[c, y :: self.stride, x :: self.stride].ravel()
            for c, y, x in pairs(range(channels), steps, steps)
        ]

    def outputs(self) -> Indices:
        """The slot of each of the output's values in a block."""
        rows, columns = self.grid
        channels, height, width = (np.arange(size) for size in self.made)
        place = (channels[:, None, None] * rows + height[:, None]) * columns + width
        return np.asarray(place.ravel())

    def _first_offset(self, matrix: Matrix, places: list[Indices]) -> int:
        """The least distance from an output's slot to that of a value that it reads."""
        slot = np.zeros(matrix.shape[1], np.int64)
        for values in places:
            slot[values[values >= 0]] = np.flatnonzero(values >= 0)
        rows, columns = np.nonzero(matrix)
        own = self.outputs()[rows] % (self.grid[0] * self.grid[1])
        return int((slot[columns] - own).min())


def phased(plan: HePlan, given: Shape, made: Shape) -> Iterator[HePlan]:
    """The plan with its input packed by phases, for each stride that fits.

    Args:
        plan: One whose first step is the only one that reads the input.
        given: The shape of a row of the input.
        made: The shape that the first step's result has in the model.
    """
    first = plan.steps[0]
    if not (len(given) == len(made) == _IMAGE_AXES and isinstance(first, Affine)):
        return
    if sum(_reads_input(step) for step in plan.steps) != 1 or len(plan.steps) == 1:
        return
    for stride in range(1, _MOST_STRIDE + 1):
        phases = _Phases(given, made, stride)
        fits = all(size <= cells for size, cells in zip(made[1:], phases.grid, strict=True))
        if fits and phases.blocks * phases.width <= plan.ring.slots:
            packing = phases.packing(first.matrices[INPUT])
            steps = tuple(_moved(plan.steps, phases.outputs(), phases.width))
            yield replace(plan, steps=steps, given=packing)


def _reads_input(step: Step) -> bool:
    return INPUT in step.matrices if isinstance(step, Affine) else step.register == INPUT


def _moved(steps: tuple[Step, ...], places: Indices, width: int) -> Iterator[Step]:
    """The steps, with the values of the first one at other places."""
    moved = {1}
    for index, step in enumerate(steps):
        if isinstance(step, Power):
            linear = step.linear
            if step.register in moved:
                moved.add(index + 1)
                linear = None if linear is None else _spread(linear, places, width)
            yield Power(step.register, linear)
            continue
        matrices = {
            register: _spread(matrix.T, places, width).T if register in moved else matrix
            for register, matrix in step.matrices.items()
        }
        bias = step.bias
        if index == 0:
            matrices = {INPUT: _spread(matrices[INPUT], places, width)}
            bias = _spread(bias, places, width)
        yield Affine(matrices, bias)


def _spread(array: Matrix, places: Indices, width: int) -> Matrix:
    """The rows of an array at their places among zeros."""
    wide = np.zeros((width, *array.shape[1:]))
    wide[places] = array
    return wide
