"""Compares workers that divide the cores with workers that each use all of them, under load.

    python benchmarks/threads.py [--workers 2] [--seconds 4] [--rounds 5]

As many processes as workers load a model as a worker does, once with a thread for each core and
once with the cores divided by the workers, and call it one row at a time without a pause. Both
kinds take turns. Prints calls per second of all workers together and the 99th percentile of a
call, medians of the rounds, with ratios, and then the same as JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import networks
import numpy as np

from marship.proof import graph
from marship.serving.model.session import Session, SessionSettings, usable_cores

MODELS = {"ResNet-18": networks.write_resnet18, "MLP 10-10-1": networks.write_mlp}
WARM_CALLS = 5


def work(path: Path, threads: int) -> None:
    """Run in a worker's process: for each number of seconds read, call the model that long."""
    contract = graph.contract_of(path)
    session = Session(path.parent, contract, SessionSettings(intra_op_threads=threads))
    (spec,) = contract.inputs
    inputs = {spec.name: np.ones([n if isinstance(n, int) else 1 for n in spec.shape], np.float32)}
    for _ in range(WARM_CALLS):
        session.run(inputs)
    print("ready", flush=True)
    for line in sys.stdin:
        end, took = time.perf_counter() + float(line), []
        while (began := time.perf_counter()) < end:
            session.run(inputs)
            took.append(time.perf_counter() - began)
        print(len(took), statistics.quantiles(took, n=100)[-1], flush=True)


class Workers:
    """Processes that call a model at the same time."""

    def __init__(self, path: Path, workers: int, threads: int) -> None:
        command = [sys.executable, __file__, "--work", str(path), "--threads", str(threads)]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(workers)
        ]
        for process in self._processes:
            process.stdout.readline()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate(timeout=30)

    def load(self, seconds: float) -> tuple[float, float]:
        """Calls per second of all, and the slowest worker's 99th percentile in milliseconds."""
        for process in self._processes:
            print(seconds, file=process.stdin, flush=True)
        results = [process.stdout.readline().split() for process in self._processes]
        calls = sum(int(count) for count, _ in results)
        return calls / seconds, 1e3 * max(float(p99) for _, p99 in results)


def measure(path: Path, workers: int, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of both kinds, and their ratios."""
    cores = usable_cores()
    kinds = {"all cores each": cores, "divided": max(1, cores // workers)}
    figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        crews = {k: stack.enter_context(Workers(path, workers, n)) for k, n in kinds.items()}
        for turn in range(rounds):
            for kind in sorted(crews, reverse=bool(turn % 2)):
                figures[kind].append(crews[kind].load(seconds))
    found = {
        kind: {
            "threads": kinds[kind],
            "calls_per_s": statistics.median(calls for calls, _ in seen),
            "p99_ms": statistics.median(p99 for _, p99 in seen),
        }
        for kind, seen in figures.items()
    }
    pairs = list(zip(figures["divided"], figures["all cores each"], strict=True))
    found["ratio"] = {
        "calls_per_s": statistics.median(ours[0] / theirs[0] for ours, theirs in pairs),
        "p99_ms": statistics.median(ours[1] / theirs[1] for ours, theirs in pairs),
    }
    return found


def main() -> None:
    """Measure all models, or be a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work:
        work(flags.work, flags.threads)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in MODELS.items():
            path = Path(folder) / name.replace(" ", "-") / "model.onnx"
            path.parent.mkdir()
            write(path)
            results[name] = measure(path, flags.workers, flags.seconds, flags.rounds)
            for kind, row in results[name].items():
                print(f"{name:12} {kind:15}", {k: round(v, 3) for k, v in row.items()})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
