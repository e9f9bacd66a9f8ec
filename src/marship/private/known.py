"""Known cases: inputs that are nobody's data, with the plan's own answers."""

import numpy as np

from marship.private.client_file import KnownCase
from marship.serving.private.packing import Matrix
from marship.serving.private.plan import HePlan

COUNT = 4
_EXPONENTS = range(40, -41, -1)


def draw(plan: HePlan, seen: Matrix) -> tuple[KnownCase, ...]:
    """Normal numbers, as large as keeps all values of the plan within those of rows seen.

    The server cannot read a question, so it need not look like data; the client file is public, so
    it must not be any. Of the rows seen only the power of two tells something.

    Args:
        plan: The plan.
        seen: Inputs for which the ring was chosen, float64 (rows, inputs).
    """
    rows = np.random.default_rng(0).normal(size=(COUNT, plan.inputs))
    bounds = _peaks(plan, seen)
    for exponent in _EXPONENTS:
        scaled = rows * 2.0**exponent
        if (_peaks(plan, scaled) <= bounds).all():
            break
    answers = plan.compute(scaled)
    return tuple(KnownCase(row, answer) for row, answer in zip(scaled, answers, strict=True))


def _peaks(plan: HePlan, rows: Matrix) -> Matrix:
    """The largest value in each register."""
    return np.array([np.abs(values).max() for values in plan.registers(rows)])
