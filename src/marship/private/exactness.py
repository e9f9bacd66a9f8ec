"""Whether encrypted answers are exact enough to be worth anything."""

import numpy as np

from marship.errors import ParityError
from marship.private.measure import Figures, Rows
from marship.serving.private.plan import HePlan

MOST_ERROR = 0.01
"""Of the largest output. All later checks, golden replay, known cases and noise, take the measured
error as their measure, so here alone it meets one that does not grow with it. The worst example in
docs/private.md has a twentieth of it; a user may be content with two digits, but not with fewer."""


def check(figures: Figures, plan: HePlan, names: tuple[str, ...], rows: Rows) -> None:
    """Refuse a plan whose answers are far from the model's.

    Args:
        figures: As measured.
        plan: The plan.
        names: The tensor that each of its steps leads to.
        rows: Inputs, float64 (rows, inputs).

    Raises:
        ParityError: The error is above `MOST_ERROR` of the largest output.
    """
    if figures.error <= MOST_ERROR * figures.largest:
        return
    peaks = [float(np.abs(values).max()) for values in plan.registers(rows)[1:]]
    # what is far from 1 loses most: small values to the noise, large ones as they cancel
    distances = np.abs(np.log2(np.maximum(peaks, np.finfo(float).tiny)))
    worst = int(np.argmax(distances))
    raise ParityError(
        f"encrypted answers must be within {100 * MOST_ERROR:g} % of the largest output, "
        f"{figures.largest:.3g}, got an error of {figures.error:.3g}; the values farthest from 1 "
        f"are those of {names[worst]}, up to {peaks[worst]:.3g}. Scale its weights so that values "
        "are about 1 (batch norm), and keep the square's factor in an activation from being "
        "small: a small one times h^2, beside h, is best left out."
    )
