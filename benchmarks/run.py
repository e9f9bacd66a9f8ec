"""Measures marship and other model servers in interleaved rounds: `make bench`."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import load
import measurement
import report
import venvs
from cases import CASES
from peers import DEFAULT, PEERS
from suites import SUITES, Part

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
    suite: str = setting("", f"one of {', '.join(SUITES)}: fewer cases and peers")
    quick: bool = setting(False, "one short round, one worker each: a smoke test")
    out: Path = setting(Path("benchmarks/results"), "folder for table, JSON and pictures")


@flags(BenchSettings)
def main(settings: BenchSettings) -> None:
    """Measure marship and other model servers in interleaved rounds."""
    load.require_wrk()
    if settings.quick:
        settings = replace(settings, seconds=1, rounds=1, settle=1, workers=1)
    suite = _parts_of_suite(settings) if settings.suite else _whole(settings)
    peers = _named(PEERS, [name for part in suite for name in part.peers], "peers")
    settings.out.mkdir(parents=True, exist_ok=True)
    plan = measurement.Plan(settings.seconds, settings.rounds, settings.settle, settings.workers)
    measured: dict[str, Any] = {"machine": report.machine(), "settings": asdict(settings)}
    measured["cases"] = {}
    measured["versions"] = {
        name: venvs.versions(name, peer.packages)
        for name, peer in peers.items()
        if peer.packages is not None
    }
    for part in suite:
        case = replace(CASES[part.case], clients=part.clients, busy=max(part.clients))
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            measured["cases"][part.name] = report.summarize(
                measurement.measure_case(case, part.peers, plan, Path(folder))
            )
        report.write(measured, settings.out)
    report.show(measured, console.out)


def _parts_of_suite(settings: BenchSettings) -> Sequence[Part]:
    """The suite's parts, of the chosen cases where some are chosen."""
    if settings.suite not in SUITES:
        raise UsageError(f"suite must be of {', '.join(SUITES)}, got {settings.suite}.")
    if settings.peers or settings.clients:
        raise UsageError("a suite has its own peers and clients; choose among its cases only.")
    parts = SUITES[settings.suite]
    cases = _named({part.case: part for part in parts}, settings.cases, "cases of the suite")
    return [part for part in parts if part.case in cases or not cases]


def _whole(settings: BenchSettings) -> list[Part]:
    """The chosen cases, each with all chosen peers."""
    if not all(word.isdecimal() and int(word) for word in settings.clients):
        given = " ".join(settings.clients)
        raise UsageError(f"clients must be whole numbers from 1, got {given}.")
    clients = tuple(map(int, settings.clients))
    peers = tuple(_named(PEERS, settings.peers or DEFAULT, "peers"))
    cases = _named(CASES, settings.cases or tuple(CASES), "cases")
    return [Part(name, clients or case.clients, peers) for name, case in cases.items()]


def _named(known: Mapping[str, T], wanted: Sequence[str], what: str) -> dict[str, T]:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"{what} must be of {', '.join(known)}, got {', '.join(unknown)}.")
    return {name: known[name] for name in known if name in wanted}


if __name__ == "__main__":
    console.run_recipe(main)
