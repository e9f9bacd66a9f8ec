"""Three parties: time, throughput and exactness beside a plain call and beside MPyC.

    python benchmarks/private_parties.py --peer
    python benchmarks/private_parties.py --cases mlp --rows 100

Each model is trained, exported and packaged, for three parties and plain. Party 0 is a worker of
TorchServe, parties 1 and 2 are processes of `marship party`; they talk over TLS 1.3. A client asks
for test rows one after the other, then 32 clients in 4 processes at once; through TorchServe's
frontend, and at the direct address. Medians in milliseconds. The processor's time of a question
does not depend on what else the machine does.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from socket import create_server
from typing import Any

import numpy as np
import onnx
import private_models
import psutil
from onnx import numpy_helper

import marship
from marship import Client, console
from marship.cli.tables import facts
from marship.engines.torchserve import server
from marship.private import MpcClient
from marship.private.mpc import archives, cards
from marship.serving.private.mpc.identity import KEY_VARIABLE
from marship.settings import flags, setting

SOURCE = Path(__file__).with_name("private_models.py")
PEER = Path(__file__).with_name("private_mpyc.py")
CLIENTS, PROCESSES = 32, 4
Address = tuple[str, str]
"""A home, and the address of an inference API."""


@dataclass(frozen=True)
class PartiesSettings:
    """What is measured."""

    cases: tuple[str, ...] = setting((), "mlp or cnn; may be repeated; else both")
    rows: int = setting(300, "test rows to ask for, one after the other", minimum=10)
    questions: int = setting(1600, "questions of all clients at once", minimum=CLIENTS)
    peer: bool = setting(False, "measure MPyC, too: it takes a minute")


def free_port(least: int = 0) -> int:
    """A port that nobody listens at."""
    with create_server(("127.0.0.1", least)) as ear:
        return int(ear.getsockname()[1])


def build(name: str, folder: Path) -> archives.SharedPackage:
    """Train, export and package a model, for three parties and plain."""
    private_models.write(f"{name}_relu", folder)
    run = folder / name
    files = {part: folder / f"{name}_relu.{part}" for part in ("pt", "npz")}
    marship.export(f"{SOURCE}:{name}_relu", weights=files["pt"], example=files["npz"], out=run)
    store = folder / "store"
    marship.package(run, marship.PackageSettings(name=f"{name}-plain", model_store=store))
    addresses = ["", *(f"127.0.0.1:{free_port()}" for _ in range(2))]
    paths = [cards.generate(n, one, folder / f"{name}-keys") for n, one in enumerate(addresses)]
    settings = marship.PackageSettings(name=name, model_store=store)
    return archives.package(run, settings, [str(card) for _, card in paths])


@contextmanager
def parties(name: str, folder: Path, packed: archives.SharedPackage) -> Iterator[list[int]]:
    """Parties 1 and 2 as processes: their pids."""
    started = []
    for number in (1, 2):
        key = folder / f"{name}-keys" / f"party{number}.key"
        line = [sys.executable, "-m", "marship", "party", packed.archives[number], "--key", key]
        with (folder / f"{name}-{number}.log").open("w") as log:
            started.append(subprocess.Popen(line, stdout=log, stderr=log))
    try:
        yield [one.pid for one in started]
    finally:
        for one in started:
            one.terminate()
            one.wait()


def timed(call: Callable[[Any], Any], rows: Any) -> tuple[np.ndarray, float, float]:  # noqa: ANN401
    """The results for rows, and the median and 95th percentile of a call, in milliseconds."""
    results, taken = [], []
    for row in rows:
        started = time.perf_counter()
        results.append(np.asarray(call(row)))
        taken.append(1e3 * (time.perf_counter() - started))
    return np.array(results), statistics.median(taken), float(np.quantile(taken, 0.95))


def asked(file: Path, address: Address, rows: np.ndarray, threads: int) -> float:
    """Ask for rows by several clients in this process; when the first question was sent."""

    def one(number: int) -> None:
        with Client(Path(address[0]), inference_url=address[1]) as client:
            party = MpcClient(file, client)
            for row in rows[number::threads]:
                party.predict(row)

    started = time.time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(threads)))
    return started


def processor_s(pids: Sequence[int]) -> float:
    """The processor's time that processes have used."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def rate(
    file: Path, address: Address, rows: np.ndarray, pids: Sequence[int]
) -> tuple[float, float]:
    """Questions a second of all clients at once, and milliseconds of the processor for each."""
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        share = [rows[n::PROCESSES] for n in range(PROCESSES)]
        warm = [pool.submit(asked, file, address, rows[:8], 1) for _ in share]
        for each in warm:
            each.result()
        before = processor_s(pids)
        running = [pool.submit(asked, file, address, one, CLIENTS // PROCESSES) for one in share]
        first = min(each.result() for each in running)
        took_s = time.time() - first
        return len(rows) / took_s, 1e3 * (processor_s(pids) - before) / len(rows)


def through(
    name: str, file: Path, address: Address, settings: PartiesSettings, pids: Sequence[int]
) -> dict[str, Any]:
    """One client, all clients, and plain calls beside; pids are of the server and the parties."""
    _, (held, labels) = private_models.data(f"{name}_relu")
    held, labels = held[: settings.rows], labels[: settings.rows]
    with Client(Path(address[0]), inference_url=address[1]) as client:
        party = MpcClient(file, client)
        timed(party.predict, held[:20])
        before = time.process_time()
        found, p50, p95 = timed(party.predict, held)
        client_ms = 1e3 * (time.process_time() - before) / len(held)
        plain, plain_ms, _ = timed(lambda row: client.predict(f"{name}-plain", row[None]), held)
    plain = plain.reshape(found.shape)
    many = np.resize(held, (settings.questions, *held.shape[1:]))
    a_second, processor_ms = rate(file, address, many, pids)
    return {
        "p50, ms": p50,
        "p95, ms": p95,
        "of the processor, client, ms": client_ms,
        "of the processor, server and parties in batches, ms": processor_ms,
        "plain p50, ms": plain_ms,
        "ratio to plain": p50 / plain_ms,
        f"a second, {CLIENTS} clients": a_second,
        "argmax equal": f"{int((found.argmax(1) == plain.argmax(1)).sum())} of {len(held)}",
        "accuracy": float((found.argmax(1) == labels).mean()),
        "plain accuracy": float((plain.argmax(1) == labels).mean()),
        "largest difference": float(np.abs(found - plain).max()),
    }


def peer_ms(folder: Path) -> tuple[float, float]:
    """MPyC's median and its largest error, with three processes and the same weights."""
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(folder / "mlp" / "model.onnx").graph.initializer
    ]
    matrices = [one for one in weights if one.ndim == 2]
    biases = sorted((one for one in weights if one.ndim == 1), key=len, reverse=True)
    first = next(one for one in matrices if one.shape == (64, 64))
    last = next(one for one in matrices if one.shape != (64, 64))
    _, (held, _) = private_models.data("mlp_relu")
    file = folder / "peer.npz"
    np.savez(file, w0=first.T, b0=biases[0], w1=last.T, b1=biases[-1], rows=held[:20])
    base = str(free_port(21_500))
    lines = [[sys.executable, PEER, file, "-M3", f"-I{n}", "-B", base] for n in range(3)]
    running = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in lines
    ]
    texts = [one.communicate(timeout=300)[0] for one in running]
    median, error = texts[0].split()[-2:]
    return float(median), float(error)


