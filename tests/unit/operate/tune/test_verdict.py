"""What is said where there is no winner: what was missed, by how much, and what to do."""

import pytest

from marship.operate.tune import turns, verdict
from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, LoadSlice, Measured
from marship.operate.tune.settings import TuneSettings
from marship.operate.tune.verdict import TuneVerdict

SHIPPED, OTHER = Candidate("exported", 1, 2, 1), Candidate("exported", 2, 1, 8)


def measured(
    candidate: Candidate, *, p99_ms: float = 5.0, rps: int = 1000, failed: int = 0, mb: float = 90
) -> Measured:
    """A candidate with one slice of a second."""
    return Measured(candidate, (LoadSlice(1.0, rps, failed, p99_ms / 2, p99_ms, 0.95),), mb)


def judged(
    *found: Measured,
    demands: Demands | None = None,
    rate: float | None = None,
    p99_in_turns: tuple[float, float] | None = None,
) -> TuneVerdict:
    """The verdict on what was measured, and of the first finalist in turns if there is one."""
    limits = demands or Demands(20)
    compared = []
    if p99_in_turns is not None:
        own, theirs = ([LoadSlice(1.0, 1000, 0, 1.0, one)] * 5 for one in p99_in_turns)
        compared = [turns.compare(OTHER, own, theirs, limits)]
    return verdict.judge(found, SHIPPED, compared, limits, TuneSettings(rate=rate))


def test_a_p99_that_nothing_keeps_is_named() -> None:
    """Of the shipped settings, the best of all, and the limit; nothing is said of noise."""
    found = judged(
        measured(SHIPPED, p99_ms=5), measured(OTHER, p99_ms=3), demands=Demands(p99_ms=0.5)
    )
    assert found.is_failure
    assert found.outcome == "limits missed"
    assert found.reason == (
        "p99 is 5 ms with the shipped settings and 3 ms at best (exported, 2 x 1 thread, "
        "batch 8), and may be 0.5 ms (--p99-ms). Allow more, make less load, or serve on a "
        "faster machine"
    )


def test_each_limit_that_is_missed_is_named() -> None:
    """Memory, failures and a rate beyond the machine, whose clients took a whole core."""
    found = judged(
        measured(SHIPPED, rps=900, failed=100, mb=90),
        measured(OTHER, rps=1200, failed=300, mb=135),
        demands=Demands(20, memory_mb=50, is_open=True),
        rate=5000,
    )
    assert found.is_failure
    assert "memory is 90 MB with the shipped settings and 90 MB at best" in found.reason
    assert "may be 50 MB (--memory-mb)" in found.reason
    assert "10.0% of the requests fail with the shipped settings, and 10.0% at best" in found.reason
    assert "5,000 requests a second are more than this machine answers: at most 1,200" in (
        found.reason
    )
    assert "making them takes a whole core" in found.reason


def test_a_rate_of_few_requests_is_not_beyond_the_machine() -> None:
    """So many come now and then, whatever the rate; only what is answered of them tells."""
    found = judged(measured(SHIPPED, rps=6, p99_ms=500), demands=Demands(20, is_open=True), rate=10)
    assert found.reason.startswith("p99 is 500 ms")


def test_what_the_turns_show_of_the_shipped_settings_counts() -> None:
    """They come last, and are longer than a first look; who keeps the limits is no failure."""
    looks = [measured(SHIPPED, p99_ms=25), measured(OTHER)]
    kept = judged(*looks, p99_in_turns=(15.0, 15.0))
    assert (kept.outcome, kept.is_failure) == ("not better", False)
    assert "noise" in kept.reason
    missed = judged(*looks, p99_in_turns=(25.0, 25.0))
    assert missed.is_failure
    assert "p99 is 25 ms with the shipped settings" in missed.reason
    better = judged(*looks, p99_in_turns=(15.0, 25.0))
    assert (better.outcome, better.is_failure) == ("better", False)


@pytest.mark.parametrize(
    ("others", "outcome", "words"),
    [
        ([], "not compared", "the time was over before other settings were measured"),
        ([Measured(OTHER, fault="no key.")], "not compared", "no other settings serve: no key"),
        (
            [measured(OTHER, p99_ms=30)],
            "not better",
            "none keeps the limits, as the shipped settings do (the nearest: p99 of 30 ms)",
        ),
    ],
)
def test_noise_is_not_named_where_nothing_was_compared(
    others: list[Measured], outcome: str, words: str
) -> None:
    """The shipped settings keep the limits, and each reason has its own sentence."""
    found = judged(measured(SHIPPED), *others)
    assert found.outcome == outcome
    assert found.is_failure == (outcome == "not compared")
    assert words in found.reason
