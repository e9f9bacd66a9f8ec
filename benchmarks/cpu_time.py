"""Processor time of each process for one request, under load.

    python benchmarks/cpu_time.py [--rows 0 --rows 3]

For each row of the table in docs/performance.md it starts the server with one worker, keeps the
clients busy for `--settle` seconds, and divides the processor time that frontend, worker and wrk
use during the next `--seconds` by the number of requests.
"""

import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

import load
import measurement
import psutil
from cases import CASES, prepare
from peers import LATENCY, MARSHIP, THROUGHPUT, Setup
from rich.table import Table

from marship import console
from marship.errors import DataError, UsageError
from marship.settings import flags, setting

WORKERS = "model_service_worker.py", "multiprocessing.spawn"
"""Words in the command line of a worker's process: TorchServe's, mosec's."""

PROCESSES = "frontend, us", "worker, us", "wrk, us"


@dataclass(frozen=True, slots=True)
class Row:
    """A case, the server, and the number of clients."""

    case: str
    setup: Setup
    clients: int


ROWS = (
    Row("mlp", Setup(MARSHIP, THROUGHPUT), 64),
    Row("mlp", Setup(MARSHIP, LATENCY), 1),
    Row("tensor-npy", Setup(MARSHIP, LATENCY), 8),
    Row("tensor-npy", Setup("mosec", LATENCY), 8),
    Row("resnet18-int8", Setup(MARSHIP, LATENCY), 8),
    Row("resnet18-int8", Setup("mosec", LATENCY), 8),
    Row("recommender", Setup(MARSHIP, THROUGHPUT), 8),
    Row("encoder", Setup(MARSHIP, LATENCY), 8),
)


@dataclass(frozen=True)
class CpuSettings:
    """Which rows, and for how long."""

    rows: tuple[str, ...] = setting((), "a row of the table, from 0; may be repeated; else all")
    seconds: int = setting(5, "length of one measurement", minimum=1)
    settle: int = setting(15, "seconds of warm-up", minimum=1)


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor seconds so far."""

    frontend: float
    worker: float
    wrk: float


@flags(CpuSettings)
def main(settings: CpuSettings) -> None:
    """Print the processor time of each process for one request."""
    load.require_wrk()
    if any(not word.isdecimal() or int(word) >= len(ROWS) for word in settings.rows):
        raise UsageError(
            f"rows must be numbers from 0 to {len(ROWS) - 1}, got {' '.join(settings.rows)}."
        )
    table = Table(
        "case", "server", "clients", "frontend, us", "worker, us", "wrk, us", "requests/s"
    )
    for row in [ROWS[int(word)] for word in settings.rows] or ROWS:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            spent, rps = measure(row, settings, Path(folder))
        times = (f"{time * 1e6:,.1f}" for time in (spent.frontend, spent.worker, spent.wrk))
        table.add_row(row.case, row.setup.name, str(row.clients), *times, f"{rps:,.0f}")
    console.out.print(table)


def measure(row: Row, settings: CpuSettings, folder: Path) -> tuple[Spent, float]:
    """Processor seconds for one request, and requests per second.

    Raises:
        DataError: A request failed, or the server does not respond.
    """
    running = measurement.start(row.setup, prepare(CASES[row.case], folder), folder)
    try:
        with load.awake(*running.pids):
            load.measure(running.request, row.clients, settings.settle)
            before = spent_by(*running.pids)
            figures = load.measure(running.request, row.clients, settings.seconds)
            after = spent_by(*running.pids)
    finally:
        load.end(*running.pids)
    if figures.errors:
        raise DataError(f"every request must succeed, got {figures}.")
    requests = figures.rps * settings.seconds
    return Spent(
        (after.frontend - before.frontend) / requests,
        (after.worker - before.worker) / requests,
        (after.wrk - before.wrk) / requests,
    ), figures.rps


def spent_by(*pids: int) -> Spent:
    """Processor time of a server's processes, and of the wrk processes that have ended."""
    frontend = worker = 0.0
    for process in load.tree(*pids):
        times = process.cpu_times()
        if is_worker(process):
            worker += times.user + times.system
        else:
            frontend += times.user + times.system
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(frontend, worker, children.ru_utime + children.ru_stime)


def is_worker(process: psutil.Process) -> bool:
    """Whether a process runs the model; the others are the frontend's."""
    command = " ".join(process.cmdline())
    return any(words in command for words in WORKERS)


if __name__ == "__main__":
    console.run_recipe(main)
