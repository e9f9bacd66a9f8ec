"""One case: every contender is started, checked, and measured in turns with all the others."""

import http.client
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import load
from cases import Case, Material, decode, prepare
from load import Figures
from peers import PEERS, Contender, Running

from marship import console
from marship.contract import Tolerance, agree
from marship.errors import DataError

READY_TIMEOUT_S = 120
TOLERANCE = Tolerance(atol=1e-4, rtol=1e-3)
WARM_S = 1

Results = dict[Contender, dict[int, list[Figures]]]
"""What each contender did, by number of clients, one entry for each round."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How all are measured.

    Attributes:
        seconds: Of one measurement.
        rounds: How often all take their turn.
        settle: Seconds of load before anything counts: Java compiles what it runs often, and
            still gains after ten thousand requests.
        workers: At most.
    """

    seconds: int
    rounds: int
    settle: int
    workers: int


def hold(case: Case, peers: Sequence[str], rules: Rules, folder: Path) -> Results:
    """Measure the peers' contenders with one case.

    Raises:
        DataError: A server does not answer, or not as bare ONNX Runtime does.
    """
    material = prepare(case, folder)
    field: dict[Contender, Running] = {}
    try:
        for peer in peers:
            for profile in PEERS[peer].profiles:
                contender, running = _enter(Contender(peer, profile), material, rules, folder)
                field[contender] = running
        return _take_turns(field, case, rules)
    finally:
        for running in field.values():
            load.end(running.pid)


def _enter(
    contender: Contender, material: Material, rules: Rules, folder: Path
) -> tuple[Contender, Running]:
    """Start a contender, frozen, with the number of workers that serves it best."""
    choices = range(1, rules.workers + 1) if PEERS[contender.peer].scales else (1,)
    entries: list[tuple[float, Contender, Running]] = []
    for workers in choices:
        one = replace(contender, workers=workers)
        running = start(one, material, folder)
        rps = 0.0
        if running.request is not None:
            with load.awake(running.pid):
                load.measure(running.request, material.case.busy, rules.settle)
        if len(choices) > 1:
            rps = _measure(running, material.case.busy, rules.seconds).rps
            console.err.print(f"{one.name}, {workers} workers: {rps:,.0f}/s")
        entries.append((rps, one, running))
    entries.sort(key=lambda entry: -entry[0])
    for _, _, slower in entries[1:]:
        load.end(slower.pid)
    return entries[0][1], entries[0][2]


def start(contender: Contender, material: Material, folder: Path) -> Running:
    """Start a server, hold its first answer against bare ONNX Runtime's, and freeze it."""
    place = folder / f"{contender.name}-{contender.workers}".replace(" ", "-").replace("/", "")
    place.mkdir(parents=True)
    running = PEERS[contender.peer].start(contender, material, place)
    if running.request is None:
        return running
    try:
        answer = _first_answer(running, contender, place)
        if running.request.body is not None:
            _check(answer, contender, material)
    except BaseException:
        load.end(running.pid)
        raise
    load.freeze(running.pid)
    return running


def _first_answer(running: Running, contender: Contender, place: Path) -> bytes:
    began = time.monotonic()
    while True:
        try:
            return _ask(running)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() - began > READY_TIMEOUT_S or not load.tree(running.pid):
                log = place / "console.log"
                said = log.read_text(errors="replace")[-3000:] if log.exists() else ""
                raise DataError(f"{contender.name} must answer, got {error}. {said}") from error
            time.sleep(0.2)


def _ask(running: Running) -> bytes:
    request = running.request
    body = None if request.body is None else request.body.read_bytes()
    call = urllib.request.Request(request.url, body, dict(request.headers))  # noqa: S310  loopback
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(call, timeout=30) as answer:
        found: bytes = answer.read()
    return found


def _check(answer: bytes, contender: Contender, material: Material) -> None:
    got = decode(answer, material.case.form, list(material.wanted))
    got = {name: got[name].reshape(want.shape) for name, want in material.wanted.items()}
    if not agree(got, material.wanted, TOLERANCE):
        raise DataError(
            f"{contender.name} must answer as bare ONNX Runtime does, {material.wanted}, got {got}."
        )


def _take_turns(field: dict[Contender, Running], case: Case, rules: Rules) -> Results:
    results: Results = {contender: defaultdict(list) for contender in field}
    for round_ in range(rules.rounds):
        for clients in case.clients:
            for contender, running in field.items():
                figures = _measure(running, clients, rules.seconds)
                results[contender][clients].append(figures)
                console.err.print(
                    f"{case.name} round {round_ + 1}, {clients} clients: {contender.name} "
                    f"{figures.rps:,.0f}/s, p50 {figures.p50_us / 1e3:.3f} ms, "
                    f"p99 {figures.p99_us / 1e3:.3f} ms, {figures.errors} errors"
                )
    return results


def _measure(running: Running, clients: int, seconds: int) -> Figures:
    """Warm up and measure one server while all others stand still."""
    if running.request is None:
        done = subprocess.run(
            [*running.command, str(seconds)],
            env=running.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return load.parse(done.stdout + done.stderr)
    with load.awake(running.pid):
        load.measure(running.request, clients, WARM_S)
        _ask(running)  # it comes after what the warm-up left in the server's queue
        return load.measure(running.request, clients, seconds)
