"""A version's replica: a worker process with the archive's own marship, and an acceptor before it.

Both are the direct host's: the worker reads requests and writes responses itself, and the acceptor
answers for a worker that died. So responses are the direct host's byte for byte; what is here
passes them on.
"""

import asyncio
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship.engines.ray import binding, node, plan, problems
from marship.engines.ray.archives import ArchiveSource
from marship.engines.ray.line import Answer, Asked, LinePool
from marship.engines.ray.worker import Counts, ReplicaWorker, environment
from marship.errors import LoadError, MarshipError
from marship.serving.hosts.direct.acceptor import Acceptor
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.seats import ModelState
from marship.serving.model import keysource

logger = logging.getLogger(__name__)

_SEATED_S, _LOOK_S = 20.0, 0.01
_AGAIN_S = 0.5
_MOST_FAILURES = 3
_QUIET = {"MARSHIP_DIRECT_QUEUE": str(plan.QUEUE)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """What a replica serves.

    Attributes:
        name: The name that clients use.
        version: The archive's.
        source: The archive.
        batch_size: Maximum requests in one batch.
        startup_s: How long a worker may load.
        has_gpu: Whether it runs on an accelerator.
        seal_key: The source of the key of a sealed model, read on each node.
    """

    name: str
    version: str
    source: ArchiveSource
    batch_size: int
    startup_s: float
    has_gpu: bool
    seal_key: str | None = None


class Replica:
    """Serves one version of one model.

    Args:
        served: What it serves.

    Raises:
        ReplicaError: It cannot; the message carries the reason.
    """

    def __init__(self, served: ReplicaSpec) -> None:
        binding.keep_to(node.address())
        self._served, self._failures = served, 0
        self._folder = Path(tempfile.mkdtemp(prefix="marship-"))
        self._counts, self._is_closed = Counts(), False
        self._lines: LinePool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._meters: dict[str, Any] = {}
        self._acceptor: Acceptor | None = None
        try:
            self._placed = node.place(served.source)
            self._worker = self._start()
            self.facts = self._worker.wait_ready(served.startup_s)
        except MarshipError as error:
            self._close()
            raise problems.ReplicaError(error) from None

    def _start(self) -> ReplicaWorker:
        served, placed = self._served, self._placed
        task = {
            "name": served.name,
            "archive": served.source.file,
            "folder": str(placed.folder),
            "handler": str(placed.manifest["model"].get("handler", "")),
            "manifest": placed.manifest,
            "config": placed.config,
            "batch_size": served.batch_size,
            "device": 0 if served.has_gpu else None,
        }
        settings = {
            **_QUIET,
            "MARSHIP_DIRECT_WORKERS": str(self._folder / "workers.sock"),
            "MARSHIP_MAX_REQUEST_SIZE": str(plan.MOST_BYTES),
            "MARSHIP_MAX_RESPONSE_SIZE": str(plan.MOST_BYTES),
            "TMPDIR": str(self._folder),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if served.seal_key is not None:
            settings[keysource.SOURCE_VARIABLE] = served.seal_key
        return ReplicaWorker(task, environment(settings), self._log(), self._count, self._restart)

    def _log(self) -> Path:
        """A file among Ray's logs, which its dashboard and `ray logs` show."""
        import ray

        running: Any = ray._private.worker._global_node  # no public way
        logs = Path(running.get_logs_dir_path())
        return logs / f"marship-{self._served.name}-{self._served.version}-{os.getpid()}.log"

    def _count(self, line: str) -> None:
        counted = self._counts.add(line)
        if counted is None:
            return
        from ray.util.metrics import Counter

        (name, code), value = counted
        if name not in self._meters:
            self._meters[name] = Counter(name, tag_keys=("model_name", "model_version", "code"))
        tags = {"model_name": self._served.name, "model_version": self._served.version}
        if value > 0:
            self._meters[name].inc(value, {**tags, "code": code})

    def _restart(self) -> None:
        """Start another worker in place of one that ended; else Ray ends the replica."""
        while not self._is_closed and self._failures < _MOST_FAILURES:
            try:
                self._worker = self._start()
                self._worker.wait_ready(self._served.startup_s)
            except MarshipError:
                self._failures += 1
                logger.exception("a worker must start again, got an error")
                time.sleep(_AGAIN_S)
            else:
                self._failures = 0
                return

    async def _ready(self) -> LinePool:
        """Connections to the worker; the acceptor runs in the loop that asks first."""
        if self._lines is None:
            self._loop = asyncio.get_running_loop()
            self._lines = LinePool(str(self._folder / "direct.sock"))
            limits = Limits(request_bytes=plan.MOST_BYTES)
            acceptor = self._acceptor = Acceptor(self._loop, None, limits)
            acceptor.serve_workers(_listener(self._folder / "workers.sock", socket.SOCK_SEQPACKET))
            acceptor.listen(_listener(self._folder / "direct.sock", socket.SOCK_STREAM))
            name, version = self._served.name, self._served.version
            acceptor.follow({name: ModelState(version, (version,), {version: 1}, {version: 1})})
        end = asyncio.get_running_loop().time() + _SEATED_S
        while not self._is_seated():
            if asyncio.get_running_loop().time() > end:
                break  # the acceptor says so, as it does elsewhere
            await asyncio.sleep(_LOOK_S)
        return self._lines

    def _is_seated(self) -> bool:
        served = self._served
        assert self._acceptor is not None  # noqa: S101  it was made
        return self._acceptor.seats.least_busy(served.name, served.version) is not None

    async def check_health(self) -> None:
        """Called by Ray every second or so.

        Raises:
            ReplicaError: No worker can be started any more: another replica must be.
        """
        if self._failures >= _MOST_FAILURES:
            raise problems.ReplicaError(
                LoadError(f"a worker of {self._served.name} must live, got {self._failures} deaths")
            )
        await self._ready()

    async def ask(self, request: Asked) -> Answer:
        """The response to a request, whole."""
        return await (await self._ready()).whole(request)

    async def stream(self, request: Asked) -> AsyncIterator[Answer]:
        """The response to a request in parts."""
        async for part in (await self._ready()).send(request):
            yield part

    async def counts(self) -> dict[str, Any]:
        """What the workers counted so far, and where."""
        pairs = [*self._counts.totals.items(), *self._counts.gauges.items()]
        return {"node": node.address(), "counts": [(*key, value) for key, value in pairs]}

    async def told(self) -> dict[str, Any]:
        """What the worker tells of itself."""
        return self.facts

    def __del__(self) -> None:
        """End the worker: Serve calls this at a replica's end."""
        self._close()

    def _close(self) -> None:
        self._is_closed = True
        if worker := getattr(self, "_worker", None):
            worker.end()
        shutil.rmtree(self._folder, ignore_errors=True)


def _listener(path: Path, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.listen(1024)
    listener.setblocking(False)
    return listener
