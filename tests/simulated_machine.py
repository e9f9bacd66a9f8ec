"""Machines that are made up, on which candidates of `marship tune` are measured in no time."""

import math
from dataclasses import dataclass, field

import numpy as np

from marship.operate.tune.candidate import Candidate, Choices
from marship.operate.tune.figures import Demands, LoadSlice, Measured
from marship.operate.tune.search import Search, Steps, ToMeasure


@dataclass
class Machine:
    """Cores, a model with variants, and clients that wait: by queueing laws, with noise.

    Attributes:
        rng: Draws all of it, and the noise.
    """

    rng: np.random.Generator
    noise: float = 0.04
    cores: int = field(init=False)
    clients: int = field(init=False)

    def __post_init__(self) -> None:
        draw = self.rng
        self.cores = int(draw.choice([2, 2, 4, 8]))
        self.clients = int(draw.choice([4, 16, 64]))
        self._fixed_ms = 10 ** draw.uniform(-1.5, 0)
        self._row_ms = 10 ** draw.uniform(-1.5, 1)
        self._request_ms = 10 ** draw.uniform(-2, -0.5)
        self._parallel = draw.uniform(0.2, 0.95)
        self._contention = draw.uniform(0.05, 0.4)
        self._uneven = draw.uniform(0, 2)  # how much longer the tail of large batches is
        self._spin = draw.uniform(0.9, 1.1)
        self.variants = {"exported": 1.0} | {
            name: draw.uniform(0.4, 1.6) for name in ("float32", "int8")[: int(draw.integers(0, 3))]
        }
        self.memory_mb = float(draw.uniform(50, 400))
        self.measured = 0

    def grid(self) -> list[Candidate]:
        """All ways of this machine."""
        return Choices(list(self.variants), self.cores, self.clients).grid()

    def truth(self, one: Candidate) -> Measured:
        """Without noise."""
        rows = max(1.0, min(one.batch, self.clients / one.workers))
        used = 1 + (one.threads - 1) * self._parallel / (1 + 2 / rows)
        call = (self._fixed_ms + self._row_ms * rows / used) * self.variants[one.variant]
        call *= self._spin if one.spinning else 1
        over = one.workers * one.threads / self.cores
        crowd = max(1.0, one.workers / self.cores) * (1 + self._contention * max(0.0, over - 1))
        took = (call + self._request_ms * rows) * crowd
        rps = 1000 * min(one.workers * rows / took, self.clients / took)
        p99 = 1000 * self.clients / rps * (1.3 + 0.2 * max(0.0, over - 1))
        p99 *= 1 + self._uneven * math.log2(rows)
        return Measured(
            one,
            (LoadSlice(1.0, round(rps) or 1, 0, p99 / 2, p99),),
            one.workers * self.memory_mb * (0.3 if one.variant == "int8" else 1.0),
        )

    def measure(self, wanted: ToMeasure) -> Measured:
        """As a server would be measured."""
        self.measured += 1
        true = self.truth(wanted.candidate)
        slices = []
        for _ in range(wanted.slices):
            fast, slow = np.exp(self.rng.normal(0, self.noise, 2))
            one = true.slices[0]
            slices.append(
                LoadSlice(1.0, round(one.answered * fast) or 1, 0, one.p50_ms, one.p99_ms * slow)
            )
        return Measured(true.candidate, tuple(slices), true.memory_mb)

    def demands(self, *, is_tight: bool) -> Demands:
        """Demands that some of the grid keeps."""
        p99 = sorted(self.truth(one).p99_ms for one in self.grid())
        return Demands(p99[len(p99) // 8] if is_tight else 10 * p99[-1])

    def best(self, demands: Demands) -> Measured:
        """The best of the full grid, without noise."""
        return demands.ranked([self.truth(one) for one in self.grid()])[0]


def run(steps: Steps, machine: Machine) -> None:
    """Measure what a search asks for."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(machine.measure(wanted))
    except StopIteration:
        return


def searched(machine: Machine, demands: Demands) -> Search:
    """A search that ran to its end."""
    shipped = Candidate("exported", 1, machine.cores, 1)
    search = Search(machine.grid(), shipped, demands, machine.cores)
    run(search.steps(), machine)
    return search


def shares(seeds: range, *, is_tight: bool) -> list[float]:
    """What the search's winner has of the best of the full grid, for each machine."""
    found = []
    for seed in seeds:
        machine = Machine(np.random.default_rng(seed))
        demands = machine.demands(is_tight=is_tight)
        search = searched(machine, demands)
        best = demands.score(machine.best(demands))
        within = [
            demands.score(true)
            for one in search.finalists
            if (true := machine.truth(one.candidate)).p99_ms <= 1.1 * demands.p99_ms
        ]
        found.append(max(within, default=math.nan) / best)
    return found
