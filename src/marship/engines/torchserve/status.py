"""The status of models on the server, and waiting until their workers are ready.

A model is ready when all wanted workers are READY: TorchServe's `/ping` is healthy before that.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from marship.engines.engine import ModelStatus, Wait, Worker
from marship.engines.names import checked_name
from marship.engines.torchserve import workerlog
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.workerlog import WorkerLog
from marship.errors import LoadError, NotFoundError
from marship.exchange.calls import Call, Flow, Pause, path

_POLL_S = 0.2
_CAUSE_POLLS = 10
_NEXT_WORKER_POLLS = 75
_MARKED = re.compile(r"registration-(?P<id>[0-9a-f]+)/(?P<archive>.+)")


def describe(access: Access, name: str, version: str | None = None) -> Flow[list[ModelStatus]]:
    """The status of a model's default version, of a given version, or of "all" versions.

    Raises:
        NotFoundError: There is no such model or version.
    """
    where = path("models", checked_name(name), *optional(version))
    try:
        response = yield from access.authorized(Call("management", "GET", where))
    except NotFoundError as error:
        raise unknown(name, version) from error
    return [_status(raw) for raw in response.json()]


class ReadinessWatch:
    """Waits for the workers of one version of a model.

    Args:
        access: The server's addresses and tokens.
        name: The model.
        version: Its version.
        log: The workers' log since then; None for a remote server.
        known: Ids of workers that existed before, whose crash is unrelated.
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
            LoadError: A worker crashed before it was ready, or the timeout passed.
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
                yield from self._wait_for_cause()
                raise self._load_error()
            if time.monotonic() > end:
                raise self._load_error(f"not ready after {wait.timeout_s:g} s")
            yield Pause(_POLL_S)

    def _has_died(self, status: ModelStatus) -> bool:
        """Whether a worker crashed, by the log, or because the server started another process."""
        new = {w.id: w.pid for w in status.workers if w.id not in self._known and not w.ready}
        replaced = any(self._pids.get(id_, -1) not in (-1, pid) for id_, pid in new.items())
        self._pids |= new
        return replaced or bool(workerlog.dead_workers(self._lines()) & set(new))

    def _wait_for_cause(self) -> Flow[None]:
        """Wait until the log has the cause of a crash.

        Its last lines may not have been written yet. Or TorchServe lost them: it stops reading
        as soon as a worker dies. Then the worker that it starts next logs the cause.
        """
        cause, polls = workerlog.SILENT, 0
        for _ in range(_NEXT_WORKER_POLLS if self._log else 0):
            yield Pause(_POLL_S)
            lines = self._lines()
            before, cause = cause, workerlog.cause(lines)
            polls += workerlog.deaths(lines) > 1
            if cause == before != workerlog.SILENT or polls > _CAUSE_POLLS:
                return

    def _lines(self) -> list[workerlog.LogLine]:
        return self._log.lines(self._name, self._version) if self._log else []

    def _load_error(self, reason: str | None = None) -> LoadError:
        lines = self._lines()
        cause = reason or (workerlog.cause(lines) if self._log else "it died while loading")
        log = f"Its log: {self._access.home.worker_log}" if self._log else "See the server's log."
        error = LoadError(f"a worker of {self._name} must load, got: {cause.rstrip('.')}. {log}")
        for text in workerlog.tail(lines):
            error.add_note(text)
        return error


def unknown(name: str, version: str | None) -> NotFoundError:
    """The error for a model that is not registered."""
    what = f"{name} version {version}" if version else name
    return NotFoundError(f"{what} must be registered, got no such model. See: marship models")


def optional(version: str | None) -> tuple[str, ...]:
    """The segment of a path for a version, if one is given."""
    return () if version is None else (version,)


def marked(archive: str, registration: str) -> str:
    """An archive's name with the id of a registration, which the server keeps and reports.

    TorchServe uses what follows the last slash as the file's name, and keeps the whole. So a
    version can be distinguished from one that another client registered under the same number,
    even if the response to the registration was lost.
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
