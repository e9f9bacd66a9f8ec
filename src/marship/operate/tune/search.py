"""Which candidate is measured next: successive halving, with a model of the machine.

First some candidates far apart, then those of which the model expects most, each for one slice of
load; of the best, two in five are measured again for twice as long, until few are left (successive
halving: Jamieson and Talwalkar 2016). The generator yields what to measure, and is sent the result:
so the same search runs on servers, on the file of an earlier run, and on a simulated machine.
"""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, Measured
from marship.operate.tune.machine import MachineModel, distances, places

SHARE, LEAST = 0.2, 12
"""Starts of servers, as a share of the grid, and at least."""
FINALISTS = 3
_KEPT = 0.4
"""The share of each round that is measured again."""
_SPREAD = 0.2
"""The share of starts that go far apart, before the model is asked."""
_HOPELESS = 0.5


@dataclass(frozen=True, slots=True)
class ToMeasure:
    """The next measurement.

    Attributes:
        candidate: What to serve.
        slices: For how many slices of load.
        least_score: A score under which it is stopped at the first look.
    """

    candidate: Candidate
    slices: int
    least_score: float = 0.0


Steps = Generator[ToMeasure, Measured, None]


def most_starts(grid: Sequence[Candidate]) -> int:
    """How many servers are started for a grid."""
    return min(len(grid), max(LEAST, math.ceil(SHARE * len(grid))))


def later_starts(count: int) -> int:
    """How many servers are started to find the finalists of so many candidates.

    Example:
        >>> later_starts(20)  # 8, then 4, then 3
        15
    """
    total = 0
    while count > FINALISTS:
        count = max(FINALISTS, math.ceil(_KEPT * count))
        total += count
    return total


class Search:
    """A search over a grid.

    Args:
        grid: All candidates.
        shipped: The archive's own settings, measured first.
        demands: What candidates must keep.
        cores: Usable cores.
        is_late: Whether there is no time for a measurement: what was measured until then is
            ranked.

    Attributes:
        seen: All that was measured, by candidate.
        ruled_out: Candidates that were not measured, since others showed that they cannot be
            chosen, with the reason.
        finalists: The best, first the best, without the shipped settings.
        is_over: Whether the time was over before all was measured.
    """

    def __init__(
        self,
        grid: Sequence[Candidate],
        shipped: Candidate,
        demands: Demands,
        cores: int,
        is_late: Callable[[ToMeasure], bool] = lambda _: False,
    ) -> None:
        self._grid = [one for one in grid if one != shipped]
        self._shipped, self._demands, self._cores = shipped, demands, cores
        self._is_late = is_late
        self._most = most_starts(grid)
        self.seen: dict[Candidate, Measured] = {}
        self.ruled_out: dict[Candidate, str] = {}
        self.finalists: list[Measured] = []
        self.is_over = False

    def steps(self) -> Steps:
        """Yield what to measure, until the finalists are known."""
        yield from self._measure(self._shipped, 1)
        yield from self._look()
        kept, slices = self._ranked(self.seen), 2
        while len(kept) > FINALISTS:
            kept = kept[: max(FINALISTS, math.ceil(_KEPT * len(kept)))]
            for one in kept:
                yield from self._measure(one.candidate, slices)
            kept, slices = self._ranked(one.candidate for one in kept), 2 * slices
        self.finalists = kept

    def untried(self) -> list[Candidate]:
        """What was neither measured nor ruled out."""
        return [one for one in self._grid if one not in self.seen and one not in self.ruled_out]

    def _look(self) -> Steps:
        """The first looks: some far apart, then where the model expects most."""
        spread = math.ceil(_SPREAD * self._most)
        while len(self.seen) + later_starts(len(self._ranked(self.seen)) + 1) < self._most:
            is_spread = len(self.seen) <= spread
            choice = self._farthest() if is_spread else self._most_promising()
            if choice is None or self.is_over:
                return
            yield from self._measure(choice, 1)

    def _measure(self, candidate: Candidate, slices: int) -> Steps:
        before = self.seen.get(candidate)
        is_first = before is None and candidate != self._shipped
        wanted = ToMeasure(candidate, slices, _HOPELESS * self._best() if is_first else 0.0)
        if self._ends(wanted):
            return
        found = yield wanted
        self.seen[candidate] = found if before is None else before.and_then(found)
        self._rule_out(self.seen[candidate])

    def _ends(self, wanted: ToMeasure) -> bool:
        """Whether the time is over; the shipped settings are measured in any case."""
        if self.seen and not self.is_over:
            self.is_over = self._is_late(wanted)
        return self.is_over

    def _farthest(self) -> Candidate | None:
        """The candidate that is farthest from all that was measured."""
        left = self.untried()
        if not left:
            return None
        at = places([*left, *self.seen], self._cores)
        gaps = distances(at[: len(left)], at[len(left) :]).min(axis=1)
        return left[int(gaps.argmax())]

    def _most_promising(self) -> Candidate | None:
        """The candidate that the model expects most of."""
        left = self.untried()
        known = [one for one in self.seen.values() if one.slices]
        if not left or not known:
            return None
        promised = MachineModel(known, left, self._cores).promise(self._demands)
        return left[int(np.argmax(promised))]

    def _best(self) -> float:
        """The best score so far within the limits; of all where none is."""
        known = [one for one in self.seen.values() if one.slices]
        ranked = self._demands.ranked(known)
        return self._demands.score(ranked[0]) if ranked else 1e-9

    def _ranked(self, candidates: Iterable[Candidate]) -> list[Measured]:
        """Those that may be chosen, the best first."""
        found = [self.seen[one] for one in candidates if one != self._shipped]
        return self._demands.ranked([one for one in found if not self._demands.objection(one)])

    def _rule_out(self, found: Measured) -> None:
        """What one measurement says of others."""
        own = found.candidate
        if own.variant != self._shipped.variant and (
            found.fault or found.quality < self._demands.min_quality
        ):
            reason = f"{own.variant}: {self._demands.objection(found)}"
            self._end({one: reason for one in self.untried() if one.variant == own.variant})
        memory = self._demands.memory_mb
        if memory is not None and found.memory_mb > memory:
            reason = f"{own.workers} workers or more: {found.memory_mb:.0f} MB of memory"
            self._end(
                {
                    one: reason
                    for one in self.untried()
                    if (one.variant, one.host) == (own.variant, own.host)
                    and one.workers >= own.workers
                    and one.batch >= own.batch
                }
            )

    def _end(self, found: dict[Candidate, str]) -> None:
        self.ruled_out |= found
