"""Encrypted inference beside Orion v2, on the same models, row after row in turn.

    python benchmarks/private_orion.py --folder runs/orion
    python benchmarks/private_orion.py --cases mlp --rows 10

Orion v2 (PyPI, orion-v2-compiler and orion-v2-evaluator, over Lattigo in Go) has a venv of its own
and a process of its own, with one thread; ours runs here, on SEAL's one thread. Both get the same
weights, with batch norm folded, and the same rows: for each row first one answers, then the other,
while the first one waits. `server` is the evaluation alone, from the bytes of a question to those
of its answer. Both rings are under the bounds of 128 bits, and each case is tried with the rings
below: the one that is fastest and right is measured. Medians in milliseconds.
"""

import dataclasses
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import venvs
from private_cases import exported, layers
from torch import nn

import marship
from marship import console
from marship.cli.tables import facts
from marship.errors import ParityError
from marship.private import step
from marship.proof.cases import read_rows
from marship.serving.private import keys
from marship.serving.private.ckks import SecretKey
from marship.serving.private.evaluate import Evaluator
from marship.serving.private.plan import PLAN_FILE, HePlan
from marship.serving.private.public import PublicPlan
from marship.settings import flags, setting

PEER = Path(__file__).with_name("servers") / "orion_peer.py"
VERSION = "2.1.8"
PACKAGES = (
    f"orion-v2-compiler=={VERSION}",
    f"orion-v2-evaluator=={VERSION}",
    f"torch=={torch.__version__.split('+')[0]}",
)
USERS, ITEMS = 64, 1682
CLOSE = 0.01
"""Of the largest output: what is further off is not right, as `marship export` has it."""
Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OrionRing:
    """Orion's parameters: the ring's size, and the bits of its primes."""

    logn: int
    logq: tuple[int, ...]
    logp: tuple[int, ...]
    log_default_scale: int
    ring_type: str = "standard"

    def parameters(self) -> Reply:
        """With a secret as dense as ours, two in three not 0; Orion's default is 192 in all."""
        return dataclasses.asdict(self) | {"h": 2 * (1 << self.logn) // 3}


def _both(logn: int, *rest: Any) -> tuple[OrionRing, OrionRing]:  # noqa: ANN401
    return OrionRing(logn, *rest), OrionRing(logn, *rest, "conjugate_invariant")


RINGS: Mapping[str, tuple[OrionRing, ...]] = {
    "score": (*_both(12, (40, 29), (37,), 29), *_both(13, (50, 40), (50,), 40)),
    "mlp": (*_both(13, (46, 37, 37, 37), (48,), 37), *_both(14, (55, *[40] * 3), (61,), 40)),
    "cnn": (*_both(13, (38, *[27] * 5), (40,), 27), *_both(14, (55, *[40] * 5), (61,), 40)),
}
"""The smallest ring that fits, with bits of modulus under 106, 214 and 430 for 2^12, 2^13 and 2^14,
and the next one; the conjugate-invariant ring, Orion's default, has twice the slots."""


@dataclass(frozen=True)
class OrionSettings:
    """What is measured."""

    cases: tuple[str, ...] = setting((), "score, mlp or cnn; may be repeated; else all")
    rows: int = setting(30, "rows to ask both for", minimum=3)
    folder: Path | None = setting(None, "keeps models from run to run; else a temporary one")


class Scores(nn.Module):
    """One vector of a user times all items'."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Linear(USERS, ITEMS)

    def forward(self, user: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, 64), to (batch, 1682)."""
        return self.items(user)


def scores() -> nn.Module:
    """The model of the case `score`, which is exported with random weights."""
    torch.manual_seed(0)
    return Scores().eval()


def built(name: str, folder: Path) -> Path:
    """A run folder with a compiled model, made if it is missing."""
    run = folder / name if name == "score" else exported(name, "square", folder)
    if (run / PLAN_FILE).is_file():
        return run
    if name == "score":
        rows = np.random.default_rng(0).normal(size=(64, USERS)).astype(np.float32)
        np.savez(folder / "users.npz", user=rows)
        torch.save(scores().state_dict(), folder / "score.pt")
        marship.export(
            f"{Path(__file__)}:scores",
            weights=folder / "score.pt",
            example=folder / "users.npz",
            out=run,
        )
    step.compile_run(run)
    return run


class Ours:
    """A client's keys, and an evaluator that has them."""

    def __init__(self, run: Path) -> None:
        plan = HePlan.from_bytes((run / PLAN_FILE).read_bytes())
        self.public = PublicPlan.of(plan, "00" * 32)
        self.secret, self.evaluator = SecretKey(plan.ring), Evaluator(plan)
        started = time.perf_counter()
        stream = keys.generate(self.public, self.secret)
        self.sizes = {
            "ring": f"{plan.ring.degree}, {sum(plan.ring.bits)} bits",
            "keys, MB": len(stream) / 1e6,
            "rotations": len(plan.rotations()),
            "keys, ms": 1e3 * (time.perf_counter() - started),
        }
        self.loaded = keys.loaded(self.public, stream)

    def ask(self, row: np.ndarray) -> Reply:
        """One row's times and answer."""
        times = [time.perf_counter()]
        question = self.secret.encrypt(self.public.packed(row.astype(np.float64).ravel()))
        times.append(time.perf_counter())
        before = time.process_time()
        answer = self.evaluator.run(self.loaded, question)
        processor_ms = 1e3 * (time.process_time() - before)
        times.append(time.perf_counter())
        output = self.public.unpacked(self.secret.decrypt(answer, self.public.level))
        times.append(time.perf_counter())
        encrypt_ms, server_ms, decrypt_ms = (1e3 * float(ms) for ms in np.diff(times))
        return {
            "server, ms": server_ms,
            "of the processor, ms": processor_ms,
            "encrypt, ms": encrypt_ms,
            "decrypt, ms": decrypt_ms,
            "up, KB": len(question) / 1e3,
            "down, KB": len(answer) / 1e3,
            "output": output,
        }


class Orion:
    """Orion's process with one ring."""

    def __init__(self, python: Path, file: Path, ring: OrionRing) -> None:
        parameters = file.with_suffix(".json")
        parameters.write_text(json.dumps(ring.parameters()))
        self.log = file.with_suffix(".log")
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [python, PEER, file, parameters],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        bits = sum(ring.logq) + sum(ring.logp)
        self.sizes = {"ring": f"{1 << ring.logn}, {ring.ring_type}, {bits} bits"} | self._read()

    def ask(self, number: int) -> Reply:
        """One row's times and answer."""
        print(number, file=self._process.stdin)
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> Reply:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise ParityError(self.log.read_text().strip().rpartition("\n")[2])
        found: Reply = json.loads(line)
        return found


@contextmanager
def fastest(name: str, file: Path, wanted: np.ndarray) -> Iterator[Orion]:
    """Orion with the ring that is fastest for three rows, among those that are right."""
    python = venvs.python("orion", PACKAGES)
    chosen: tuple[float, Orion] | None = None
    for ring in RINGS[name]:
        one = None
        try:
            one = Orion(python, file, ring)
            replies = [one.ask(n) for n in range(3)]
            error = max(map(error_of, replies, wanted))
            took_ms = min(reply["of the processor, ms"] for reply in replies)
            print(f"Orion, {one.sizes['ring']}: {took_ms:.0f} ms, {100 * error:.2g} % off")
            if error < CLOSE and (chosen is None or took_ms < chosen[0]):
                if chosen:
                    chosen[1].stop()
                chosen, one = (took_ms, one), None
        except ParityError as error:
            print(f"Orion, {ring}: {error}")
        finally:
            if one:
                one.stop()
    if chosen is None:
        raise ParityError(f"Orion must answer {name} with one of its rings, got none.")
    try:
        yield chosen[1]
    finally:
        chosen[1].stop()


def error_of(reply: Reply, wanted: np.ndarray) -> float:
    """An answer's largest difference, as a share of the largest output."""
    found = np.asarray(reply["output"])[: wanted.size]
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def summary(sizes: Reply, replies: list[Reply], wanted: np.ndarray) -> Reply:
    """Medians of all rows, and how right they are."""
    names = [name for name in replies[0] if name != "output"]
    found = np.array([np.asarray(reply["output"])[: wanted.shape[1]] for reply in replies])
    same = int((found.argmax(1) == wanted.argmax(1)).sum())
    return (
        sizes
        | {name: statistics.median(reply[name] for reply in replies) for name in names}
        | {"largest error": max(map(error_of, replies, wanted))}
        | {"argmax equal": f"{same} of {len(found)}"}
    )


def compared(name: str, folder: Path, count: int) -> None:
    """Ask both for the same rows, in turn, and print what each took."""
    run = built(name, folder)
    examples = folder / "users.npz" if name == "score" else run / "heldout.npz"
    rows = next(iter(read_rows(examples).values()))[:count]
    plan = HePlan.from_bytes((run / PLAN_FILE).read_bytes())
    wanted = plan.compute(rows.reshape(len(rows), -1))
    file = folder / f"{name}-orion.npz"
    np.savez(file, **layers(run), rows=rows)
    ours = Ours(run)
    ours.ask(rows[0])
    with fastest(name, file, wanted) as orion:
        pairs = [(ours.ask(row), orion.ask(n)) for n, row in enumerate(rows)]
    both = [list(some) for some in zip(*pairs, strict=True)]
    facts(summary(ours.sizes, both[0], wanted).items(), f"{name}, marship")
    facts(summary(orion.sizes, both[1], wanted).items(), f"{name}, Orion v2 {VERSION}")
    for part in ("server, ms", "of the processor, ms"):
        ratios = [other[part] / one[part] for one, other in pairs]
        low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
        print(
            f"{name}, {part}: {middle:.1f} times faster, {low:.1f} to {high:.1f} for eight in ten"
        )


@flags(OrionSettings)
def main(settings: OrionSettings) -> None:
    """Measure encrypted inference beside Orion v2."""
    with tempfile.TemporaryDirectory(prefix="orion-") as temporary:
        folder = settings.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in settings.cases or RINGS:
            compared(name, folder, settings.rows)


if __name__ == "__main__":
    console.run_recipe(main)
