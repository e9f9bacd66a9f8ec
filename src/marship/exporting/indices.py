"""Inputs whose values are places of an axis of variable size: edges of a graph, lengths, positions.

A drawn case keeps the example's values at other sizes, at which PyTorch then fails. Only that shows
that they are places.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from marship.contract import Array, Arrays, Contract
from marship.errors import ModelError
from marship.proof.cases import Case, first_axis
from marship.proof.comparison import RunModel


def run_within(
    reference: RunModel, case: Case, contract: Contract, examples: Arrays
) -> tuple[Case, Arrays]:
    """A case that PyTorch runs, and its outputs: integers are below the size of an axis if need be.

    Raises:
        ModelError: It does not run with those either.
    """
    try:
        return case, reference(case.inputs)
    except ModelError:
        for other in _within_an_axis(case, contract, examples):
            try:
                return other, reference(other.inputs)
            except ModelError:
                continue
        raise


def _within_an_axis(case: Case, contract: Contract, examples: Arrays) -> Sequence[Case]:
    """The case with its integers brought below the size of each axis but the batch."""
    names = [
        spec.name
        for spec in contract.inputs
        if spec.dtype.startswith(("int", "uint")) and spec.value_range is None
    ]
    batch = first_axis(contract)
    sizes = sorted({size for axis, size in case.sizes.items() if axis != batch}, reverse=True)
    starts = {k: int(examples[k].min(initial=1)) >= 1 for k in names}  # from 1 on, as lengths are
    return [
        replace(
            case,
            inputs=case.inputs
            | {k: _from(case.inputs[k], int(starts[k] and counts), size) for k in names},
        )
        for size in (sizes if names else ())
        for counts in (True, False)
    ]


def _from(values: Array, low: int, size: int) -> Array:
    """Values of `size` kinds from `low` on."""
    return np.asarray((values - low) % size + low).astype(values.dtype)
