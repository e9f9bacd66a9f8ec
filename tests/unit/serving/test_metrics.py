"""The times of requests."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.serving.metrics import SECONDS_S, STEPS, TIMES_S, Metrics

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


STEPS_S = st.fixed_dictionaries({step: st.floats(0, 100) for step in STEPS})


@given(st.lists(st.tuples(STEPS_S, st.lists(st.sampled_from(["ok", "malformed"]), min_size=1))))
def test_each_request_is_in_one_bucket_of_each_histogram(
    batches: list[tuple[dict[str, float], list[str]]],
) -> None:
    """Of its own outcome, in the bucket that its time belongs in, and in the sum."""
    metrics = Metrics()
    for seconds, codes in batches:
        metrics.add_batch(len(codes), seconds, [code for code in codes if code != "ok"])
        now = time.perf_counter()
        metrics.add_times([now] * len(codes), now, codes if "malformed" in codes else ())
    metrics.load()
    found = {(one.name, dict(one.labels).get("code")): v for one, v in metrics._sheet.read()}
    for code in ("ok", "malformed"):
        times = [of.count(code) for _, of in batches]
        for step in (*STEPS, "queue", "duration"):
            *buckets, total = found.get((f"marship_request_{step}_seconds", code), (0.0, 0.0))
            assert sum(buckets) == sum(times)
            if step in STEPS:
                seen = [seconds[step] for seconds, _ in batches]
                wanted = sum(each * n for each, n in zip(seen, times, strict=True))
                assert total == pytest.approx(wanted)
                for at, bound in enumerate(SECONDS_S):
                    below = sum(n for each, n in zip(seen, times, strict=True) if each <= bound)
                    assert sum(buckets[: at + 1]) == below
    *sizes, requests = found["marship_batch_size", None]
    assert sum(sizes) == len(batches)
    assert requests == sum(len(codes) for _, codes in batches)


def test_a_shared_sheet_reports_only_what_is_this_workers(tmp_path: Path) -> None:
    """The engine adds reports up itself: what a worker before has counted was said already."""
    for counted in (3, 4):
        metrics = Metrics()
        metrics.add_batch(9, {"infer": 1.0})  # golden cases, before it is shared
        metrics.share(tmp_path, "m", "1.0")
        metrics.add_batch(counted, {"infer": 1.0})
        counts, _ = metrics.take()
        assert [one.value for one in counts if one.name == "marship_requests_total"] == [counted]
        del metrics
