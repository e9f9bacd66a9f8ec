"""Compares `marship tune` with a full grid: what it found, and how long it took.

    python benchmarks/tuning.py ARCHIVE REQUESTS [--run RUN] [--clients 16] [--p99-ms 200]

First the archive is tuned. Then every candidate of the grid is measured for four slices of load,
and the best of the grid, the tuning's winner and the shipped settings are loaded in turns.
"""

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from marship.operate.tune import answers, turns
from marship.operate.tune.bench import Bench
from marship.operate.tune.candidate import Candidate, Choices
from marship.operate.tune.figures import Demands, Measured
from marship.operate.tune.search import ToMeasure
from marship.operate.tune.settings import TuneSettings
from marship.operate.tune.step import tune
from marship.operate.tune.turns import SureInterval
from marship.operate.tune.variants import TunedArchive
from marship.serving.model.session import usable_cores
from marship.trust import archive as archives

SLICES, ROUNDS = 4, 8


def best_of_grid(bench: Bench, grid: list[Candidate]) -> Measured:
    """The best of all candidates, each measured alike."""
    found = []
    for number, one in enumerate(grid, 1):
        found.append(bench.measure(ToMeasure(one, SLICES)))
        print(f"grid {number} of {len(grid)}: {one}: {found[-1].rps:,.0f}/s", flush=True)
    return bench.demands.ranked(found)[0]


def in_turns(bench: Bench, named: dict[str, Candidate]) -> dict[str, SureInterval]:
    """Answers a second of each, as a ratio to the shipped settings' in the same round."""
    with ExitStack() as stack:
        models = {
            one: stack.enter_context(bench.serving(one))[0] for one in dict.fromkeys(named.values())
        }
        loads = {one: partial(bench.load, model, bench.slice_s) for one, model in models.items()}
        turns.in_turns(loads, 1)
        found = turns.in_turns(loads, ROUNDS)
    shipped = found[bench.shipped]
    return {
        name: SureInterval.of([a.rps / b.rps for a, b in zip(found[one], shipped, strict=True)])
        for name, one in named.items()
    }


def main() -> None:
    """Tune, measure the grid, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--p99-ms", type=float, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = TuneSettings(
            p99_ms=given.p99_ms, clients=given.clients, run=given.run,
            results=Path(folder) / "results", out=Path(folder) / "out.mar",
        )  # fmt: skip
        done = tune(given.archive, given.requests, settings, partial(print, flush=True))
        source = TunedArchive.of(archives.read(given.archive), given.run, usable_cores())
        demands = Demands(given.p99_ms)
        samples = answers.read(given.requests)
        bench = Bench(source, done.shipped, samples, settings, demands, Path(folder))
        bench.prepare()
        names = (source.variants.own, *source.variants.others)
        grid = Choices(names, source.cores, given.clients).grid()
        began = time.monotonic()
        best = best_of_grid(bench, grid)
        grid_s = time.monotonic() - began
        chosen = done.winner.candidate if done.winner else done.shipped
        named = {"shipped": done.shipped, "tuned": chosen, "grid": best.candidate}
        ratios = in_turns(bench, named)
    print(
        json.dumps(
            {
                "archive": given.archive.name,
                "candidates": len(grid),
                "tune_s": round(done.seconds),
                "grid_s": round(grid_s),
                "settings": {name: str(one) for name, one in named.items()},
                "times_shipped": {
                    name: f"{one.median:.2f} ({one.low:.2f} to {one.high:.2f})"
                    for name, one in ratios.items()
                },
                "busy_cores": done.busy,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
