"""How long a call of the model takes, measured when it is loaded: for a row alone and for several.

Where rows come in multiples, such a multiple is what one row is elsewhere.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from marship.contract import Arrays, Contract

JOINED_ROWS = 4
LONG_S = 0.2
"""A model whose call takes longer is measured with two rows, once."""
GAIN = 0.8
"""Joining pays where a row in company takes at most this part of a row alone."""
_RUNS = 3


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a call.

    Attributes:
        alone_s: Of one row.
        joined_s: Of each row where several share a call; as alone where that cannot be.
    """

    alone_s: float
    joined_s: float

    @property
    def joining_pays(self) -> bool:
        """Whether rows in company take less time each."""
        return self.joined_s <= GAIN * self.alone_s


def measure(run: Callable[[Arrays], Arrays], contract: Contract, case: Arrays) -> Pace:
    """Time one row against several of it in one call.

    Args:
        run: Calls the model.
        contract: Says which axis is the batch.
        case: Inputs that the model takes.
    """
    axis = contract.batch_axis
    if axis is None:
        alone_s = _fastest(run, case, 1)
        return Pace(alone_s, alone_s)
    least = contract.least_rows
    row = {spec.name: case[spec.name][:least] for spec in contract.inputs}
    run(row)
    alone_s = _fastest(run, row, 1)
    high = contract.bounds.get(axis, (1, None))[1]
    runs, rows = (1, 2) if alone_s > LONG_S else (_RUNS, JOINED_ROWS)
    rows = min(rows, (high or rows * least) // least)
    if rows < 2:  # noqa: PLR2004
        return Pace(alone_s, alone_s)
    joined = {name: np.concatenate([array] * rows) for name, array in row.items()}
    run(joined)
    if runs > 1:
        alone_s = _fastest(run, row, runs)
    return Pace(alone_s, _fastest(run, joined, runs) / rows)


def _fastest(run: Callable[[Arrays], Arrays], inputs: Arrays, runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - began)
    return min(times)
