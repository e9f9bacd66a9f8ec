"""Finalists beside the shipped settings: all are served at once, and loaded in turns.

What the machine does meanwhile then meets all alike, and the ratio of each round counts. Nothing is
assumed of how ratios are distributed: the interval of their median is between two of them (David
and Nagaraja 2003, Order Statistics, section 7.1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, LoadSlice, in_ms

ROUNDS, LEAST_ROUNDS = 8, 5
"""At most, and fewer where time is short; of fewer than five no interval is sure."""
_SURE = 0.9


@dataclass(frozen=True, slots=True)
class SureInterval:
    """A median with an interval that holds the true one in at least 90 of 100 cases.

    Attributes:
        median: The median.
        low: The lower end.
        high: The upper end.
        confidence: How often such an interval holds the true median.
    """

    median: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "SureInterval":
        """The narrowest interval between two of the values; between the outer ones if few."""
        ordered, n = sorted(values), len(values)
        left_out = 0
        while _confidence(n, left_out + 1) >= _SURE:
            left_out += 1
        return cls(
            float(np.median(ordered)),
            ordered[left_out],
            ordered[n - 1 - left_out],
            _confidence(n, left_out),
        )


def _confidence(n: int, left_out: int) -> float:
    """How often the median is between the values that remain when `left_out` are cut off each end.

    Each value is above the median with probability one half.
    """
    beyond = sum(math.comb(n, k) for k in range(left_out + 1))
    return max(0.0, 1 - float(beyond) / float(2 ** (n - 1)))


@dataclass(frozen=True, slots=True)
class TurnsResult:
    """A finalist beside the shipped settings.

    Attributes:
        candidate: The finalist.
        ratio: Of its score to the shipped settings', round by round.
        p99_ms: Its p99.
        rps: Its answers a second.
        shipped_p99_ms: The shipped settings' p99.
        shipped_rps: Their answers a second.
        requests: The fewest of a slice of either: so many a p99 is of.
        is_better: Whether it is to be preferred, by more than the noise.
        why: The reason.
    """

    candidate: Candidate
    ratio: SureInterval
    p99_ms: SureInterval
    rps: SureInterval
    shipped_p99_ms: SureInterval
    shipped_rps: SureInterval
    requests: int
    is_better: bool
    why: str


def in_turns(
    loads: Mapping[Candidate, Callable[[int], LoadSlice]],
    rounds: int,
    is_late: Callable[[], bool] = lambda: False,
) -> dict[Candidate, list[LoadSlice]]:
    """Load all, one after the other, in each round another one first.

    Args:
        loads: Runs one slice of load, given the round's number.
        rounds: How many.
        is_late: Whether no more than the fewest rounds are to be had.
    """
    names = list(loads)
    found: dict[Candidate, list[LoadSlice]] = {name: [] for name in names}
    for number in range(rounds):
        if number >= LEAST_ROUNDS and is_late():
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(loads[name](number))
    return found


def compare(
    candidate: Candidate, own: Sequence[LoadSlice], shipped: Sequence[LoadSlice], demands: Demands
) -> TurnsResult:
    """A finalist's slices against the shipped settings', round by round."""
    pairs = zip(own, shipped, strict=True)
    ratio = SureInterval.of([demands.score(a) / max(1e-9, demands.score(b)) for a, b in pairs])
    p99, shipped_p99 = (SureInterval.of([one.p99_ms for one in each]) for each in (own, shipped))
    rps, shipped_rps = (SureInterval.of([one.rps for one in each]) for each in (own, shipped))
    limit = demands.p99_ms
    failed = sum(one.failed for one in own)
    is_better, why = False, ""
    if failed:
        why = f"{failed} requests failed"
    elif p99.median > limit:
        why = f"its p99 of {p99.median:.3g} ms is over the limit of {limit:g} ms"
    elif shipped_p99.low > limit >= p99.high:
        is_better, why = True, f"the shipped settings miss the p99 limit of {limit:g} ms"
    elif ratio.low > 1:
        is_better, why = True, "better by more than the noise"
    else:
        why = "not better by more than the noise"
    requests = min(one.requests for one in [*own, *shipped])
    return TurnsResult(
        candidate, ratio, p99, rps, shipped_p99, shipped_rps, requests, is_better, why
    )


def missed(found: TurnsResult, calm: LoadSlice, limit: float) -> TurnsResult:
    """A finalist that is not better after all: its p99 at a rate is over the limit."""
    why = (
        f"its p99 of {in_ms(calm.p99_ms)} ms at a rate of {calm.rps:,.0f} a second is over the "
        f"limit of {limit:g} ms, unlike that of the shipped settings"
    )
    return replace(found, is_better=False, why=why)


def winner(found: Sequence[TurnsResult]) -> TurnsResult | None:
    """The best of those that are better; None if none is."""
    better = [one for one in found if one.is_better]
    return max(better, key=lambda one: one.ratio.median, default=None)
