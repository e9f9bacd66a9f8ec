"""Replays loads against scaling policies in simulated time: the table of docs/autoscaling.md.

    python benchmarks/autoscaling.py
    python benchmarks/autoscaling.py --only bursts --picture docs/autoscaling.png

The same requests meet one worker, as many as allowed, marship's policy, and Ray Serve's: as
shipped, with delays short enough to answer a step within seconds, and with a target that suits
the calls. Nothing is random but the requests, which a seed draws.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from simulation import START_S, Outcome, RayServe, Simulation, Trace, fixed, marship

from marship.operate.autoscale.policy import Scale
from marship.operate.autoscale.settings import ScalingSettings

MOST = 8
CALL_S = 0.1
TARGET_S = 1.0
"""The time that 99 of 100 requests of each span of 5 s should not exceed."""
SCALE = Scale(1, MOST)
HOUR, MINUTE = 3600, 60
TUNED = "Ray Serve, 0.7 in hand, 2 s up, 30 s down"
"""A target below one suits replicas that run one request at a time."""
QUIET, BUSY = 4.0, 45.0
"""Requests a second; eight workers take 80."""
DAY_S = 4 * HOUR
BURSTS = 10

Rates = NDArray[np.float64]
Draw = Callable[[np.random.Generator], tuple[Rates, float]]
"""Requests a second in each second, and the spread of the calls' times (0: all alike)."""


def steps(_rng: np.random.Generator) -> tuple[Rates, float]:
    """Loads of twelve minutes each."""
    return np.repeat([QUIET, 20.0, BUSY, 12.0, QUIET], 12 * MINUTE), 0.3


def day(_rng: np.random.Generator) -> tuple[Rates, float]:
    """A day in four hours: a night, and a hill with a dent at noon."""
    hours = np.linspace(0, 24, DAY_S)
    hills = np.exp(-(((hours - 10) / 2.5) ** 2)) + np.exp(-(((hours - 17) / 3) ** 2))
    return QUIET / 2 + BUSY * hills, 0.3


def bursts(rng: np.random.Generator) -> tuple[Rates, float]:
    """A quiet hour with bursts of half a minute to two minutes."""
    rates = np.full(HOUR, QUIET)
    for begin in rng.uniform(0, HOUR - 2 * MINUTE, BURSTS):
        rates[int(begin) : int(begin + rng.uniform(30, 2 * MINUTE))] = BUSY
    return rates, 0.3


def tails(_rng: np.random.Generator) -> tuple[Rates, float]:
    """A constant load whose calls differ: one in a hundred takes six times the mean."""
    return np.full(HOUR, 25.0), 1.0


TRACES: dict[str, Draw] = {
    "steps": steps,
    "daily wave": day,
    "bursts": bursts,
    "heavy tails": tails,
}


def trace(name: str, seed: int = 1) -> Trace:
    """Draw a trace: Poisson arrivals, and calls of 0.1 s on average (log-normal)."""
    rng = np.random.default_rng(seed)
    rates, spread = TRACES[name](rng)
    expected = np.concatenate([[0.0], np.cumsum(rates)])
    times = np.cumsum(rng.exponential(1.0, int(expected[-1] * 1.1) + 100))
    arrivals = np.interp(
        times[times < expected[-1]], expected, np.arange(len(expected), dtype=np.float64)
    )
    calls = rng.lognormal(np.log(CALL_S) - spread**2 / 2, spread, len(arrivals))
    return Trace(name, len(rates), arrivals, calls)


def outcomes(drawn: Trace) -> dict[str, Outcome]:
    """What comes of a trace with each policy."""
    runs = {
        "1 worker": Simulation(drawn, fixed(1), 1),
        f"{MOST} workers": Simulation(drawn, fixed(MOST), MOST),
        "marship": Simulation(drawn, marship(SCALE, ScalingSettings()), 1),
        "marship, p99 target": Simulation(
            drawn,
            marship(SCALE, ScalingSettings(target_p99_ms=1000 * TARGET_S / 2)),
            1,
            p99_window_s=60.0,
        ),
        "Ray Serve, as shipped": Simulation(drawn, RayServe(SCALE), 1),
        "Ray Serve, 2 s up, 30 s down": Simulation(
            drawn, RayServe(SCALE, look_back_s=4, up_s=2, down_s=30), 1
        ),
        TUNED: Simulation(drawn, RayServe(SCALE, look_back_s=4, up_s=2, down_s=30, target=0.7), 1),
    }
    return {name: run.run() for name, run in runs.items()}


def row(name: str, outcome: Outcome, seconds: float) -> str:
    """A row of the table."""
    cells = (
        name,
        f"{outcome.over(TARGET_S) / seconds:.1%}",
        f"{outcome.p99_s:.2f} s" if outcome.p99_s < MINUTE else f"{outcome.p99_s / MINUTE:.0f} min",
        f"{outcome.worker_s / seconds:.2f}",
        f"{outcome.worker_s:,.0f}",
        str(outcome.changes),
    )
    return f"| {' | '.join(cells)} |"


def draw(found: dict[str, tuple[Trace, dict[str, Outcome]]], path: Path) -> None:
    """The workers over time of each policy, above the load."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(found), 1, figsize=(9, 2.4 * len(found)), squeeze=False)
    for place, (name, (drawn, outcome)) in zip(axes[:, 0], found.items(), strict=True):
        load = np.histogram(drawn.arrivals, np.arange(0, drawn.seconds + 1, 10))[0] / 10
        place.fill_between(
            np.arange(len(load)) / 6, load * CALL_S, color="0.85", label="busy workers needed"
        )
        for policy in (TUNED, "Ray Serve, as shipped", "marship"):
            wanted = outcome[policy].wanted
            place.step(np.arange(len(wanted)) / 60, wanted, label=policy, linewidth=1.2)
        place.set_ylim(0, MOST + 1)
        place.set_title(name, loc="left")
        place.set_ylabel("workers")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right", ncols=2)
    axes[-1, 0].set_xlabel("minutes")
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    """Simulate all traces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TRACES, action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    flags = parser.parse_args()
    found = {}
    print(f"Calls of {CALL_S:g} s; a worker is ready {START_S:g} s after it is wanted.")
    for name in flags.only or TRACES:
        drawn = trace(name, flags.seed)
        found[name] = drawn, outcomes(drawn)
        print(f"\n**{name}**: {len(drawn.arrivals):,} requests in {drawn.seconds / MINUTE:g} min\n")
        print("| | time over target | p99 | mean workers | worker-seconds | changes |")
        print("|---|---|---|---|---|---|")
        for policy, outcome in found[name][1].items():
            print(row(policy, outcome, drawn.seconds))
    if flags.picture:
        draw(found, flags.picture)


if __name__ == "__main__":
    main()
