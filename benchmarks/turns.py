"""Compares two versions of marship in interleaved rounds: what a change costs or gains.

    python benchmarks/turns.py OTHER_PYTHON [--rounds 6] [--seconds 4] [--case mlp ...]

OTHER_PYTHON is the Python of an environment where the other version is installed, as
`git worktree add ../before REVISION && make -C ../before setup` makes one. Both serve the same
model; while one is measured the other is suspended. For each case it prints requests per second of
both (medians), the median of the rounds' ratios with the smallest and largest, and the resident
memory of the servers' processes.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import load
from cases import CASES, CaseFiles, prepare
from peers import LATENCY, THROUGHPUT, Setup, marship

WARM_S = 10


@dataclass(frozen=True, slots=True)
class Turn:
    """A case with the settings that it is served with."""

    case: str
    profile: str
    clients: int
    workers: int = 1


TURNS = (
    Turn("mlp", THROUGHPUT, 64, 2),
    Turn("mlp", THROUGHPUT, 16),
    Turn("mlp", LATENCY, 1),
    Turn("tensor-npy", LATENCY, 8, 2),
    Turn("recommender", THROUGHPUT, 16),
    Turn("recommender", LATENCY, 1),
)


@dataclass(frozen=True, slots=True)
class Server:
    """One of the two servers, and the request to send."""

    pids: tuple[int, ...]
    request: load.Request


def started(turn: Turn, files: CaseFiles, folder: Path, python: str, stack: ExitStack) -> Server:
    """A warm server of one environment, suspended."""
    folder.mkdir()
    running = marship(Setup("marship", turn.profile, turn.workers), files, folder, python)
    stack.callback(load.end, *running.pids)
    if running.request is None:
        raise SystemExit("marship must be served to be measured, got no address.")
    load.measure(running.request, turn.clients, WARM_S)
    load.freeze(*running.pids)
    return Server(running.pids, running.request)


def rate(server: Server, turn: Turn, seconds: int) -> float:
    """Requests per second of one round.

    Raises:
        SystemExit: A request failed.
    """
    with load.awake(*server.pids):
        load.measure(server.request, turn.clients, 1)
        figures = load.measure(server.request, turn.clients, seconds)
    if figures.errors:
        raise SystemExit(f"{turn.case} must be served without errors, got {figures.errors}.")
    return figures.rps


def resident_mb(server: Server) -> list[int]:
    """Of each process, the smallest first."""
    return sorted(round(process.memory_info().rss / 1e6) for process in load.tree(*server.pids))


def compare(turn: Turn, pythons: dict[str, str], rounds: int, seconds: int) -> None:
    """Measure both in interleaved rounds and print the result."""
    with tempfile.TemporaryDirectory(prefix="turns-") as name, ExitStack() as stack:
        folder = Path(name)
        files = prepare(CASES[turn.case], folder)
        servers = {
            label: started(turn, files, folder / label, python, stack)
            for label, python in pythons.items()
        }
        rates: dict[str, list[float]] = {label: [] for label in servers}
        for number in range(rounds):
            for label in list(servers)[:: 1 if number % 2 else -1]:
                rates[label].append(rate(servers[label], turn, seconds))
        ratios = sorted(n / o for n, o in zip(rates["this"], rates["other"], strict=True))
        medians = " ".join(f"{label} {statistics.median(rates[label]):.0f}/s" for label in rates)
        print(
            f"{turn.case} {turn.profile}, {turn.clients} clients: {medians}, ratio "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), resident MB "
            + ", ".join(f"{label} {resident_mb(server)}" for label, server in servers.items()),
            flush=True,
        )


def main() -> None:
    """Read the flags and compare case by case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("other", metavar="OTHER_PYTHON")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--case", action="append", choices=sorted({turn.case for turn in TURNS}))
    given = parser.parse_args()
    for turn in TURNS:
        if not given.case or turn.case in given.case:
            pythons = {"other": given.other, "this": sys.executable}
            compare(turn, pythons, given.rounds, given.seconds)


if __name__ == "__main__":
    main()
