"""From the figures of a server to samples."""

import random
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.engines.engine import ModelStatus, Worker
from marship.engines.load import ModelLoad
from marship.operate.autoscale.samples import Sampler, percentile

STATUS = ModelStatus(
    name="m", version="1.0", archive="m.mar", min_workers=2, max_workers=2, batch_size=1,
    max_batch_delay_ms=1, response_timeout_s=60, loaded_at_startup=False,
    workers=(Worker("9000", 1, ready=True), Worker("9001", 2, ready=False)),
)  # fmt: skip
START = ModelLoad(
    status=STATUS, source="workers", ongoing=3, occupied=0, requests=100, calls=50, busy_s=10,
    waited_s=5, took=(90, 10, 0), took_s=(1.0, 2.0), own_s=7,
)  # fmt: skip


def test_a_sample_has_what_was_added_between_two_looks() -> None:
    """Sums become differences; workers and requests in hand are those of the second look."""
    sampler = Sampler(60, 60)
    assert not sampler.look(START, 10.0)
    later = replace(
        START, requests=140, calls=70, busy_s=11, waited_s=9, took=(90, 110, 0), own_s=8
    )
    assert sampler.look(later, 12.0)
    (sample,) = sampler.samples
    assert (sample.at_s, sample.span_s, sample.workers, sample.wanted) == (12.0, 2.0, 1, 2)
    assert (sample.responses, sample.calls, sample.busy_s, sample.waited_s) == (40, 20, 1, 4)
    assert sample.ongoing == 3 + 0.5  # a second of requests in two, as Little's law has it
    assert sample.p99_s == pytest.approx(1.99)


def test_workers_are_not_busier_than_they_are_many() -> None:
    """A long call is counted when it ends: not all of it was in the last second."""
    sampler = Sampler(60, 60)
    sampler.look(START, 0.0)
    sampler.look(replace(START, busy_s=40), 1.0)
    assert sampler.samples[0].busy_s == 1.0


@pytest.mark.parametrize("took_s", [0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.05, 1.5, 5.0])
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_the_seconds_of_calls_are_those_that_they_took(took_s: float, rate: float) -> None:
    """Whether they are shorter or longer than a look; workers count a quarter second late."""
    draw, looks, workers = random.Random(7), 600, 16  # noqa: S311  no secret
    starts = list(accumulate(draw.expovariate(rate) for _ in range(round(looks * rate))))
    ready = tuple(Worker(str(n), 1, ready=True) for n in range(workers))
    sampler = Sampler(looks, 60)
    for now in range(looks):
        ended = sum(start + took_s <= now - 0.25 for start in starts)
        running = sum(start <= now < start + took_s for start in starts)
        load = replace(
            START, status=replace(STATUS, workers=ready), ongoing=running, occupied=running,
            calls=ended, busy_s=ended * took_s, requests=ended, took=(), took_s=(),
        )  # fmt: skip
        sampler.look(load, float(now))
    share = sum(sample.busy_s for sample in sampler.samples) / looks
    assert share == pytest.approx(rate * took_s, rel=0.15)


CALLS = st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 40)), min_size=1, max_size=8)


@settings(deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=4))
def test_long_calls_are_in_the_looks_that_they_took(
    schedules: list[list[tuple[float, float]]],
) -> None:
    """Of workers that pause and run calls by turns; in the end nothing of them is lost."""
    spans: list[list[tuple[float, float]]] = []  # of each worker's calls
    for schedule in schedules:
        now, spans = 0.0, [*spans, []]
        for pause_s, call_s in schedule:
            spans[-1].append((now + pause_s, now + pause_s + call_s))
            now += pause_s + call_s
    calls = [call for each in spans for call in each]
    count = len(spans)
    status = replace(STATUS, workers=tuple(Worker(str(n), n, ready=True) for n in range(count)))
    sampler = Sampler(1e6, 60)
    for second in range(int(max(end for _, end in calls)) + 2):
        ended = [end - began for began, end in calls if end <= second]
        running = sum(began <= second < end for began, end in calls)
        load = replace(
            START, status=status, requests=100 + len(ended), calls=50 + len(ended),
            busy_s=sum(ended), occupied=running, ongoing=running,
        )  # fmt: skip
        sampler.look(load, float(second))
        seen_s = sum(one.busy_s for one in sampler.samples)
        true_s = sum(min(end, second) - began for began, end in calls if began < second)
        # of each call the look before may be taken whole; and of two that end in one look nothing
        # tells which of them was the long one
        begun = sum(began <= second for began, _ in calls)
        assert seen_s <= (1 if count == 1 else 1.5) * true_s + begun + 1e-6
        if not running:
            assert seen_s >= true_s - 1e-6
    assert all(0 <= one.busy_s <= one.workers * one.span_s + 1e-6 for one in sampler.samples)


