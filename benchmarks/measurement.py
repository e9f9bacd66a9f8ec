"""Measures one case: starts and checks every server, and measures all in interleaved rounds."""

import http.client
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import load
from cases import Case, CaseFiles, decode, prepare
from load import Figures
from peers import PEERS, Running, Setup

from marship import console
from marship.contract.tolerance import Tolerance, agree
from marship.errors import DataError

READY_TIMEOUT_S = 120
TOLERANCE = Tolerance(atol=1e-4, rtol=1e-3)
WARM_S = 1
SETTLED_S = 15

Results = dict[Setup, dict[int, list[Figures]]]
"""Figures of each setup by number of clients, one entry for each round."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How every server is measured.

    Attributes:
        seconds: Length of one measurement.
        rounds: How often each server is measured.
        settle: Seconds of load before anything counts: Java compiles hot code late, and
            still gets faster after ten thousand requests.
        workers: Most workers to try.
    """

    seconds: int
    rounds: int
    settle: int
    workers: int


def measure_case(case: Case, peers: Sequence[str], plan: Plan, folder: Path) -> Results:
    """Measure one case with each profile of the peers.

    Raises:
        DataError: A server does not respond, or not as bare ONNX Runtime does.
    """
    files = prepare(case, folder)
    servers: dict[Setup, Running] = {}
    try:
        for peer in peers:
            for profile in PEERS[peer].profiles:
                setup, running = _start_best(Setup(peer, profile), files, plan, folder)
                servers[setup] = running
        return _measure_in_rounds(servers, case, plan)
    finally:
        for running in servers.values():
            load.end(*running.pids)


def _start_best(setup: Setup, files: CaseFiles, plan: Plan, folder: Path) -> tuple[Setup, Running]:
    """Start a server, suspended, with the number of workers that makes it fastest."""
    choices = range(1, plan.workers + 1) if PEERS[setup.peer].scales else (1,)
    tried: list[tuple[float, Setup, Running]] = []
    for workers in choices:
        one = replace(setup, workers=workers)
        running = start(one, files, folder)
        rps = 0.0
        if running.request is not None:
            with load.awake(*running.pids):
                load.measure(running.request, files.case.busy, plan.settle)
        if len(choices) > 1:
            rps = _measure(running, files.case.busy, plan.seconds).rps
            console.err.print(f"{one.name}, {workers} workers: {rps:,.0f}/s")
        tried.append((rps, one, running))
    tried.sort(key=lambda entry: -entry[0])
    for _, _, slower in tried[1:]:
        load.end(*slower.pids)
    return tried[0][1], tried[0][2]


def start(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    """Start a server, compare its first response with bare ONNX Runtime's, and suspend it."""
    place = folder / f"{setup.name}-{setup.workers}".replace(" ", "-").replace("/", "")
    place.mkdir(parents=True)
    running = PEERS[setup.peer].start(setup, files, place)
    if running.request is None:
        return running
    try:
        response = _first_response(running, setup, place)
        if running.request.body is not None:
            _check(response, setup, files)
    except BaseException:
        load.end(*running.pids)
        raise
    load.freeze(*running.pids)
    return running


def _first_response(running: Running, setup: Setup, place: Path) -> bytes:
    began = time.monotonic()
    while True:
        try:
            return _send(running)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() - began > READY_TIMEOUT_S or not load.tree(*running.pids):
                log = place / "console.log"
                output = log.read_text(errors="replace")[-3000:] if log.exists() else ""
                raise DataError(f"{setup.name} must respond, got {error}. {output}") from error
            time.sleep(0.2)


def _send(running: Running) -> bytes:
    request = running.request
    body = None if request.body is None else request.body.read_bytes()
    call = urllib.request.Request(request.url, body, dict(request.headers))  # noqa: S310  loopback
    secure = urllib.request.HTTPSHandler(context=_own_certificates())
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)
    with direct.open(call, timeout=30) as response:
        received: bytes = response.read()
    return received


def _first_of_round(running: Running) -> None:
    """Return after the requests that the warm-up left in the server's queue.

    A server whose own clock ran while it was suspended refuses some for that.
    """
    until = time.monotonic() + SETTLED_S
    while True:
        try:
            _send(running)
        except urllib.error.HTTPError as error:
            refused = {http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.SERVICE_UNAVAILABLE}
            if error.code not in refused or time.monotonic() > until:
                raise
        else:
            return


def _own_certificates() -> ssl.SSLContext:
    """As wrk does, take the certificate that a server on loopback has made for itself."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _check(response: bytes, setup: Setup, files: CaseFiles) -> None:
    got = decode(response, files.case.form, list(files.wanted))
    got = {name: got[name].reshape(want.shape) for name, want in files.wanted.items()}
    if not agree(got, files.wanted, TOLERANCE):
        raise DataError(
            f"{setup.name} must respond as bare ONNX Runtime does, {files.wanted}, got {got}."
        )


def _measure_in_rounds(servers: dict[Setup, Running], case: Case, plan: Plan) -> Results:
    results: Results = {setup: defaultdict(list) for setup in servers}
    for round_ in range(plan.rounds):
        for clients in case.clients:
            for setup, running in servers.items():
                figures = _measure(running, clients, plan.seconds)
                results[setup][clients].append(figures)
                console.err.print(
                    f"{case.name} round {round_ + 1}, {clients} clients: {setup.name} "
                    f"{figures.rps:,.0f}/s, p50 {figures.p50_us / 1e3:.3f} ms, "
                    f"p99 {figures.p99_us / 1e3:.3f} ms, {figures.errors} errors"
                )
    return results


def _measure(running: Running, clients: int, seconds: int) -> Figures:
    """Warm up and measure one server while all others are suspended."""
    if running.request is None:
        done = subprocess.run(
            [*running.command, str(seconds)],
            env=running.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return load.parse(done.stdout + done.stderr)
    with load.awake(*running.pids):
        load.measure(running.request, clients, WARM_S)
        _first_of_round(running)
        return load.measure(running.request, clients, seconds)