@flags(PartiesSettings)
def main(settings: PartiesSettings) -> None:
    """Measure three parties."""
    with tempfile.TemporaryDirectory(prefix="parties-") as name:
        folder = Path(name)
        for case in settings.cases or ("mlp", "cnn"):
            packed = build(case, folder)
            os.environ[KEY_VARIABLE] = str(folder / f"{case}-keys" / "party0.key")
            home = folder / f"home-{case}"
            with parties(case, folder, packed) as pids:
                started = server.start(
                    server.ServeSettings(home=home, model_store=folder / "store", free_ports=True)
                )
                try:
                    with Client(home) as client:
                        status = client.register(packed.archives[0].name, workers=1)
                        pids += [started.record.pid, *(w.pid or 0 for w in status.workers)]
                        client.register(f"{case}-plain.mar", workers=1)
                    places = {
                        "through TorchServe's frontend": started.record.inference_url,
                        "at the direct address": started.record.direct_url or "",
                    }
                    about = {"rounds": packed.rounds, "golden error": packed.error}
                    facts(about.items(), case)
                    for title, url in places.items():
                        found = through(case, packed.client_file, (str(home), url), settings, pids)
                        facts(found.items(), title)
                finally:
                    started.stop()
            if case == "mlp" and settings.peer:
                median, error = peer_ms(folder)
                facts({"p50, ms": median, "largest error": error}.items(), "MPyC, without TLS")


if __name__ == "__main__":
    console.run_recipe(main)