def test_a_worker_in_a_long_call_is_busy_meanwhile() -> None:
    """Also before anything of the call is counted; afterwards no second is counted twice."""
    sampler = Sampler(60, 60)
    for second in range(10):
        sampler.look(replace(START, occupied=1), float(second))
    assert [one.busy_s for one in sampler.samples] == [1.0] * 9
    sampler.look(replace(START, busy_s=19.5, calls=51), 10.0)
    assert sum(one.busy_s for one in sampler.samples) == pytest.approx(9.5)


def test_a_long_request_at_the_engines_own_address_is_one_request() -> None:
    """Its end was taken for as many requests in hand as it had seconds."""
    sampler = Sampler(600, 60)
    load = replace(START, source="engine", ongoing=0)
    for second in range(60):
        sampler.look(load, float(second))
    after = replace(load, own_s=load.own_s + 50, requests=load.requests + 1)
    sampler.look(after, 60.0)
    assert [one.ongoing for one in sampler.samples] == pytest.approx([0.0] * 10 + [1.0] * 50)
    for second in range(61, 64):
        sampler.look(after, float(second))
    assert [one.ongoing for one in sampler.samples[-3:]] == [0.0] * 3


@pytest.mark.parametrize("how", ["it dies", "another acceptor", "the server restarts"])
def test_a_call_that_never_ends_hides_no_later_ones(how: str) -> None:
    """Of a worker that died in it: what the next one does counts at once."""
    sampler = Sampler(600, 60)
    for second in range(110):
        sampler.look(replace(START, occupied=1), float(second))
    at = replace(START)
    if how == "it dies":
        sampler.look(at, 110.0)
    else:
        at = replace(
            at, **({"requests": 3} if how == "the server restarts" else {"source": "engine"})
        )
        assert not sampler.look(replace(at, occupied=1), 110.0)
    for second in range(1, 31):  # four calls of 0.2 s in each
        more = {"calls": at.calls + 4 * second, "busy_s": at.busy_s + 0.8 * second}
        sampler.look(replace(at, occupied=1, **more), 110.0 + second)
    assert sum(one.busy_s for one in sampler.samples[-30:]) == pytest.approx(24)


@pytest.mark.parametrize("change", [{"requests": 3}, {"source": "engine"}])
def test_another_server_begins_anew(change: dict[str, object]) -> None:
    """Sums that fall, or are another's, make no sample; the next look does."""
    sampler = Sampler(60, 60)
    sampler.look(START, 0.0)
    other = replace(START, **change)
    assert not sampler.look(other, 1.0)
    assert sampler.look(other, 2.0)
    assert sampler.samples[0].responses == 0


def test_old_samples_are_dropped() -> None:
    """Those older than the time that is kept, and their times."""
    sampler = Sampler(3, 3)
    for second in range(10):
        sampler.look(START, float(second))
    assert [sample.at_s for sample in sampler.samples] == [6, 7, 8, 9]
    sampler.look(replace(START, took=(290, 10, 0)), 10.0)
    assert sampler.samples[-1].p99_s == pytest.approx(0.99)
    for second in range(11, 15):
        sampler.look(replace(START, took=(290, 10, 0)), float(second))
    assert sampler.samples[-1].p99_s is None


@given(st.lists(st.floats(0.001, 7.9), min_size=100, max_size=300), st.floats(0.01, 1))
def test_a_percentile_is_in_the_class_of_the_true_one(times: list[float], share: float) -> None:
    """The histogram tells the class, and never more than its bound."""
    bounds = [0.5, 1.0, 2.0, 4.0, 8.0]
    counts = [0] * 6
    for time in times:
        counts[sum(bound < time for bound in bounds)] += 1
    true = sorted(times)[max(0, -(-int(share * len(times) * 1e6) // 1_000_000) - 1)]
    found = percentile(counts, bounds, share)
    assert found is not None
    low = max([0.0, *(bound for bound in bounds if bound < true)])
    high = min(bound for bound in bounds if bound >= true)
    assert low - 1e-9 <= found <= high * 2  # the share may stand at the border of two classes


def test_few_times_are_no_percentile() -> None:
    """The 99th of fewer than a hundred is chance."""
    assert percentile([99, 0], [1.0], 0.99) is None
    assert percentile([0, 100], [1.0], 0.99) == 1.0
