"""The times of requests."""

import time

from hypothesis import given
from hypothesis import strategies as st

from marship.serving.metrics import TIMES_S, Metrics

SUMS = 4


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_each_request_is_in_the_class_of_its_time(ages_s: list[float]) -> None:
    """Whether a batch's requests are of one class or of several; each waited until the batch."""
    metrics = Metrics()
    ages_s = sorted(ages_s, reverse=True)  # the first one came first
    before = time.perf_counter()
    metrics.add_times([before - age_s for age_s in ages_s], before)
    slack_s = time.perf_counter() - before
    _, _, _, waited_s, *took = metrics.load()
    assert len(took) == len(TIMES_S) + 1
    assert sum(took) == len(ages_s)
    assert abs(waited_s - sum(ages_s)) < 1e-6
    for bound, bound_s in enumerate(TIMES_S):
        below = sum(age_s + slack_s <= bound_s for age_s in ages_s)
        assert below <= sum(took[: bound + 1]) <= sum(age_s <= bound_s for age_s in ages_s)


def test_sums_stay_when_a_report_is_taken() -> None:
    """Reports have increments; the load has what was done since the start."""
    metrics = Metrics()
    for _ in range(2):
        metrics.add_batch(3, {"decode": 0.5, "infer": 0.25})
        metrics.take()
    assert metrics.load()[:SUMS] == [6, 2, 1.5, 0]
