"""Further sizes and values for the parity proof: edges and random ones.

Sizes of different axes are drawn independently, to detect a graph that is only valid for equal
sizes. Values of "wide" cases span several orders of magnitude, with zeros and ties.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from marship.contract import Array, Arrays, Contract
from marship.proof.cases import (
    Case,
    allowed,
    draw,
    draw_random,
    first_axis,
    seen_sizes,
    sizes_to_try,
)

MOST_ROWS = 65
"""Largest size of an unbounded batch, which includes the neighbours of 64."""
MOST_BYTES = 8 << 20
"""Of the inputs of one case: activations may take a hundred times their memory."""
DRAWN = 12
MAGNITUDES = (1.0, 1e-3, 10.0, 1e-1, 100.0)
ZERO_SHARE = 0.1


def further_sizes(
    contract: Contract, examples: Arrays, seed: int
) -> Iterator[tuple[str, dict[str, int]]]:
    """Kinds of cases and their sizes: edges, the smallest first, then random ones by `seed`."""
    generator = np.random.default_rng(seed)
    ranges = _ranges(contract, examples)
    seen = seen_sizes(contract, examples)
    edges = {
        axis: _edges(low, high, seen[axis], contract.steps.get(axis, 1))
        for axis, (low, high) in ranges.items()
    }
    count = max(map(len, edges.values()), default=1)
    found = []
    for values in edges.values():
        generator.shuffle(values)
    for number in range(count):
        sizes = {axis: values[number % len(values)] for axis, values in edges.items()}
        found.append(_bounded(contract, sizes, ranges))
    found.sort(key=lambda sizes: input_bytes(contract, sizes))
    for _ in range(DRAWN):
        drawn = {
            axis: allowed(contract, axis, _between(generator, *bounds))
            for axis, bounds in ranges.items()
        }
        found.append(_bounded(contract, drawn, ranges))
    for number, sizes in enumerate(found):
        yield ("real", "random", "wide")[number % 3], sizes


def further_case(
    contract: Contract, examples: Arrays, kind: str, sizes: Mapping[str, int], seed: int
) -> Case:
    """The inputs of such a case; real ones are limited to the examples' sizes."""
    if kind == "real":
        return draw(contract, examples, sizes, seed)
    case = draw_random(contract, examples, sizes, seed)
    if kind == "random":
        return case
    generator = np.random.default_rng(seed)
    inputs = {name: _wide(array, generator) for name, array in case.inputs.items()}
    return Case("wide", sizes, inputs)


def input_bytes(contract: Contract, sizes: Mapping[str, int]) -> int:
    """The size of all inputs; strings count as 8 bytes."""
    return sum(
        math.prod(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        * (8 if spec.dtype == "str" else np.dtype(spec.dtype).itemsize)
        for spec in contract.inputs
    )


def _ranges(contract: Contract, examples: Arrays) -> dict[str, tuple[int, int]]:
    levels = sizes_to_try(contract, examples)
    ranges = {axis: (levels[0][axis], levels[-1][axis]) for axis in levels[0]}
    batch = first_axis(contract)
    if batch is not None:
        low, high = contract.bounds.get(batch, (1, None))
        ranges = {batch: (low, high or max(low, MOST_ROWS))} | ranges
    return ranges


def _edges(low: int, high: int, seen: int, step: int) -> list[int]:
    """Both ends, the traced size, powers of two and of three, each with its neighbours."""
    powers = [base**exponent for base in (2, 3) for exponent in range(1, 40)]
    around = (low, high, seen, *(power for power in powers if power <= high + 1))
    near = {n - n % step + step * side for n in around for side in (-1, 0, 1)}
    return sorted(n for n in near if low <= n <= high)


def _between(generator: np.random.Generator, low: int, high: int) -> int:
    """A random size, log-uniform."""
    return int(min(high, math.exp(generator.uniform(math.log(low), math.log(high + 1)))))


def _bounded(
    contract: Contract, sizes: dict[str, int], ranges: Mapping[str, tuple[int, int]]
) -> dict[str, int]:
    """The sizes with fewer rows if the inputs would be too large."""
    batch = first_axis(contract)
    if batch is None:
        return sizes
    most = MOST_BYTES // max(1, input_bytes(contract, sizes | {batch: 1}))
    rows = max(ranges[batch][0], min(sizes[batch], most))
    return sizes | {batch: allowed(contract, batch, rows)}


def _wide(values: Array, generator: np.random.Generator) -> Array:
    """Rows of different magnitudes, with zeros and ties; with both signs if the examples have."""
    if values.dtype.kind != "f" or values.ndim == 0:
        return values
    rows = np.resize(np.roll(MAGNITUDES, int(generator.integers(len(MAGNITUDES)))), len(values))
    with np.errstate(over="ignore"):
        wide = values * rows.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
    if (values < 0).any():
        wide = wide * generator.choice(np.array([-1, 1], values.dtype), values.shape)
    wide[generator.random(values.shape) < ZERO_SHARE] = 0
    if values.ndim > 1:
        wide[..., -1] = wide[..., 0]
    limits = np.finfo(values.dtype)
    return np.ascontiguousarray(np.clip(wide, limits.min, limits.max).astype(values.dtype))
