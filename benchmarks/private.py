"""Encrypted inference: its time, sizes and exactness beside a plain call of the same model.

    python benchmarks/private.py
    python benchmarks/private.py --cases mlp --rows 100
    python benchmarks/private.py --recommend runs/recommend

training/digits.py trains its MLP 64-64-10 and its CNN on 28 x 28 pixels, with squares. TorchServe
serves each with two workers, once encrypted and once plain. A client asks for test rows one after
the other, then several clients at once. `server` is the evaluation alone, on one thread, without
HTTP. Medians in milliseconds.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import marship
from marship import Client, console
from marship.cli.tables import facts
from marship.contract import GOLDEN_FILE, read_golden
from marship.engines.torchserve import server
from marship.private import HeClient, step
from marship.proof.cases import read_rows
from marship.serving.private import keys
from marship.serving.private.ckks import SecretKey
from marship.serving.private.evaluate import Evaluator
from marship.serving.private.plan import PLAN_FILE, HePlan
from marship.serving.private.public import PublicPlan
from marship.settings import flags, setting

REPOSITORY = Path(__file__).parents[1]
NETWORKS = ("mlp", "cnn")
TOP, USERS = 10, 200


@dataclass(frozen=True)
class PrivateSettings:
    """What is measured."""

    cases: tuple[str, ...] = setting((), "mlp or cnn; may be repeated; else both")
    rows: int = setting(540, "test rows to ask for", minimum=1)
    clients: int = setting(4, "clients at once", minimum=1)
    recommend: Path | None = setting(
        None, "a run folder of training/recommend.py --ease 0, exported"
    )
    tensor: str = setting("layer_norm_4", "its tensor from which on scores are encrypted")


@dataclass
class Bench:
    """A folder for models, and the server of their archives."""

    folder: Path
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """The model store."""
        return self.folder / "store"

    def build(self, name: str) -> tuple[Path, Path]:
        """Train, export, compile and package a model, encrypted and plain: run and client file."""
        run = self.folder / name
        recipe = ["training/digits.py", "--activation", "square", "--network", name]
        words = [sys.executable, *recipe, "--run-dir", str(run)]
        subprocess.run(words, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        os.chdir(REPOSITORY)  # where the recipe's own module lies
        marship.export(run)
        step.compile_run(run)
        plain = marship.PackageSettings(name=f"{name}-plain", model_store=self.store)
        marship.package(run, plain)
        done = step.package(run, marship.PackageSettings(name=name, model_store=self.store))
        return run, done.client_file


def medians(call: Callable[[Any], Any], rows: Any) -> tuple[list[Any], float, float]:  # noqa: ANN401
    """The results for rows, and the median and 99th percentile of a call, in milliseconds."""
    results, taken = [], []
    for row in rows:
        started = time.perf_counter()
        results.append(call(row))
        taken.append(1e3 * (time.perf_counter() - started))
    return results, statistics.median(taken), float(np.quantile(taken, 0.99))


def alone(run: Path, rows: np.ndarray) -> dict[str, Any]:
    """The evaluation by itself: milliseconds by the clock and of the processor, and sizes."""
    data = (run / PLAN_FILE).read_bytes()
    plan = HePlan.from_bytes(data)
    public, evaluator, secret = (
        PublicPlan.of(plan, "00" * 32),
        Evaluator(plan),
        SecretKey(plan.ring),
    )
    stream = keys.generate(public, secret)
    loaded = keys.loaded(public, stream)
    questions, encrypt_ms, _ = medians(
        lambda row: secret.encrypt(public.packed(row.astype(np.float64).ravel())), rows
    )
    before = time.process_time()
    answers, server_ms, _ = medians(lambda question: evaluator.run(loaded, question), questions)
    processor_ms = 1e3 * (time.process_time() - before) / len(rows)
    _, decrypt_ms, _ = medians(lambda answer: secret.decrypt(answer, public.level), answers)
    return {
        "ring": f"{plan.ring.degree}, {sum(plan.ring.bits)} bits",
        "server, ms": server_ms,
        "of the processor, ms": processor_ms,
        "encrypt, ms": encrypt_ms,
        "decrypt, ms": decrypt_ms,
        "keys, MB": len(stream) / 1e6,
        "up, KB": len(questions[0]) / 1e3,
        "down, KB": len(answers[0]) / 1e3,
    }


def through(client: Client, file: Path, rows: np.ndarray, clients: int) -> dict[str, Any]:
    """Through TorchServe: one client, several clients, and plain calls beside."""
    name = file.name.removesuffix(".client.json")
    for archive in (name, f"{name}-plain"):
        client.register(f"{archive}.mar", workers=2)
    asked = HeClient(file, client, check_share=0.0)
    _, first_ms, _ = medians(asked.predict, rows[:1])
    answers, p50, p99 = medians(asked.predict, rows)
    plain = [client.predict(f"{name}-plain", row[None]) for row in rows[:20]]
    plain, plain_ms, _ = medians(lambda row: client.predict(f"{name}-plain", row[None]), rows)
    others = [HeClient(file, Client(client.home.path), check_share=0.0) for _ in range(clients)]
    for one in others:
        one.predict(rows[0])
    started, each = time.perf_counter(), max(5, len(rows) // 10)
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(medians, one.predict, rows[:each]) for one in others]:
            done.result()
    rate = clients * each / (time.perf_counter() - started)
    found, wanted = np.array(answers), np.array(plain).reshape(len(rows), -1)
    same = int((found.argmax(1) == wanted.argmax(1)).sum())
    return {
        "p50, ms": p50,
        "p99, ms": p99,
        "plain p50, ms": plain_ms,
        "ratio to plain": p50 / plain_ms,
        "first question, with new keys, ms": first_ms,
        f"a second, {clients} clients": rate,
        "argmax equal": f"{same} of {len(rows)}",
        "largest difference": float(np.abs(found - wanted).max()),
        "of outputs up to": float(np.abs(wanted).max()),
    }


def scores(run: Path, tensor: str) -> dict[str, Any]:
    """The recommender's last product: the same ten items as in the open, for real users."""
    step.compile_run(run, tensor)
    from marship.private.segments import SegmentedGraph

    held = {name: rows[:USERS] for name, rows in read_rows(run / "heldout.npz").items()}
    inputs = {name: rows for name, rows in held.items() if not name.startswith("target/")}
    row = {name: a[:1] for name, a in read_golden(run / GOLDEN_FILE)[-1].inputs.items()}
    graph = SegmentedGraph.load(run / "model.onnx", row, tensor)
    users, wanted = graph.split(inputs)
    plan = HePlan.from_bytes((run / PLAN_FILE).read_bytes())
    public, evaluator, secret = (
        PublicPlan.of(plan, "00" * 32),
        Evaluator(plan),
        SecretKey(plan.ring),
    )
    loaded = keys.loaded(public, keys.generate(public, secret))

    def asked(user: np.ndarray) -> np.ndarray:
        answer = evaluator.run(loaded, secret.encrypt(public.packed(user)))
        return public.unpacked(secret.decrypt(answer, public.level))

    found = np.array([asked(user) for user in users])
    best, open_best = (np.argsort(-one, kind="stable")[:, :TOP] for one in (found, wanted))
    same = int((best == open_best).all(1).sum())
    return alone(run, users[:50]) | {"top 10 equal and in order": f"{same} of {len(users)}"}


@flags(PrivateSettings)
def main(settings: PrivateSettings) -> None:
    """Measure encrypted inference."""
    with tempfile.TemporaryDirectory(prefix="private-") as folder:
        bench = Bench(Path(folder))
        built = {name: bench.build(name) for name in settings.cases or NETWORKS}
        started = server.start(
            server.ServeSettings(
                home=bench.folder / "home", model_store=bench.store, free_ports=True
            )
        )
        try:
            with Client(started.home.path) as client:
                for name, (run, file) in built.items():
                    rows = read_rows(run / "heldout.npz")["pixels"][: settings.rows]
                    facts(alone(run, rows[:50]).items(), name)
                    facts(through(client, file, rows, settings.clients).items(), "by TorchServe")
        finally:
            started.stop()
    if settings.recommend:
        facts(scores(settings.recommend, settings.tensor).items(), "score")


if __name__ == "__main__":
    console.run_recipe(main)
