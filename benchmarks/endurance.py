"""A million requests for one worker: does any process grow?

    python benchmarks/endurance.py

Serves the smallest case as shipped (`throughput`, tokens, metrics, validation on), sends requests
over 64 connections, and reads the private memory (USS) of the frontend, the acceptor and the worker
after every hundred thousand requests. After the first sample nothing should grow.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import load
import measurement
import psutil
from cases import CASES, prepare
from peers import DIRECT, MARSHIP, THROUGHPUT, Running, Setup
from rich.table import Table

from marship import console
from marship.errors import DataError
from marship.settings import flags, setting

MB = 1e6
STEP = 100_000
CLIENTS = 64
SLICE_S = 1
WORKER_SCRIPT = "model_service_worker.py"


@dataclass(frozen=True)
class EnduranceSettings:
    """How long the test runs."""

    requests: int = setting(1_000_000, "requests in all", minimum=2 * STEP)
    torchserve: bool = setting(False, "send them to TorchServe's own address")


@dataclass(frozen=True, slots=True)
class Sample:
    """Private memory after so many requests, in bytes, by process."""

    requests: int
    sizes: dict[str, int]


@flags(EnduranceSettings)
def main(settings: EnduranceSettings) -> None:
    """Send one worker a million requests and print whether any process grows."""
    load.require_wrk()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        samples = endure(settings, Path(folder))
    first, last = samples[0], samples[-1]
    table = Table("requests", *(f"{name}, MB" for name in first.sizes))
    for sample in samples:
        sizes = (f"{size / MB:.1f}" for size in sample.sizes.values())
        table.add_row(f"{sample.requests:,}", *sizes)
    console.out.print(table)
    grown = (
        f"{name} {(last.sizes[name] - size) / MB:+.1f} MB" for name, size in first.sizes.items()
    )
    console.out.print(f"growth after the first {first.requests:,}: {', '.join(grown)}")


def endure(settings: EnduranceSettings, folder: Path) -> list[Sample]:
    """Samples about every hundred thousand requests.

    Raises:
        DataError: A request failed, or the server does not respond.
    """
    files = prepare(CASES["mlp"], folder)
    peer = MARSHIP if settings.torchserve else DIRECT
    running = measurement.start(Setup(peer, THROUGHPUT, 1), files, folder)
    samples: list[Sample] = []
    done = 0
    try:
        with load.awake(*running.pids):
            while done < settings.requests:
                figures = load.measure(running.request, CLIENTS, SLICE_S)
                if figures.errors:
                    raise DataError(f"every request must succeed, got {figures}.")
                done += round(figures.rps * SLICE_S)
                if done // STEP > len(samples):
                    samples.append(Sample(done, _private(running)))
    finally:
        load.end(*running.pids)
    return samples


def _private(running: Running) -> dict[str, int]:
    """Private memory of the frontend, of the acceptor with its parent, and of the worker."""
    (worker,) = (p for p in load.tree(running.pid) if any(WORKER_SCRIPT in a for a in p.cmdline()))
    acceptors = load.tree(*running.further_pids)
    return {
        "frontend": psutil.Process(running.pid).memory_full_info().uss,
        "acceptor": sum(each.memory_full_info().uss for each in acceptors),
        "worker": worker.memory_full_info().uss,
    }


if __name__ == "__main__":
    console.run_recipe(main)
