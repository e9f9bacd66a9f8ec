"""A million requests for one worker: does any process grow?

    python benchmarks/endurance.py

Serves the smallest case as shipped (`throughput`, tokens, metrics, validation on), sends requests
over 64 connections, and reads the private memory (USS) of the frontend and the worker after every
hundred thousand requests. After the first sample nothing should grow.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import load
import measurement
import psutil
from cases import CASES, prepare
from peers import THROUGHPUT, Setup
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


@dataclass(frozen=True, slots=True)
class Sample:
    """Private memory after so many requests, in bytes."""

    requests: int
    frontend: int
    worker: int


@flags(EnduranceSettings)
def main(settings: EnduranceSettings) -> None:
    """Send one worker a million requests and print whether any process grows."""
    load.require_wrk()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        samples = endure(settings.requests, Path(folder))
    table = Table("requests", "frontend, MB", "worker, MB")
    for sample in samples:
        sizes = (f"{size / MB:.1f}" for size in (sample.frontend, sample.worker))
        table.add_row(f"{sample.requests:,}", *sizes)
    console.out.print(table)
    first, last = samples[0], samples[-1]
    frontend_mb = (last.frontend - first.frontend) / MB
    worker_mb = (last.worker - first.worker) / MB
    console.out.print(
        f"growth after the first {first.requests:,}: frontend {frontend_mb:+.1f} MB, "
        f"worker {worker_mb:+.1f} MB"
    )


def endure(requests: int, folder: Path) -> list[Sample]:
    """Samples about every hundred thousand requests.

    Raises:
        DataError: A request failed, or the server does not respond.
    """
    files = prepare(CASES["mlp"], folder)
    running = measurement.start(Setup("marship", THROUGHPUT, 1), files, folder)
    samples: list[Sample] = []
    done = 0
    try:
        with load.awake(*running.pids):
            while done < requests:
                figures = load.measure(running.request, CLIENTS, SLICE_S)
                if figures.errors:
                    raise DataError(f"every request must succeed, got {figures}.")
                done += round(figures.rps * SLICE_S)
                if done // STEP > len(samples):
                    samples.append(Sample(done, *_private(running.pid)))
    finally:
        load.end(*running.pids)
    return samples


def _private(pid: int) -> tuple[int, int]:
    """Private memory of the frontend and of its worker."""
    (worker,) = (p for p in load.tree(pid) if any(WORKER_SCRIPT in a for a in p.cmdline()))
    return psutil.Process(pid).memory_full_info().uss, worker.memory_full_info().uss


if __name__ == "__main__":
    console.run_recipe(main)
