"""A worker of a host that has no engine: it loads an archive and serves until its host ends it.

The host starts the process with a task, and reads lines of JSON from it: that the model is loaded,
or why it is not, and then what was counted, each second. It holds the other end of the worker's
standard input: where that ends, so does the worker.
"""

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from marship.errors import LoadError, MarshipError
from marship.serving.hosts.direct import samples, worker
from marship.serving.hosts.direct.samples import SampleWriter
from marship.serving.hosts.direct.task import WorkerTask
from marship.serving.placement import Placement
from marship.serving.service import Service

REPORT_S = 1.0
ENDED = 1


def main(task: WorkerTask, reports: IO[bytes]) -> None:
    """Serve until standard input ends, or SIGTERM.

    Args:
        task: What to serve.
        reports: Takes the lines for the host.
    """

    def report(fact: Mapping[str, object]) -> None:
        reports.write(json.dumps(fact).encode() + b"\n")
        reports.flush()

    try:
        service, sampler = loaded(task)
    except MarshipError as error:
        report({"code": error.code, "message": str(error)})
        return
    except Exception as error:
        found = f"{type(error).__name__}: {error}".rstrip(".: ")
        report({"code": "load", "message": f"{task.handler} must load, got {found}."})
        return
    service.metrics.share_if_told(task.name, task.version)
    service.start()
    started = worker.start(service, _settings(task, sampler))
    report({"golden_cases": len(service.golden_s), "golden_requests": service.golden_requests})
    _start_reports(service, report)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())
    try:
        sys.stdin.buffer.read()
    finally:
        started.leave()


def loaded(task: WorkerTask) -> tuple[Service, SampleWriter | None]:
    """The archive's service, with its golden cases replayed, and what takes samples of requests.

    Raises:
        LoadError: It cannot be served; the message says why.
        SealError: The model is sealed and cannot be decrypted, or samples cannot be sealed.
    """
    service = _handler(Path(task.folder), task.handler)
    sampler = samples.told(task.name, task.version, is_private=service.is_private)
    service.load(_placement(task))
    return service, sampler


def _placement(task: WorkerTask) -> Placement:
    return Placement(
        folder=Path(task.folder),
        name=task.name,
        version=task.version,
        config=task.config,
        device_id=task.device_id,
        workers=task.workers,
        timeout_s=task.timeout_s,
        max_request_bytes=task.request_bytes,
        max_response_bytes=task.response_bytes,
    )


def _settings(task: WorkerTask, sampler: SampleWriter | None) -> worker.WorkerSettings:
    return worker.WorkerSettings(
        acceptor=Path(task.acceptor),
        model=task.name,
        version=task.version,
        batch=task.batch,
        queue=task.queue,
        key_file=Path(task.key_file) if task.key_file else None,
        sampler=sampler,
    )


def _handler(folder: Path, name: str) -> Service:
    """An instance of the only class that the handler's file defines."""
    stem = Path(name).stem
    if not (folder / f"{stem}.py").is_file():
        raise LoadError(
            f"{name} must be in the archive, got a handler of another place. Package the model "
            "again with --handler."
        )
    try:
        module = importlib.import_module(stem)
    except ImportError as error:
        advice = f" Install it for {sys.executable}." * isinstance(error, ModuleNotFoundError)
        raise LoadError(f"{name} must be importable, got: {error}.{advice}") from error
    defined = [kind for kind in vars(module).values() if isinstance(kind, type)]
    kinds = [kind for kind in defined if kind.__module__ == stem]
    if len(kinds) != 1 or not issubclass(kinds[0], Service):
        raise LoadError(
            f"{name} must define one class, and that an OnnxHandler, got "
            f"{', '.join(kind.__name__ for kind in kinds) or 'none'}. Package another handler."
        )
    kind = kinds[0]
    own = next((base for base in kind.__mro__ if "initialize" in vars(base)), None)
    if own is not None and own.__module__ != "marship.serving.handler":
        raise LoadError(
            f"{name} must load without an engine's context, got one that overrides initialize. "
            "Move what it does to prepare."
        )
    made: Service = kind()
    return made


def _start_reports(service: Service, report: Callable[[Mapping[str, object]], None]) -> None:
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(REPORT_S):
            counts, gauges = service.metrics.take()
            try:
                report(
                    {
                        "counts": [(one.name, one.code, one.value) for one in counts],
                        "gauges": [(one.name, one.value) for one in gauges],
                    }
                )
            except OSError:  # the host has ended
                os._exit(ENDED)

    threading.Thread(target=run, name="reports", daemon=True).start()
