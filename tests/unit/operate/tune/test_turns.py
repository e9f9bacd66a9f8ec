"""Finalists beside the shipped settings: what counts as better, and how sure that is."""

import math

import numpy as np
import pytest

from marship.operate.tune import turns
from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, LoadSlice
from marship.operate.tune.turns import SureInterval, TurnsResult

OWN, OTHER = Candidate("exported", 2, 1, 8), Candidate("exported", 1, 1, 1)
DEMANDS = Demands(p99_ms=20)


def slices(rates: list[float], p99_ms: float = 5.0) -> list[LoadSlice]:
    """A slice of a second for each rate."""
    return [LoadSlice(1.0, round(rate), 0, p99_ms / 2, p99_ms) for rate in rates]


def compared(own: list[LoadSlice], shipped: list[LoadSlice]) -> TurnsResult:
    """The comparison of both."""
    return turns.compare(OWN, own, shipped, DEMANDS)


@pytest.mark.parametrize("rounds", range(turns.LEAST_ROUNDS, turns.ROUNDS + 1))
def test_an_interval_holds_the_median_as_often_as_it_says(rounds: int) -> None:
    """Of 2,000 samples from a skewed distribution, within the error of so many."""
    draws = np.random.default_rng(rounds).exponential(size=(2000, rounds))
    intervals = [SureInterval.of(list(row)) for row in draws]
    share = np.mean([one.low <= math.log(2) <= one.high for one in intervals])
    assert intervals[0].confidence >= 0.9
    assert abs(share - intervals[0].confidence) < 0.02


def test_equal_settings_are_seldom_better() -> None:
    """With noise of 5 %, in 1,000 comparisons of a server with itself: under one in twenty."""
    rng = np.random.default_rng(0)
    better = 0
    for _ in range(1000):
        own, shipped = (list(1000 * np.exp(rng.normal(0, 0.05, 8))) for _ in range(2))
        better += compared(slices(own), slices(shipped)).is_better
    assert better < 50


def test_a_fifth_more_is_seen_through_the_noise() -> None:
    """In at least 95 of 100 comparisons, though single rounds tell the contrary."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(200):
        own, shipped = (list(1000 * np.exp(rng.normal(0, 0.05, 8))) for _ in range(2))
        seen += compared(slices([1.2 * one for one in own]), slices(shipped)).is_better
    assert seen >= 190


def test_what_the_machine_does_in_a_round_meets_both() -> None:
    """A round in which everything is three times as slow changes no ratio."""
    own = [1100.0, 1110, 370, 1120, 1090, 1100]
    shipped = [1000.0, 1000, 333, 1000, 1000, 1000]
    found = compared(slices(own), slices(shipped))
    assert found.is_better
    assert 1.08 < found.ratio.median < 1.13


def test_a_faster_one_over_the_limit_is_not_better() -> None:
    """Twice the answers do not buy a p99 that was not allowed."""
    found = compared(slices([2000.0] * 8, p99_ms=25), slices([1000.0] * 8))
    assert not found.is_better
    assert "limit" in found.why


def test_who_keeps_the_limit_is_better_than_who_does_not() -> None:
    """Fewer answers a second within the limit, where the shipped settings miss it."""
    found = compared(slices([900.0] * 8, p99_ms=15), slices([1000.0] * 8, p99_ms=40))
    assert found.is_better
    assert turns.winner([found]) is found


def test_a_finalist_with_failed_requests_is_not_better() -> None:
    """One refused request in eight rounds is one too many."""
    own = slices([2000.0] * 8)
    own[3] = LoadSlice(1.0, 2000, 1, 2, 5)
    assert not compared(own, slices([1000.0] * 8)).is_better


def test_of_several_the_best_wins_and_of_none_nothing() -> None:
    """By the median ratio."""
    better, best = (compared(slices([n] * 8), slices([1000.0] * 8)) for n in (1200.0, 1400.0))
    same = compared(slices([1000.0] * 8), slices([1000.0] * 8))
    assert turns.winner([better, same, best]) is best
    assert turns.winner([same]) is None


def test_each_round_begins_with_another() -> None:
    """So none is always the one after a busy moment."""
    order: list[str] = []

    def load(name: str) -> LoadSlice:
        order.append(name)
        return LoadSlice(1.0, 1, 0, 1, 1)

    loads = {OWN: lambda _: load("own"), OTHER: lambda _: load("other")}
    found = turns.in_turns(loads, 3)
    assert order == ["own", "other", "other", "own", "own", "other"]
    assert [len(one) for one in found.values()] == [3, 3]
