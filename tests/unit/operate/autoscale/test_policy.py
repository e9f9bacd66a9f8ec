"""How many workers a window of samples needs."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.operate.autoscale.policy import (
    CAUSES,
    Decision,
    Scale,
    ScalingSample,
    decide,
    expected_wait_s,
    kept_s,
)
from marship.operate.autoscale.settings import ScalingSettings

TARGETS = ScalingSettings()
CALL_S = 0.1

SAMPLES = st.lists(
    st.builds(
        dict,
        workers=st.integers(0, 20),
        wanted=st.integers(0, 20),
        ongoing=st.floats(0, 1e4),
        busy=st.floats(0, 20),
        calls=st.integers(0, 10_000),
        responses=st.integers(0, 10_000),
        waited_s=st.floats(0, 1e5),
        p99_s=st.none() | st.floats(0, 100),
    ),
    min_size=1,
    max_size=40,
)


class Server:
    """Workers under a load without chance: each second it is known exactly."""

    def __init__(self, workers: int, scale: Scale, targets: ScalingSettings = TARGETS) -> None:
        self.ready = self.wanted = workers
        self.scale, self.targets = scale, targets
        self.waiting, self.samples = 0.0, list[ScalingSample]()
        self.decisions: list[Decision] = []

    def second(self, load: float) -> int:
        """A second of a load, in workers that it would keep busy; the number wanted after it."""
        self.ready = min(self.wanted, self.ready)
        served = min(load + self.waiting, float(self.ready))
        self.waiting = max(0.0, self.waiting + load - self.ready)
        wait_s = self.waiting / self.ready + expected_wait_s(
            min(load, 0.97 * self.ready), self.ready, CALL_S
        )
        requests = round(served / CALL_S)
        self.samples.append(
            ScalingSample(
                len(self.samples) + 1.0, 1.0, self.ready, self.wanted,
                served + self.waiting / CALL_S, served, requests, requests, wait_s * requests,
            )
        )  # fmt: skip
        starting, self.wanted = self.wanted, self._decide()
        self.ready = max(self.ready, starting)  # those that were started a second ago
        return self.wanted

    def _decide(self) -> int:
        kept = int(kept_s(self.targets))
        self.decisions.append(decide(self.samples[-kept:], self.scale, self.targets))
        return self.decisions[-1].workers


@given(SAMPLES, st.integers(1, 10), st.integers(0, 10), st.integers(1, 64))
def test_the_number_is_within_the_bounds(
    raw: list[dict[str, float]], least: int, more: int, batch: int
) -> None:
    """Whatever was measured, never fewer than allowed, nor more; and a reason is told."""
    samples = [
        ScalingSample(
            second, 1.0, int(row["workers"]), int(row["wanted"]), row["ongoing"], row["busy"],
            int(row["calls"]), int(row["responses"]), row["waited_s"], row["p99_s"],
        )
        for second, row in enumerate(raw)
    ]  # fmt: skip
    decision = decide(samples, Scale(least, least + more, batch), TARGETS)
    assert least <= decision.workers <= least + more
    assert decision.cause in CAUSES
    assert decision.reason


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 9.5), st.integers(1, 10))
def test_a_constant_load_is_settled_once(load: float, workers: int) -> None:
    """After some minutes nothing changes any more, and workers were added or ended, not both."""
    server = Server(workers, Scale(1, 16))
    wanted = [server.second(load) for _ in range(700)]
    later = wanted[500:]
    assert len(set(later)) == 1
    assert load <= later[0]
    if load < workers:  # else the queue of the first seconds has to be worked off, too
        assert wanted in (sorted(wanted), sorted(wanted, reverse=True))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 0.6), st.floats(3, 8), st.integers(1, 3))
def test_a_step_is_answered_within_the_panic_window(
    before: float, times: float, workers: int
) -> None:
    """A load of several times what workers take has more of them within a tenth of a window."""
    server = Server(workers, Scale(workers, 64))
    for _ in range(200):
        server.second(before * workers)
    assert server.wanted == workers
    after = [server.second(times * workers) for _ in range(math.ceil(TARGETS.panic_s))]
    assert after[-1] > workers
    assert {decision.cause for decision in server.decisions[-6:]} & {"panic", "busy", "ongoing"}


def test_workers_end_only_after_the_cool_down_and_by_halves() -> None:
    """When a load ends, at most half of the workers end at once, a cool-down apart at least."""
    server = Server(8, Scale(1, 8))
    for _ in range(120):
        server.second(5.5)
    assert server.wanted == 8
    wanted = [server.second(0.0) for _ in range(400)]
    changes = [n for n in range(1, 400) if wanted[n] != wanted[n - 1]]
    assert [wanted[n] for n in changes] == [7, 4, 2, 1]
    assert min(b - a for a, b in pairwise(changes)) >= TARGETS.cool_down_s


def test_the_gap_between_more_and_fewer_keeps_a_load_at_its_workers() -> None:
    """A load that swings by a tenth about the limit of two workers adds one, and ends none."""
    server = Server(2, Scale(1, 8))
    wanted = [server.second(1.4 + 0.14 * math.sin(second / 20)) for second in range(900)]
    assert set(wanted[300:]) == {3}


def test_no_worker_is_ended_while_others_start() -> None:
    """Where not all that are wanted are ready, nothing is known of a smaller number."""
    samples = [ScalingSample(n, 1.0, 2, 4, 0.0, 0.0, 0, 0, 0.0) for n in range(200)]
    assert decide(samples, Scale(1, 8), TARGETS).workers == 4


def test_requests_that_wait_need_one_more_worker() -> None:
    """A mean wait over the target adds one, though workers are not busy for long."""
    samples = [ScalingSample(n, 1.0, 2, 2, 1.0, 0.8, 8, 8, 8 * 0.3) for n in range(60)]
    decision = decide(samples, Scale(1, 8), TARGETS)
    assert (decision.workers, decision.cause) == (3, "wait")
    assert decision.reason == "requests waited 300 ms, the target is 200 ms"
    patient = ScalingSettings(target_wait_ms=400)
    assert decide(samples, Scale(1, 8), patient).workers == 2


@pytest.mark.parametrize(("wait_s", "workers"), [(0.05, 3), (0.0, 2)])
def test_a_slow_p99_needs_workers_only_if_requests_wait(wait_s: float, workers: int) -> None:
    """Where calls themselves take longer than the target, more workers are no use."""
    targets = ScalingSettings(target_p99_ms=250)
    samples = [
        ScalingSample(n, 1.0, 2, 2, 1.0, 0.8, 8, 8, 8 * wait_s, p99_s=0.4) for n in range(60)
    ]
    assert decide(samples, Scale(1, 8), targets).workers == workers


def test_a_batch_counts_as_one_in_hand() -> None:
    """The target of requests in hand is one of batches."""
    samples = [ScalingSample(n, 1.0, 1, 1, 60.0, 0.5, 50, 1600, 0.0) for n in range(60)]
    assert decide(samples, Scale(1, 40, batch=32), TARGETS).workers == 1
    assert decide(samples, Scale(1, 40, batch=1), TARGETS).cause == "panic"
    assert decide(samples, Scale(1, 40, batch=1), TARGETS).workers == 30


def test_bounds_come_first() -> None:
    """A server that somebody scaled beyond the bounds is brought back at once."""
    decision = decide([ScalingSample(1, 1.0, 9, 9, 0.0, 0.0, 0, 0, 0.0)], Scale(1, 4), TARGETS)
    assert (decision.workers, decision.cause) == (4, "bounds")


def test_turns_double_the_cool_down() -> None:
    """Workers added again after some were ended make the next ones stay longer."""

    def sample(second: int, workers: int) -> ScalingSample:
        return ScalingSample(second, 1.0, workers, workers, 0.0, 0.0, 0, 0, 0.0)

    calm = [sample(n, 2) for n in range(100)]
    turned = [sample(n, {20: 1, 21: 1}.get(n, 2)) for n in range(100)]
    assert decide(calm, Scale(1, 4), TARGETS).workers == 1
    assert decide(turned, Scale(1, 4), TARGETS).workers == 2
    assert decide([*turned, *(sample(n, 2) for n in range(100, 142))], Scale(1, 4), TARGETS) == (
        Decision(1, "idle", "0.00 workers were busy, 1 stay below the targets; no change for 120 s")
    )
