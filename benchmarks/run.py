"""Measures marship and other model servers in interleaved rounds: `make bench`."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import load
import measurement
import report
import venvs
from cases import CASES, Case
from peers import PEERS

from marship import console
from marship.errors import UsageError
from marship.settings import flags, setting

T = TypeVar("T")


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and for how long."""

    cases: tuple[str, ...] = setting((), "a case to measure; may be repeated; else all")
    peers: tuple[str, ...] = setting((), "a server to measure; may be repeated; else all")
    clients: tuple[str, ...] = setting((), "connections at once; may be repeated; else the case's")
    seconds: int = setting(4, "length of one measurement", minimum=1)
    rounds: int = setting(3, "rounds; medians over them are reported", minimum=1)
    settle: int = setting(12, "seconds of warm-up for each server", minimum=1)
    workers: int = setting(2, "most workers to try; the fastest number is kept", minimum=1)
    quick: bool = setting(False, "one short round, one worker each: a smoke test")
    out: Path = setting(Path("benchmarks/results"), "folder for table, JSON and pictures")


@flags(BenchSettings)
def main(settings: BenchSettings) -> None:
    """Measure marship and other model servers in interleaved rounds."""
    load.require_wrk()
    if settings.quick:
        settings = replace(settings, seconds=1, rounds=1, settle=1, workers=1)
    cases = _named(CASES, settings.cases, "cases")
    peers = _named(PEERS, settings.peers, "peers")
    settings.out.mkdir(parents=True, exist_ok=True)
    plan = measurement.Plan(settings.seconds, settings.rounds, settings.settle, settings.workers)
    measured: dict[str, Any] = {"machine": report.machine(), "settings": asdict(settings)}
    measured["cases"] = {}
    measured["versions"] = {
        name: venvs.versions(name, peer.packages)
        for name, peer in peers.items()
        if peer.packages is not None
    }
    for case in _with_clients(cases.values(), settings.clients):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            measured["cases"][case.name] = report.summarize(
                measurement.measure_case(case, list(peers), plan, Path(folder))
            )
        report.write(measured, settings.out)
    report.show(measured, console.out)


def _named(known: Mapping[str, T], wanted: tuple[str, ...], what: str) -> dict[str, T]:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"{what} must be of {', '.join(known)}, got {', '.join(unknown)}.")
    return {name: known[name] for name in known if not wanted or name in wanted}


def _with_clients(cases: Iterable[Case], wanted: tuple[str, ...]) -> Iterator[Case]:
    """The cases, with other numbers of clients where they are given."""
    if not all(word.isdecimal() and int(word) for word in wanted):
        raise UsageError(f"clients must be whole numbers from 1, got {' '.join(wanted)}.")
    counts = tuple(map(int, wanted))
    for case in cases:
        yield replace(case, clients=counts, busy=max(counts)) if counts else case


if __name__ == "__main__":
    console.run_recipe(main)
