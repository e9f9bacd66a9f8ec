"""What is said of a new version: worse only beyond doubt, fine only with figures that prove it."""

import math
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.engines.trials import TOOK_S, Arm, TrialFigures
from marship.operate.trial.judgement import (
    Z,
    judge,
    milliseconds,
    share_bounds,
    summary,
    time_at,
    time_bounds,
)
from marship.operate.trial.settings import TrialLimits

LIMITS = TrialLimits(max_differing=0.1)


def arm(requests: int, errors: int = 0, took_s: float = 0.01) -> Arm:
    """A version's part, of which all requests took the same time."""
    found = Arm(requests, errors)
    found.took[bisect_left(TOOK_S, took_s)] = requests - errors
    return found


def figures(new: Arm, default: Arm | None = None, **more: Any) -> TrialFigures:
    """Figures in which all responses were compared, and are equal."""
    counts = {"compared": new.requests, "taken": new.requests, **more}
    return TrialFigures(new=new, default=default or arm(new.requests), **counts)


def silent(requests: int, seconds: float) -> Arm:
    """One that has answered nobody for so long."""
    return replace(arm(requests), waiting=3, silent_s=seconds)


@settings(deadline=None)
@given(st.integers(1, 5000), st.data())
def test_a_share_is_within_its_interval(total: int, data: st.DataObject) -> None:
    """Which is within 0 and 1, and solves |p - count/total| = Z sqrt(p (1 - p) / total)."""
    count = data.draw(st.integers(0, total))
    low, high = share_bounds(count, total)
    assert 0 <= low <= count / total + 1e-12
    assert count / total - 1e-12 <= high <= 1
    for bound in (low, high):
        gap = abs(bound - count / total)
        assert gap == pytest.approx(Z * math.sqrt(bound * (1 - bound) / total), abs=1e-7)


