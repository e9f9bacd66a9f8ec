"""A model of the machine: what settings that were not measured would give.

A Gaussian process (Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, equations
2.25 and 2.26) over logarithms: twice the workers, threads or batch are one step, and threads for
each core count as such, since contention begins there. It has one kernel for answers a second, p99
and memory; whatever is next to what was measured is known better than what is far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, Measured

Floats = npt.NDArray[np.float64]
_REACH = 2.0
"""Over so many steps a measurement tells something."""
_NOISE, _LEAST_SPREAD = 0.05, 0.3
"""Of a measurement, and of a figure over the grid, both in logarithms."""
_WEIGHTS = (1.0, 1.0, 1.0, 0.6, 0.6, 0.5)
_OTHER = 1.2
"""How far another variant or host is."""
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of candidates: means and deviations of a figure's logarithm, shape (n,)."""

    mean: Floats
    deviation: Floats

    def below(self, limit: float) -> Floats:
        """How probable it is that the figure is below a limit, shape (n,)."""
        share = (math.log(limit) - self.mean) / self.deviation
        return np.array([_NORMAL.cdf(one) for one in share])

    def gain_over(self, best: float) -> Floats:
        """Expected improvement over the best (Jones et al. 1998, equation 15), shape (n,)."""
        over = self.mean - math.log(best)
        steps = over / self.deviation
        cdf = np.array([_NORMAL.cdf(one) for one in steps])
        pdf = np.array([_NORMAL.pdf(one) for one in steps])
        found: Floats = np.maximum(0.0, over * cdf + self.deviation * pdf)
        return found


def places(candidates: Sequence[Candidate], cores: int) -> Floats:
    """Where candidates lie among each other, shape (n, features)."""
    names = sorted({one.variant for one in candidates}), sorted({one.host for one in candidates})
    rows = [_place(one, cores, *names) for one in candidates]
    return np.array(rows, dtype=np.float64)


def _place(one: Candidate, cores: int, variants: list[str], hosts: list[str]) -> list[float]:
    ladder = (
        math.log2(one.workers),
        math.log2(one.threads),
        max(0.0, math.log2(one.workers * one.threads / cores)),
        math.log2(one.batch),
        math.log2(one.delay_ms),
        float(one.spinning),
    )
    steps = [weight * value for weight, value in zip(_WEIGHTS, ladder, strict=True)]
    kinds = [_OTHER * (one.variant == name) / math.sqrt(2) for name in variants]
    return [*steps, *kinds, *(_OTHER * (one.host == name) / math.sqrt(2) for name in hosts)]


def distances(a: Floats, b: Floats) -> Floats:
    """Between all rows of two arrays, shape (len(a), len(b))."""
    found: Floats = np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1))
    return found


class MachineModel:
    """What is known after some measurements.

    Args:
        seen: Measurements with figures, at least one.
        cores: Usable cores.
        others: The candidates that are asked about.
    """

    def __init__(self, seen: Sequence[Measured], others: Sequence[Candidate], cores: int) -> None:
        at = places([*(one.candidate for one in seen), *others], cores)
        known, asked = at[: len(seen)], at[len(seen) :]
        self._seen = seen
        self._between = _kernel(known, known)
        self._across = _kernel(asked, known)
        self._counts = np.array([max(1, len(one.slices)) for one in seen])

    def forecast(self, figures: Sequence[float]) -> Forecast:
        """What is expected of a figure, given it for each measurement."""
        logs = np.log(np.maximum(figures, 1e-9))
        mean = float(logs.mean())
        spread = max(_LEAST_SPREAD, float(logs.std()))
        noise = (_NOISE / spread) ** 2 / self._counts
        gain = np.linalg.solve(self._between + np.diag(noise), self._across.T).T
        left = np.maximum(1e-6, 1.0 - (gain * self._across).sum(axis=1))
        return Forecast(mean + gain @ (logs - mean), spread * np.sqrt(left))

    def promise(self, demands: Demands) -> Floats:
        """The improvement that is expected within the limits, shape (n,).

        While nothing is within them, it is how probable that is.
        """
        p99 = self.forecast([one.p99_ms for one in self._seen])
        found = p99.below(demands.p99_ms)
        if demands.memory_mb is not None:
            memory = self.forecast([one.memory_mb for one in self._seen])
            found = found * memory.below(demands.memory_mb)
        best = demands.ranked(self._seen)[0]
        if demands.objection(best):
            return found
        score = self.forecast([demands.score(one) for one in self._seen])
        return found * score.gain_over(demands.score(best))


def _kernel(a: Floats, b: Floats) -> Any:  # noqa: ANN401  NumPy's own
    return np.exp(-0.5 * (distances(a, b) / _REACH) ** 2)
