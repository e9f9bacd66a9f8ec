"""Trial runs that find which sizes of its variable axes a model takes.

No graph states them: a convolution needs as many values as its kernel has, a skip connection needs
multiples of its stride, and learned positions end.
"""

import bisect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from marship.contract import Array, Arrays, Contract
from marship.errors import ModelError
from marship.proof.cases import (
    DEFAULT_SIZE,
    allowed,
    draw_random,
    first_axis,
    seen_sizes,
    variable_axes,
)
from marship.proof.comparison import RunModel
from marship.proof.sizes import MOST_BYTES, input_bytes

MOST_LEAST_SIZE = 64
"""Sizes that are tried one by one, from the smallest; beyond them the search halves its range."""
MOST_ROWS = 8
"""Upper limit of the search for the rows that a model needs, if one is not enough."""
LONGEST_TABLE = 4096
"""Upper limit of tables that may bound an axis: attention over more takes gigabytes."""
LARGEST_SIZES_S = 2.0
"""Time limit of the search over tables: a run may take quadratic time."""
STEPS_S = 15.0
"""Time limit of the search for multiples: a network for photographs takes a second a run."""
VALUE_SEEDS = (0, 1)
"""A size counts as unsupported if the model fails on inputs with different values."""

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of runs at some sizes.

    Attributes:
        refused: The error of the last one; None if one ran.
        contradicted: How the outputs differ from those stated, where one ran; None if they do not.
    """

    refused: ModelError | None = None
    contradicted: ModelError | None = None


@dataclass(frozen=True, slots=True)
class Trials:
    """Runs a model at chosen sizes.

    Attributes:
        contract: The contract, as far as it is known.
        run: The model.
        examples: Inputs that it takes; None without any.
        strict: Whether it must also give outputs of the sizes that the graph states.
        deadline: When searches that may be left out stop, in time of `time.monotonic`.
    """

    contract: Contract
    run: RunModel
    examples: Arrays | None = None
    strict: bool = False
    deadline: float = field(default_factory=lambda: time.monotonic() + STEPS_S)
    _known: "dict[frozenset[tuple[str, int]], _Outcome]" = field(default_factory=dict)

    def takes(self, sizes: Sizes) -> bool:
        """Whether the model runs at these sizes, with all other sizes at their minimum."""
        return self.refusal(sizes) is None

    def runs(self, sizes: Sizes) -> bool:
        """Whether the model runs at these sizes on the first of the inputs, in one run."""
        try:
            self.run(next(self._inputs({**_least(self.contract), **sizes})))
        except ModelError:
            return False
        return True

    def refusal(self, sizes: Sizes) -> ModelError | None:
        """Why the model fails at these sizes, whatever the values; None if it runs."""
        tried = {**_least(self.contract), **sizes}
        key = frozenset(tried.items())
        if key not in self._known:
            self._known[key] = self._outcome(tried)
        found = self._known[key]
        return found.contradicted if self.strict and found.refused is None else found.refused

    def _outcome(self, sizes: Sizes) -> "_Outcome":
        if input_bytes(self.contract, sizes) > self._most_bytes():
            return _Outcome(
                ModelError("the inputs must be small enough to be tried, got larger ones.")
            )
        found = _Outcome()
        runs = False
        for inputs in self._inputs(sizes):
            try:
                outputs = self.run(inputs)
                runs = True
                self._check(outputs, sizes)
            except ModelError as error:
                found = _Outcome(None, error) if runs else _Outcome(error)
            else:
                return _Outcome()
        return found

    def outputs(self, sizes: Sizes) -> list[Arrays]:
        """The outputs at these sizes, on each of the inputs on which the model runs."""
        tried = {**_least(self.contract), **sizes}
        found = []
        for inputs in self._inputs(tried):
            with suppress(ModelError):
                found.append(self.run(inputs))
        return found

    def _check(self, outputs: Arrays, sizes: Sizes) -> None:
        """Refuse outputs of other sizes than those stated, or without values.

        A kernel larger than its input may give nothing, or one value that is then repeated. The
        first axis is not checked: its size may depend on values. Of inputs of size 0 there may be
        no values, but none that are not finite, such as the largest of nothing.

        Raises:
            ModelError: The outputs are such.
        """
        for spec in self.contract.outputs:
            got = outputs[spec.name].shape
            stated = [
                sizes.get(axis, size) if isinstance(axis, str) else size
                for axis, size in zip(spec.shape, got, strict=False)
            ]
            asked = [sizes.get(str(axis)) != 0 for axis in spec.shape]
            lost = any(size == 0 and some for size, some in zip(got[1:], asked[1:], strict=False))
            if len(got) != len(spec.shape) or lost or list(got[1:]) != stated[1:]:
                raise ModelError(f"{spec.name} must be {spec.form}, got shape {list(got)}.")
            if 0 in sizes.values() and not _is_finite(outputs[spec.name]):
                raise ModelError(f"{spec.name} must hold finite values, got others.")

    def _most_bytes(self) -> int:
        seen = {**_least(self.contract), **seen_sizes(self.contract, self.examples)}
        own = 0 if self.examples is None else 4 * input_bytes(self.contract, seen)
        return max(MOST_BYTES, own)

    def _inputs(self, sizes: Sizes) -> Iterator[Arrays]:
        """Inputs of different values: those of the examples, drawn ones, and least indices.

        Integers may be indices into another input, such as a graph's edges: what is too large for
        small sizes tells nothing about these.
        """
        if self.examples is not None:
            yield _resized(self.contract, self.examples, sizes)
        for seed in VALUE_SEEDS:
            yield draw_random(self.contract, self.examples, sizes, seed).inputs
        whole = [s.name for s in self.contract.inputs if s.dtype[:3] in ("int", "uin")]
        if whole:
            drawn = draw_random(self.contract, self.examples, sizes, 0).inputs
            seen = self.examples or {}
            yield drawn | {
                name: np.full_like(drawn[name], seen[name].min() if name in seen else 0)
                for name in whole
            }


def positive(contract: Contract, run: RunModel) -> list[Arrays]:
    """A request with whole numbers of 1 and 2 that the model takes; none if it takes none such.

    Whole numbers are drawn as 0 and 1, as masks and counts are; what divides must not be 0.
    """
    whole = [
        spec
        for spec in contract.inputs
        if spec.dtype[:3] in ("int", "uin") and spec.value_range is None and not spec.column_ranges
    ]
    sizes = {axis: allowed(contract, axis, DEFAULT_SIZE) for axis in variable_axes(contract)}
    drawn = draw_random(contract, None, sizes, 0).inputs
    drawn |= {spec.name: 1 + drawn[spec.name] % 2 for spec in whole}
    with suppress(ModelError):
        run(drawn)
        return [drawn] if whole else []
    return []


def _resized(contract: Contract, examples: Arrays, sizes: Sizes) -> Arrays:
    """The examples cut to sizes, or repeated up to them."""
    found = {}
    for spec in contract.inputs:
        array = examples[spec.name]
        for place, axis in enumerate(spec.shape):
            if isinstance(axis, str):
                array = np.take(array, np.arange(sizes[axis]) % array.shape[place], axis=place)
        found[spec.name] = np.ascontiguousarray(array)
    return found


def with_least_sizes(contract: Contract, run: RunModel, examples: Arrays | None = None) -> Contract:
    """The contract with the smallest size of each axis, or the number whose multiples it takes.

    A bound is only stated if smaller sizes fail both with small and with large sizes of other axes:
    two inputs that the model concatenates may be long enough together. Axes with a bound are left
    unchanged. An axis that has the examples' size alone is bound to it.

    Raises:
        ModelError: The model runs at none of the sizes that were tried.
    """
    trials = Trials(contract, run, examples, strict=True)
    try:
        bases = bases_of(trials)
    except ModelError:  # a graph may state other outputs than it has
        trials = replace(trials, strict=False)
        bases = bases_of(trials)
    if all(size == 1 for size in bases[0].values()):
        return contract
    bounds, steps = dict(contract.bounds), {}
    for axis in bases[0]:
        if axis in contract.bounds:
            continue
        step = _step(trials, bases[0], axis)
        if step == 0:
            bounds[axis] = (bases[0][axis], bases[0][axis])
            continue
        low = _lowest(trials, bases, axis, step)
        if low > 1:
            bounds[axis] = (low, None)
        if step > 1:
            steps[axis] = step
    return replace(contract, bounds=bounds, steps=steps)


def _is_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def bases_of(trials: Trials) -> list[dict[str, int]]:
    """Sizes of all axes: those at which the model runs, and then those to try other axes beside.

    Raises:
        ModelError: It runs at none of the sizes that were tried.
    """
    batch = first_axis(trials.contract)
    axes = variable_axes(trials.contract)
    rows = {} if batch is None else {batch: _least(trials.contract)[batch]}
    free = [axis for axis in axes if axis not in trials.contract.bounds and axis != batch]
    most = MOST_LEAST_SIZE if free else 1
    drawn = [rows | dict.fromkeys(free, size) for size in range(1, most + 1)]
    drawn += [dict.fromkeys(axes, size) for size in range(2, MOST_ROWS + 1) if rows]
    together = None
    for sizes in drawn:
        if trials.examples is not None and time.monotonic() > trials.deadline:
            break
        if trials.takes(sizes):
            together = sizes
            break
    if together is not None:
        beside = [{axis: 2 * size for axis, size in together.items()} | rows]
        return [together, *beside, rows | dict.fromkeys(free, MOST_LEAST_SIZE)]
    seen = seen_sizes(trials.contract, trials.examples)
    alike = [sizes for sizes in (seen | rows, seen) if seen and trials.takes(sizes)]
    if alike:
        return alike[:1]
    refused = trials.refusal(drawn[most - 1])
    tried = f", of sizes from 1 to {most} of {', '.join(free)}" if free else ""
    raise ModelError(
        f"{refused} Drawn inputs were tried{tried}. Give it some that it takes: --example "
        "inputs.npz."
    ) from refused


def _step(trials: Trials, base: Sizes, axis: str) -> int:
    """The number whose multiples the model takes along an axis, 1 for any size, 0 for no other.

    1 also where no multiple explains the sizes, or there is no time to find out.
    """
    size = base[axis]
    if size == 1:  # also where an axis of one value is repeated, and only one other size runs
        return 1

    def takes(other: int) -> bool:
        return trials.takes({**base, axis: other})

    divisors = [1, *(n for n in range(2, size + 1) if size % n == 0)]
    step = 0
    for number in divisors:
        if time.monotonic() > trials.deadline:
            return 1
        if takes(size + number):
            step = number
            break
    if step == 1:
        return 1
    multiplied = {name: step * n for name, n in base.items()}
    if step and trials.takes({**multiplied, axis: size + 1}):
        return 1  # what several axes must be together is no rule for each
    if step:
        others = (size + step - 1, size + step + 1, size + 2 * step)
        return step if [takes(other) for other in others] == [False, False, True] else 1
    larger = (size + more for more in range(1, MOST_LEAST_SIZE + 1))
    twice = {name: 2 * n for name, n in base.items()}
    is_only = not any(time.monotonic() > trials.deadline or takes(other) for other in larger)
    return 0 if is_only and not trials.takes(twice) else 1


def _lowest(trials: Trials, bases: Sequence[Sizes], axis: str, step: int) -> int:
    """The smallest size of an axis that the model takes beside some sizes of the others."""

    def takes(size: int) -> bool:
        return any(trials.takes({**base, axis: size}) for base in bases)

    sizes = range(step, bases[0][axis] + 1, step)
    low = next((size for size in sizes[:MOST_LEAST_SIZE] if takes(size)), None)
    if low is not None or len(sizes) <= MOST_LEAST_SIZE:
        return low or bases[0][axis]
    return sizes[bisect.bisect_left(sizes[:-1], True, MOST_LEAST_SIZE, key=takes)]


def with_largest_sizes(
    contract: Contract, run: RunModel, lengths: Sequence[int], examples: Arrays | None = None
) -> Contract:
    """The contract with an upper bound for each axis that is limited by a table's size.

    A model with 512 learned positions fails on 513 tokens. A bound is only stated if the model
    accepts as many as one of its tables has rows, and neither one more nor twice as many, which a
    model for multiples of a number would accept.

    Args:
        contract: The contract; axes with an upper bound are left unchanged.
        run: The model.
        lengths: Sizes of its tables.
        examples: Inputs that it takes; None without any.
    """
    trials = Trials(contract, run, examples)
    end = time.monotonic() + LARGEST_SIZES_S
    batch = first_axis(contract)
    seen = seen_sizes(contract, examples)
    usual = {
        axis: allowed(contract, axis, max(DEFAULT_SIZE, seen.get(axis, 0)))
        for axis in variable_axes(contract)
        if axis != batch
    }
    found = {}
    for axis in usual:
        (low, high), step = contract.bounds.get(axis, (1, None)), contract.steps.get(axis, 1)
        if high is not None:
            continue
        for length in sorted(set(lengths)):
            # a size that is skipped for its cost is not known to be unsupported
            doubled = input_bytes(contract, _least(contract) | usual | {axis: 2 * length})
            if time.monotonic() > end or doubled > MOST_BYTES:
                break
            if length < low or length % step or trials.takes(usual | {axis: length + step}):
                continue
            takes = [trials.takes(usual | {axis: n}) for n in (length, 2 * length)]
            if takes == [True, False]:
                found[axis] = (low, length)
            break
    return replace(contract, bounds={**contract.bounds, **found})


def keeping(contract: Contract, requests: Sequence[Arrays]) -> Contract:
    """The contract without the rules that one of these requests, which the model takes, breaks."""
    bounds, steps = dict(contract.bounds), dict(contract.steps)
    for request in requests:
        for axis, size in seen_sizes(contract, request).items():
            if not contract.takes_size(axis, size):
                bounds.pop(axis, None)
                steps.pop(axis, None)
    return replace(contract, bounds=bounds, steps=steps)


def _least(contract: Contract) -> dict[str, int]:
    """The minimum size of the batch and of each axis with a bound."""
    batch = first_axis(contract)
    rows = {} if batch is None else {batch: contract.bounds.get(batch, (1, None))[0]}
    return {axis: low for axis, (low, _) in contract.bounds.items()} | rows