@settings(deadline=None)
@given(st.lists(st.floats(1e-5, 300), min_size=1, max_size=300), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_within_its_interval(times: list[float], quantile: float) -> None:
    """Up to a class of times, a tenth."""
    took = [0] * (len(TOOK_S) + 1)
    for each in times:
        took[bisect_left(TOOK_S, each)] += 1
    low, high = time_bounds(took, quantile)
    real = sorted(times)[max(0, math.ceil(len(times) * quantile) - 1)]
    found = time_at(took, max(1.0, len(times) * quantile))
    assert low <= found <= high
    if TOOK_S[0] < real <= TOOK_S[-1]:
        assert real <= found <= real * 1.1001


@pytest.mark.parametrize(
    ("found", "outcome", "reason"),
    [
        (figures(arm(1000)), "fine", ""),
        (figures(arm(1000, 10)), "fine", ""),
        (figures(arm(1000, 11)), "worse", "errors must be at most 0.01 more"),
        (figures(arm(1000, 15), arm(1000, 6)), "fine", ""),
        (figures(arm(99)), "too few", "must have 100 requests to be judged, got 99"),
        (figures(arm(200), arm(99)), "too few", "got 99"),
        (figures(arm(200), compared=50, incomparable=150), "too few", "150 could not be"),
        (figures(arm(200), differing=20, largest=0.5), "fine", ""),
        (figures(arm(200), differing=21, largest=0.5), "worse", "21 of 200, by 0.5 at most"),
        (figures(arm(200, 0, 0.02)), "worse", "p50 must be at most 1.5 times"),
        (figures(arm(200, 0, 0.014)), "fine", ""),
        (figures(arm(200), absent=30), "worse", "30 of 230"),
        (figures(arm(200), differing=20, unreadable=2), "fine", ""),
        (figures(arm(200), differing=20, unreadable=3), "worse", "another form, got 3 of 200"),
        (figures(arm(200), differing=20, unlike=20, lengths=[7]), "worse", "got 20 of 200"),
        (figures(arm(200), differing=20, unlike=20, lengths=[]), "fine", ""),
        (figures(arm(200), differing=20, rowless=20, follows_rows=True), "worse", "got 20 of 200"),
        (figures(arm(200), differing=20, rowless=20, follows_rows=False), "fine", ""),
        (figures(arm(200), differing=20, keyless=20, keys="a"), "worse", "got 20 of 200"),
        (figures(arm(200), differing=20, keyless=20, keys=""), "fine", ""),
        (figures(replace(arm(200, 9), unjudged=190)), "worse", "errors must be at most"),
        (figures(replace(arm(200), waiting=1, oldest_s=10.1)), "worse", "waits for 10.1 s"),
        (figures(replace(arm(200), waiting=1, oldest_s=9.9)), "fine", ""),
        (figures(silent(200, 5.1)), "worse", "got none for 5.1 s while 3 requests wait"),
        (figures(silent(200, 0.4)), "fine", ""),
        (figures(silent(200, 0.6)), "going on", ""),
        (figures(silent(200, 2.9), arm(200, 0, 2.0)), "going on", ""),
        (figures(silent(200, 5.1), silent(200, 5.2)), "going on", ""),
        (figures(silent(200, 5.1), arm(200, 0, 3.0)), "going on", ""),
    ],
)
def test_a_step_that_is_over_is_judged_by_its_figures(
    found: TrialFigures, outcome: str, reason: str
) -> None:
    """At the limits themselves, and one beyond."""
    got = judge(found, LIMITS, is_over=True)
    assert got.outcome == outcome
    assert reason in got.reason


@pytest.mark.parametrize(
    ("found", "is_worse"),
    [
        (figures(arm(20, 20)), True),
        (figures(arm(5, 5)), False),
        (figures(arm(200, 4)), False),
        (figures(arm(2000, 100)), True),
        (figures(arm(60, 0, 0.05)), True),
        (figures(arm(6, 0, 0.05)), False),
        (figures(arm(100), differing=60), True),
        (figures(arm(100), differing=12), False),
        (figures(arm(100), differing=9, unreadable=9), True),
        (figures(silent(0, 5.1)), True),
        (figures(silent(0, 4.9)), False),
        (TrialFigures(), False),
    ],
)
def test_a_step_ends_early_only_beyond_doubt(found: TrialFigures, is_worse: bool) -> None:
    """A few bad responses at the beginning do not."""
    assert judge(found, LIMITS, is_over=False).outcome == ("worse" if is_worse else "going on")


def test_a_slow_tail_is_found_with_enough_requests() -> None:
    """p50 is the same; one in thirty takes ten times as long."""
    new, default = arm(3000), arm(3000)
    new.took[bisect_left(TOOK_S, 0.01)] -= 100
    new.took[bisect_left(TOOK_S, 0.1)] += 100
    assert "p99 must be" in judge(figures(new, default), LIMITS, is_over=False).reason
    assert milliseconds(new.took, 0.99) == pytest.approx(100, rel=0.11)


def test_versions_that_are_equal_are_rarely_taken_for_worse() -> None:
    """In 200 trials of 100 looks, with times that scatter and 2 % of errors in both versions."""
    random = np.random.default_rng(7)
    limits = TrialLimits(max_latency_ratio=1.0, max_error_rate=0.0)
    wrong = 0
    for _ in range(200):
        found = TrialFigures()
        for _ in range(100):
            for part in (found.default, found.new):
                part.requests += 20
                failed = int(random.binomial(20, 0.02))
                part.errors += failed
                for each in random.lognormal(-4.6, 0.6, 20 - failed):
                    part.took[bisect_left(TOOK_S, each)] += 1
            if judge(found, limits, is_over=False).outcome == "worse":
                wrong += 1
                break
    assert wrong <= 2


def test_a_summary_says_what_was_not_seen() -> None:
    """Beside both versions' figures; nothing is said of times that there are not."""
    found = figures(arm(50, 2), dropped=3, incomparable=4, asked=500, differing=5, largest=0.25)
    text = summary(found)
    for part in ("50 of 500 requests", "errors 2 (default 0)", "5 of 50 differ, by 0.25 at most"):
        assert part in text
    assert text.endswith("4 not compared; 3 not sent twice")
    assert "p50" not in summary(TrialFigures())
