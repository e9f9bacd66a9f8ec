"""Finds axes that may be empty: no cache before the first step, a graph without edges, no boxes."""

from collections.abc import Iterator
from dataclasses import replace

from marship.contract import Arrays, Contract
from marship.errors import ModelError
from marship.proof.cases import first_axis, variable_axes
from marship.proof.comparison import RunModel
from marship.proof.rounding import same
from marship.proof.trials import Sizes, Trials, bases_of

MULTIPLES = (1, 2, 3)
"""Of usual sizes, at which other values are computed between two runs that must be equal."""


def with_empty_axes(contract: Contract, run: RunModel, examples: Arrays | None = None) -> Contract:
    """The contract with 0 as the smallest size of the axes at which the model takes it.

    Not of the batch, nor of axes without which no input has values: such a request asks nothing.
    An operator may end the process.

    Args:
        contract: The contract with its least sizes and steps.
        run: The model.
        examples: Inputs that it takes; None without any.
    """
    trials = Trials(contract, run, examples, strict=True)
    try:
        bases = bases_of(trials)[:2]
    except ModelError:  # a graph may state other outputs than it has
        return contract
    found = [
        axis for axis in _candidates(contract) if any(_repeats(trials, b, axis) for b in bases)
    ]
    return replace(contract, bounds={**contract.bounds, **dict.fromkeys(found, (0, None))})


def _candidates(contract: Contract) -> Iterator[str]:
    """Axes that have their step as their least size, beside an input with values."""
    for axis in variable_axes(contract):
        is_free = contract.bounds.get(axis, (1, None)) == (contract.steps.get(axis, 1), None)
        has_others = any(axis not in spec.shape for spec in contract.inputs)
        if is_free and has_others and axis != first_axis(contract) and contract.outputs:
            yield axis


def _repeats(trials: Trials, base: Sizes, axis: str) -> bool:
    """Whether the model runs at size 0 of an axis, and gives the same after runs of other values.

    An operator may leave memory in its outputs as it was.
    """
    empty = {**base, axis: 0}
    if not trials.takes(empty):
        return False
    first, *_ = trials.outputs(empty)
    for size in MULTIPLES:
        trials.outputs({name: size * n for name, n in base.items()})
        if any(not same(first[name], array) for name, array in trials.outputs(empty)[0].items()):
            return False
    return True
