"""A version on a node: a worker process with the archive's own marship, and an acceptor before it.

Both are the direct host's: the worker reads requests and writes responses itself, and the acceptor
answers for a worker that died. So responses are the direct host's byte for byte, whoever asks at
the socket: a replica of Serve, or a run over many files.
"""

import asyncio
import logging
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship.engines.ray import keeper, node, plan
from marship.engines.ray.archives import ArchiveSource, Kept
from marship.engines.ray.scratch import ScratchFolder
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
class HostedVersion:
    """What is served on a node.

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


class Hosted:
    """A version on this node.

    Args:
        served: What it serves.
        kept: Reads an archive that lies at no URL.

    Attributes:
        facts: What the worker tells of itself.
        counts: What the workers counted so far.

    Raises:
        MarshipError: It cannot be served; the message says why.
    """

    def __init__(self, served: HostedVersion, kept: Kept = keeper.read) -> None:
        self._served, self._failures, self._is_closed = served, 0, False
        self._scratch, self._in_use = ScratchFolder(), ExitStack()
        self.counts = Counts()
        self._meters: dict[str, Any] = {}
        self._acceptor: Acceptor | None = None
        self._worker: ReplicaWorker | None = None
        try:
            self._placed = node.place(served.source, kept, self._in_use)
            self._worker = worker = self._start()
            self.facts = worker.wait_ready(served.startup_s)
        except BaseException:
            self.close()
            raise

    @property
    def socket(self) -> Path:
        """Where it answers HTTP once it is `ready`."""
        return self._scratch.path / "direct.sock"

    def _start(self) -> ReplicaWorker:
        served, placed = self._served, self._placed
        task = {
            "name": served.name,
            "archive": served.source.file,
            "folder": str(placed.folder),
            "scratch": str(self._scratch.path),
            "handler": str(placed.manifest["model"].get("handler", "")),
            "manifest": placed.manifest,
            "config": placed.config,
            "batch_size": served.batch_size,
            "device": 0 if served.has_gpu else None,
        }
        settings = {
            **_QUIET,
            "MARSHIP_DIRECT_WORKERS": str(self._scratch.path / "workers.sock"),
            "MARSHIP_MAX_REQUEST_SIZE": str(plan.MOST_BYTES),
            "MARSHIP_MAX_RESPONSE_SIZE": str(plan.MOST_BYTES),
            "TMPDIR": str(self._scratch.path),
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
        return logs / f"marship-{self._served.name[:60]}-{self._served.version}-{os.getpid()}.log"

    def _count(self, line: str) -> None:
        counted = self.counts.add(line)
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
                self._worker = worker = self._start()
                worker.wait_ready(self._served.startup_s)
            except MarshipError:
                self._failures += 1
                logger.exception("a worker must start again, got an error")
                time.sleep(_AGAIN_S)
            else:
                self._failures = 0
                return

    def check(self) -> None:
        """Check that a worker lives, or can be started.

        Raises:
            LoadError: None can be started any more.
        """
        if self._failures >= _MOST_FAILURES:
            raise LoadError(
                f"a worker of {self._served.name} must live, got {self._failures} deaths. "
                f"Its log: {self._log()}"
            )

    def listen(self) -> Acceptor:
        """Listen at the socket, in the loop that asks first."""
        if self._acceptor is None:
            acceptor = self._acceptor = Acceptor(
                asyncio.get_running_loop(), None, Limits(request_bytes=plan.MOST_BYTES)
            )
            workers = self._scratch.path / "workers.sock"
            acceptor.serve_workers(_listener(workers, socket.SOCK_SEQPACKET))
            acceptor.listen(_listener(self.socket, socket.SOCK_STREAM))
            name, version = self._served.name, self._served.version
            acceptor.follow({name: ModelState(version, (version,), {version: 1}, {version: 1})})
        return self._acceptor

    async def ready(self, within_s: float = _SEATED_S) -> bool:
        """Listen, and wait until a worker is there, if one is still to be started.

        Returns:
            Whether one is: else the acceptor says so to who asks, as it does elsewhere.
        """
        acceptor, loop = self.listen(), asyncio.get_running_loop()
        end = loop.time() + within_s
        while not self._is_seated(acceptor):
            if loop.time() > end or self._failures >= _MOST_FAILURES:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def _is_seated(self, acceptor: Acceptor) -> bool:
        served = self._served
        return acceptor.seats.least_busy(served.name, served.version) is not None

    def close(self) -> None:
        """End the worker, and remove its files."""
        self._is_closed = True
        if self._worker is not None:
            self._worker.end()
        self._in_use.close()
        self._scratch.remove()


def _listener(path: Path, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.listen(1024)
    listener.setblocking(False)
    return listener
