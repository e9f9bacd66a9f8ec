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
import psutil
from private_cases import exported, layers

import marship
from marship import Client, console
from marship.cli.tables import facts
from marship.engines.torchserve import server
from marship.errors import ServerError
from marship.private import MpcClient
from marship.private.client_file import SUFFIX
from marship.private.mpc import archives, cards
from marship.proof.cases import read_rows
from marship.serving.private.mpc.identity import KEY_VARIABLE
from marship.settings import flags, setting
from marship.storage import read_json

REPOSITORY = Path(__file__).parents[1]
PEER = Path(__file__).with_name("private_mpyc.py")
CLIENTS, PROCESSES, PEER_TURNS, EACH = 32, 4, 16, 20
Address = tuple[str, str]
"""The address of an inference API, and its token: clients are elsewhere."""


@dataclass(frozen=True)
class PartiesSettings:
    """What is measured."""

    cases: tuple[str, ...] = setting((), "mlp or cnn; may be repeated; else both")
    rows: int = setting(300, "test rows to ask for, one after the other", minimum=10)
    questions: int = setting(1600, "questions of all clients at once", minimum=CLIENTS)
    peer: bool = setting(False, "measure MPyC, too: it takes a minute")
    folder: Path | None = setting(None, "keeps models from run to run; else a temporary one")


def free_port(least: int = 0) -> int:
    """A port that nobody listens at."""
    with create_server(("127.0.0.1", least)) as ear:
        return int(ear.getsockname()[1])


def build(name: str, run: Path, folder: Path) -> archives.SharedPackage:
    """Package a model, for three parties and plain."""
    os.chdir(REPOSITORY)  # where the recipe's own module lies
    store = folder / "store"
    marship.package(run, marship.PackageSettings(name=f"{name}-plain", model_store=store))
    addresses = ["", *(f"127.0.0.1:{free_port()}" for _ in range(2))]
    paths = [cards.generate(n, one, folder / f"{name}-keys") for n, one in enumerate(addresses)]
    settings = marship.PackageSettings(name=name, model_store=store)
    return archives.package(run, settings, [str(card) for _, card in paths])


def test_rows(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test pictures and their labels."""
    rows = read_rows(run / "heldout.npz")
    return rows["pixels"], rows["target/label"]


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
        with Client(inference_url=address[0], inference_token=address[1]) as client:
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
    file: Path, run: Path, address: Address, settings: PartiesSettings, pids: Sequence[int]
) -> dict[str, Any]:
    """One client, all clients, and plain calls beside; pids are of the server and the parties."""
    name = file.name.removesuffix(SUFFIX)
    held, labels = (array[: settings.rows] for array in test_rows(run))
    with Client(inference_url=address[0], inference_token=address[1]) as client:
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


class Peer:
    """MPyC's three processes with the weights of our MLP."""

    def __init__(self, run: Path, rows: np.ndarray, file: Path) -> None:
        found = layers(run)
        np.savez(
            file,
            w0=16 * found["0.weight"].T,  # of pixels up to 1, as our parties have them
            b0=found["0.bias"],
            w1=found["1.weight"].T,
            b1=found["1.bias"],
            rows=rows / 16,
        )
        base = str(free_port(21_500))
        lines = [
            [sys.executable, PEER, file, "-M3", f"-I{n}", "-B", base, "--no-log"] for n in range(3)
        ]
        self._running = [
            subprocess.Popen(
                line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
            )
            for line in lines
        ]
        self.pids = [one.pid for one in self._running]

    def ask(self) -> tuple[float, float]:
        """Milliseconds and the error of the next row."""
        first = self._running[0]
        print(file=first.stdin)
        for line in first.stdout or ():
            took_ms, error = line.split()
            return float(took_ms), float(error)
        raise ServerError("MPyC must answer, got the end of its party 0.")

    def stop(self) -> None:
        """End the processes."""
        for one in self._running:
            one.kill()
            one.communicate()


def beside(file: Path, run: Path, address: Address, pids: Sequence[int]) -> dict[str, Any]:
    """The same rows in turn, several of ours for one of MPyC's, which takes as long or longer.

    Ours at the direct address, with TLS between parties; MPyC's without.
    """
    rows = test_rows(run)[0][: PEER_TURNS * EACH].reshape(PEER_TURNS, EACH, -1)
    peer = Peer(run, rows[:, 0], file.with_name("peer.npz"))
    ours: list[tuple[float, float]] = []
    others: list[tuple[float, float, float]] = []
    try:
        with Client(inference_url=address[0], inference_token=address[1]) as client:
            party = MpcClient(file, client)
            for some in rows:
                party.predict(some[0])  # caches are MPyC's
                before = processor_s(pids) + time.process_time()
                _, took_ms, _ = timed(party.predict, some)
                spent_s = processor_s(pids) + time.process_time() - before
                ours.append((took_ms, 1e3 * spent_s / EACH))
                before = processor_s(peer.pids)
                took_ms, error = peer.ask()
                others.append((took_ms, 1e3 * (processor_s(peer.pids) - before), error))
    finally:
        peer.stop()
    kept = slice(PEER_TURNS // 4, None)  # the first are slower
    one, other = np.array(ours)[kept], np.array(others)[kept]
    return {
        "ours p50, ms": float(np.median(one[:, 0])),
        "MPyC p50, ms": float(np.median(other[:, 0])),
        "ratio": float(np.median(other[:, 0] / one[:, 0])),
        "of the processor, client too, ours, ms": float(one[:, 1].mean()),
        "of the processor, MPyC, ms": float(other[:, 1].mean()),
        "ratio of the processor": float(other[:, 1].mean() / one[:, 1].mean()),
        "MPyC's largest error": float(other[:, 2].max()),
    }


@flags(PartiesSettings)
def main(settings: PartiesSettings) -> None:
    """Measure three parties."""
    with tempfile.TemporaryDirectory(prefix="parties-") as name:
        folder = Path(name)
        for case in settings.cases or ("mlp", "cnn"):
            run = exported(case, "relu", settings.folder or folder)
            packed = build(case, run, folder)
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
                    token = read_json(started.home.key_file)["inference"]["key"]
                    about = {"rounds": packed.rounds, "golden error": packed.error}
                    facts(about.items(), case)
                    for title, url in places.items():
                        found = through(packed.client_file, run, (url, token), settings, pids)
                        facts(found.items(), title)
                    if case == "mlp" and settings.peer:
                        place = (started.record.direct_url or "", token)
                        figures = beside(packed.client_file, run, place, pids)
                        facts(figures.items(), "in turn with MPyC, which has no TLS")
                finally:
                    started.stop()


if __name__ == "__main__":
    console.run_recipe(main)
