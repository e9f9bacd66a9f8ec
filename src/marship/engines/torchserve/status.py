"""What the server says of its models, and waiting until their workers are ready.

A model is ready when every wanted worker says READY: TorchServe's `/ping` is healthy before.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from marship.engines.engine import ModelStatus, Wait, Worker
from marship.engines.torchserve import workerlog
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.workerlog import WorkerLog
from marship.errors import LoadError, NotFoundError, UsageError
from marship.exchange.calls import Call, Flow, Pause, path

LONGEST_NAME = 200
"""Of a model: it is part of files' names, whose longest is 255 bytes."""

_SHOWN_NAME = 40
_POLL_S = 0.2
_LAST_WORDS_POLLS = 10
_NEXT_WORKER_POLLS = 75
_ENDED = re.compile(r"^marship_joining_ended\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MARKED = re.compile(r"registration-(?P<id>[0-9a-f]+)/(?P<archive>.+)")


def checked_name(name: str) -> str:
    """The name, if the server can use it.

    Raises:
        UsageError: It cannot be part of an address, or TorchServe takes it for its token API.
    """
    if len(name) > LONGEST_NAME:
        raise UsageError(
            f"a model's name must have {LONGEST_NAME} characters at most, got {len(name)}: "
            f"{name[:_SHOWN_NAME]}... Choose another with --name."
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a model's name must be of letters, digits and _ . -, got {name!r}. "
            "Choose another with --name."
        )
    if name.startswith("token"):  # its management port takes any "/token" for a token request
        raise UsageError(
            f"a model's name must not start with token, got {name!r}: TorchServe would refuse "
            "every call about it. Choose another with --name."
        )
    return name


def describe(access: Access, name: str, version: str | None = None) -> Flow[list[ModelStatus]]:
    """One version of a model: the default, the named, or "all" of them.

    Raises:
        NotFoundError: There is no such model or version.
    """
    where = path("models", checked_name(name), *optional(version))
    try:
        answer = yield from access.authorized(Call("management", "GET", where))
    except NotFoundError as error:
        raise unknown(name, version) from error
    return [_status(raw) for raw in answer.json()]


class Watch:
    """Waits for the workers of one version of a model.

    Args:
        access: How the server is asked.
        name: The model.
        version: Its version.
        log: What the workers have logged since; None where the logs are not at hand.
        known: Workers from before, whose death says nothing about what is waited for.
    """

    def __init__(
        self,
        access: Access,
        name: str,
        version: str,
        log: WorkerLog | None,
        known: frozenset[str],
    ) -> None:
        self._access, self._name, self._version = access, name, version
        self._log, self._known = log, known
        self._pids: dict[str, int] = {}
        self.ready = 0

    def until(self, wanted: int, wait: Wait) -> Flow[ModelStatus]:
        """Wait until `wanted` workers are ready and no others exist.

        Raises:
            LoadError: A worker died before it was ready, or the time is over.
        """
        end = time.monotonic() + wait.timeout_s
        while True:
            (status,) = yield from describe(self._access, self._name, self._version)
            self.ready = status.ready
            if wait.on_wait:
                wait.on_wait(self.ready, wanted)
            if self.ready == wanted == len(status.workers):
                return status
            if self._has_died(status):
                yield from self._await_cause()
                raise self._load_error()
            if time.monotonic() > end:
                raise self._load_error(f"not ready after {wait.timeout_s:g} s")
            yield Pause(_POLL_S)

    def _has_died(self, status: ModelStatus) -> bool:
        """Whether the log says so, or the server has started another process in its place."""
        new = {w.id: w.pid for w in status.workers if w.id not in self._known and not w.ready}
        replaced = any(self._pids.get(id_, -1) not in (-1, pid) for id_, pid in new.items())
        self._pids |= new
        return replaced or bool(workerlog.dead_workers(self._lines()) & set(new))

    def _await_cause(self) -> Flow[None]:
        """Wait for why a worker died.

        Its last lines may still be on their way to the log. Or TorchServe lost them: it stops
        reading as soon as it sees a worker die. Then the worker that it starts next tells it.
        """
        cause, polls = workerlog.SILENT, 0
        for _ in range(_NEXT_WORKER_POLLS if self._log else 0):
            yield Pause(_POLL_S)
            lines = self._lines()
            before, cause = cause, workerlog.cause(lines)
            polls += workerlog.deaths(lines) > 1
            if cause == before != workerlog.SILENT or polls > _LAST_WORDS_POLLS:
                return

    def _lines(self) -> list[workerlog.Line]:
        return self._log.lines(self._name, self._version) if self._log else []

    def _load_error(self, reason: str | None = None) -> LoadError:
        lines = self._lines()
        cause = reason or (workerlog.cause(lines) if self._log else "it died while loading")
        log = f"Its log: {self._access.home.worker_log}" if self._log else "See the server's log."
        error = LoadError(f"a worker of {self._name} must load, got: {cause.rstrip('.')}. {log}")
        for text in workerlog.tail(lines):
            error.add_note(text)
        return error


def joining_ended(figures: str) -> frozenset[tuple[str, str]]:
    """Names and versions of models whose requests run alone since joined ones were not as alone.

    Args:
        figures: Of the metrics port, in Prometheus' text format.
    """
    found = set()
    for labels, value in _ENDED.findall(figures):
        known = dict(_LABEL.findall(labels))
        if float(value):
            found.add((known.get("model_name", ""), known.get("model_version", "")))
    return frozenset(found)


def unknown(name: str, version: str | None) -> NotFoundError:
    """What it means that the server does not know a model."""
    what = f"{name} version {version}" if version else name
    return NotFoundError(f"{what} must be registered, got no such model. See: marship models")


def optional(version: str | None) -> tuple[str, ...]:
    """The part of a path that names a version."""
    return () if version is None else (version,)


def marked(archive: str, registration: str) -> str:
    """An archive's address with the id of a registration, which the server tells ever after.

    TorchServe takes what follows the last slash for the file's name, and keeps the whole. So a
    version can be told from one that another client registered under the same number, even where
    the response to the registration was lost.
    """
    return f"registration-{registration}/{archive}"


def _status(raw: Mapping[str, Any]) -> ModelStatus:
    known = _MARKED.fullmatch(raw["modelUrl"])
    return ModelStatus(
        name=raw["modelName"],
        version=raw["modelVersion"],
        archive=known["archive"] if known else raw["modelUrl"],
        registration=known["id"] if known else "",
        min_workers=raw["minWorkers"],
        max_workers=raw["maxWorkers"],
        batch_size=raw["batchSize"],
        max_batch_delay_ms=raw["maxBatchDelay"],
        response_timeout_s=raw["responseTimeout"],
        loaded_at_startup=raw["loadedAtStartup"],
        workers=tuple(
            Worker(str(worker["id"]), worker["pid"], worker["status"] == "READY")
            for worker in raw["workers"]
        ),
        waiting=raw["jobQueueStatus"]["pendingRequests"],
    )
