"""The simulator of benchmarks/, with which policies are compared."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marship.operate.autoscale.policy import Scale
from marship.operate.autoscale.settings import ScalingSettings

FOLDER = Path(__file__).parents[4] / "benchmarks"


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as benchmarks/autoscaling.py does."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("simulation")


def bursts(simulation: Any, rate: float = 4.0) -> Any:
    """Five minutes with a burst of one."""
    rng = np.random.default_rng(3)
    rates = np.full(300, rate)
    rates[60:120] = 10 * rate
    arrivals = np.repeat(np.arange(300.0), rng.poisson(rates))
    arrivals = np.sort(arrivals + rng.uniform(0, 1, len(arrivals)))
    return simulation.Trace("burst", 300.0, arrivals, rng.lognormal(-2.3, 0.3, len(arrivals)))


def test_one_trace_has_one_outcome(simulation: Any) -> None:
    """The same requests and policy give the same times, workers and changes."""
    trace = bursts(simulation)
    choose = [simulation.marship(Scale(1, 8), ScalingSettings()) for _ in range(2)]
    first, second = (simulation.Simulation(trace, each, 1).run() for each in choose)
    assert first == second
    assert first.changes > 0


def test_a_queue_is_that_of_theory(simulation: Any) -> None:
    """Two workers with random arrivals and calls: the mean time is that of M/M/2 (Erlang)."""
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / 14, 60_000))
    calls = rng.exponential(0.1, 60_000)
    trace = simulation.Trace("constant", 4_000.0, arrivals, calls)
    outcome = simulation.Simulation(trace, simulation.fixed(2), 2).run()
    share = 0.7  # of two workers: the mean time in the system is call / (1 - share ** 2)
    assert np.mean(outcome.took_s) == pytest.approx(0.1 / (1 - share**2), rel=0.05)
    assert outcome.worker_s == 8_000
    assert outcome.changes == 0


def test_workers_come_late_and_end_what_they_have(simulation: Any) -> None:
    """A started worker takes nothing for some seconds; an ended one loses no request."""
    trace = simulation.Trace("two", 20.0, np.array([1.0, 1.0, 10.0, 10.0]), np.full(4, 4.0))
    wanted = iter([2] * 10 + [1] * 10)  # the second worker ends while it works
    outcome = simulation.Simulation(trace, lambda _samples: next(wanted), 1).run()
    assert outcome.took_s == pytest.approx([4.0, 4.0 + simulation.START_S, 4.0, 4.0])


def test_a_burst_costs_less_time_than_with_one_worker_and_less_work_than_with_all(
    simulation: Any,
) -> None:
    """The policy is between both ends, and late for a few seconds alone."""
    trace, scale = bursts(simulation), Scale(1, 8)
    ours = simulation.Simulation(trace, simulation.marship(scale, ScalingSettings()), 1).run()
    one, all_ = (simulation.Simulation(trace, simulation.fixed(n), n).run() for n in (1, 8))
    assert ours.over(1.0) <= 20 < one.over(1.0)
    assert ours.worker_s < 0.75 * all_.worker_s


def test_chance_seldom_makes_workers_come_and_go(simulation: Any) -> None:
    """Constant random loads near a limit: a change in four minutes, on average over seeds.

    None of them is the seed with which the policy was tuned; single ones have more.
    """

    def changes(seed: int) -> int:
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(1 / 5.5, 12_000))
        trace = simulation.Trace("constant", 1800.0, arrivals, rng.exponential(0.1, 12_000))
        choose = simulation.marship(Scale(1, 8), ScalingSettings())
        return int(simulation.Simulation(trace, choose, 1).run().changes)

    assert np.mean([changes(seed) for seed in (11, 12, 13, 14)]) <= 8


def test_ray_serves_policy_waits_for_its_delay(simulation: Any) -> None:
    """Replicas are added when the need has lasted for the delay, and ended likewise."""
    trace = bursts(simulation)
    policy = simulation.RayServe(Scale(1, 8), look_back_s=4, up_s=10, down_s=60)
    wanted = simulation.Simulation(trace, policy, 1).run().wanted
    first = next(second for second, workers in enumerate(wanted) if workers > 1)
    assert 70 <= first <= 76
    peak = wanted.index(max(wanted))
    assert wanted[peak : peak + 50] == [max(wanted)] * 50
