"""Further sizes and values for the parity proof: edges and random ones.

Sizes of different axes are drawn independently, to detect a graph that is only valid for equal
sizes. Values of "wide" cases span several orders of magnitude, with zeros and ties.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from marship.contract import Array, Arrays, Contract
from marship.errors import ModelError
from marship.proof.cases import (
    DEFAULT_SIZE,
    Case,
    draw,
    draw_random,
    first_axis,
    seen_sizes,
    sizes_to_try,
)

RunModel = Callable[[Arrays], Arrays]

MOST_ROWS = 65
"""Largest size of an unbounded batch, which includes the neighbours of 64."""
MOST_BYTES = 8 << 20
"""Of the inputs of one case: activations may take a hundred times their memory."""
MOST_LEAST_SIZE = 64
"""Upper limit of the search for the smallest size of an axis."""
LONGEST_TABLE = 4096
"""Upper limit of tables that may bound an axis: attention over more takes gigabytes."""
LARGEST_SIZES_S = 2.0
"""Time limit of the search over tables: a run may take quadratic time."""
VALUE_SEEDS = (0, 1)
"""A size counts as unsupported if the model fails on inputs with different values."""
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
    edges = {axis: _edges(low, high, seen[axis]) for axis, (low, high) in ranges.items()}
    count = max(map(len, edges.values()), default=1)
    found = []
    for values in edges.values():
        generator.shuffle(values)
    for number in range(count):
        sizes = {axis: values[number % len(values)] for axis, values in edges.items()}
        found.append(_bounded(contract, sizes, ranges))
    found.sort(key=lambda sizes: input_bytes(contract, sizes))
    for _ in range(DRAWN):
        drawn = {axis: _between(generator, *bounds) for axis, bounds in ranges.items()}
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


def with_least_sizes(contract: Contract, run: RunModel) -> Contract:
    """The contract with a lower bound for each axis whose smallest sizes are unsupported.

    A convolution without padding fails on a row shorter than its kernel, which only a run shows. A
    bound is only stated if smaller sizes fail both with small and with large sizes of other axes:
    two inputs that the model concatenates may be long enough together. Axes with a bound, and the
    batch, are left unchanged.
    """
    axes = [axis for axis in sizes_to_try(contract, None)[0] if axis not in contract.bounds]
    takes = partial(_takes, contract, run)
    together = next(
        (n for n in range(1, MOST_LEAST_SIZE + 1) if takes(dict.fromkeys(axes, n))), None
    )
    if together in (None, 1):
        return contract
    found = {}
    beside = [dict.fromkeys(axes, size) for size in (together, 2 * together, MOST_LEAST_SIZE)]
    for axis in axes:
        low = next(n for n in range(1, together + 1) if any(takes(o | {axis: n}) for o in beside))
        if low > 1:
            found[axis] = (low, None)
    return replace(contract, bounds={**contract.bounds, **found})


def with_largest_sizes(contract: Contract, run: RunModel, lengths: Sequence[int]) -> Contract:
    """The contract with an upper bound for each axis that is limited by a table's size.

    A model with 512 learned positions fails on 513 tokens. A bound is only stated if the model
    accepts as many as one of its tables has rows, and neither one more nor twice as many, which a
    model for multiples of a number would accept.

    Args:
        contract: The contract; axes with an upper bound are left unchanged.
        run: The model.
        lengths: Sizes of its tables.
    """
    end = time.monotonic() + LARGEST_SIZES_S
    lows = {axis: contract.bounds.get(axis, (1, None)) for axis in sizes_to_try(contract, None)[0]}
    usual = {axis: max(low, DEFAULT_SIZE) for axis, (low, _) in lows.items()}
    found = {}
    for axis, (low, high) in lows.items():
        if high is not None:
            continue
        for length in sorted(set(lengths)):
            # a size that is skipped for its cost is not known to be unsupported
            doubled = input_bytes(contract, _least(contract) | usual | {axis: 2 * length})
            if time.monotonic() > end or doubled > MOST_BYTES:
                break
            if low <= length and not _takes(contract, run, usual | {axis: length + 1}):
                takes = [_takes(contract, run, usual | {axis: n}) for n in (length, 2 * length)]
                if takes == [True, False]:
                    found[axis] = (low, length)
                break
    return replace(contract, bounds={**contract.bounds, **found})


def _takes(contract: Contract, run: RunModel, sizes: Mapping[str, int]) -> bool:
    """Whether the model runs at these sizes, with all other sizes at their minimum."""
    tried = {**_least(contract), **sizes}
    if input_bytes(contract, tried) > MOST_BYTES:
        return False
    return any(_runs(run, draw_random(contract, None, tried, seed)) for seed in VALUE_SEEDS)


def _least(contract: Contract) -> dict[str, int]:
    """The minimum size of the batch and of each axis with a bound."""
    batch = first_axis(contract)
    rows = {} if batch is None else {batch: contract.bounds.get(batch, (1, None))[0]}
    return {axis: low for axis, (low, _) in contract.bounds.items()} | rows


def _runs(run: RunModel, case: Case) -> bool:
    try:
        run(case.inputs)
    except ModelError:
        return False
    return True


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


def _edges(low: int, high: int, seen: int) -> list[int]:
    """Both ends, the traced size, powers of two and of three, each with its neighbours."""
    powers = [base**exponent for base in (2, 3) for exponent in range(1, 40)]
    around = (low, high, seen, *(power for power in powers if power <= high + 1))
    return sorted({n + step for n in around for step in (-1, 0, 1) if low <= n + step <= high})


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
    return sizes | {batch: max(ranges[batch][0], min(sizes[batch], most))}


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
