"""Each model in a process of its own: one that crashes or hangs costs no other."""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from collection import trial
from collection.sample import Sample
from collection.trial import Outcome

LONGEST_S = 300
"""A model that takes longer is ended."""
_FORK = multiprocessing.get_context("fork")


@dataclass(slots=True)
class _Running:
    sample: Sample
    process: ForkProcess
    answer: connection.Connection
    until: float


def outcomes(samples: Sequence[Sample], scratch: Path, count: int) -> Iterator[Outcome]:
    """Outcomes as they come; so many models are tried at the same time."""
    left, running = list(reversed(samples)), list[_Running]()
    work = Path(tempfile.mkdtemp(dir=scratch))
    try:
        while left or running:
            while left and len(running) < count:
                running.append(_started(left.pop(), work))
            connection.wait([item.process.sentinel for item in running], timeout=1)
            for item in [item for item in running if _is_over(item)]:
                running.remove(item)
                yield _ended(item)
    finally:
        for item in running:
            item.process.kill()
        shutil.rmtree(work)


def _started(sample: Sample, work: Path) -> _Running:
    reader, writer = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_try, args=(sample, work, writer))
    process.start()
    writer.close()
    return _Running(sample, process, reader, time.monotonic() + LONGEST_S)


def _try(sample: Sample, work: Path, writer: Any) -> None:  # noqa: ANN401  a Connection
    """In a process of its own: what a model prints, or a crash, is its own."""
    folder = Path(tempfile.mkdtemp(dir=work))
    with (folder / "printed.txt").open("wb") as printed:
        os.dup2(printed.fileno(), sys.stdout.fileno())
        os.dup2(printed.fileno(), sys.stderr.fileno())
    try:
        writer.send(trial.tried(sample, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_over(item: _Running) -> bool:
    if time.monotonic() > item.until:
        item.process.kill()
    return item.answer.poll() or not item.process.is_alive()


def _ended(item: _Running) -> Outcome:
    try:
        outcome: Outcome = item.answer.recv()
    except EOFError:
        item.process.join()
        remark = f"the process ended with {item.process.exitcode} after at most {LONGEST_S} s"
        outcome = Outcome(item.sample.kind, item.sample.name, trial.TRACEBACK, remark)
    item.process.join()
    item.answer.close()
    return outcome
