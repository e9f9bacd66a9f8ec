"""An archive and a cluster: what is checked here and on every node before the first file."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship.engines.home import Home, ServerRecord, default_home
from marship.engines.ray import access, archives, cluster, node, plan, registration
from marship.engines.ray.hosted import HostedVersion
from marship.engines.ray.plan import RunPlan
from marship.engines.ray.registration import Examined
from marship.errors import NotRunningError, StorageError, UsageError
from marship.predict import Run
from marship.predict.asking import longest_response_s
from marship.predict.bounds import longest_wait_s
from marship.predict.ray import shares
from marship.predict.ray.asker import LIMITS, ShareTask
from marship.predict.sources import Source

FEWEST_FILES = 32
"""Of a share: what is done again after an interruption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An archive and a cluster.

    Attributes:
        archive: The archive's path.
        address: HOST:PORT of the cluster, of which this machine is a node; None is the home's.
        home: The home folder; None is the default one.
        trust: Folder of public keys that the archive must be signed with; None is the home's.
    """

    archive: Path
    address: str | None = None
    home: Path | None = None
    trust: Path | None = None

    def examined(self) -> Examined:
        """The archive, checked here.

        Raises:
            MarshipError: As `registration.examined`.
        """
        return registration.examined(self.archive, self.trust or self._home.trust())

    @property
    def _home(self) -> Home:
        return Home((self.home or default_home()).absolute())

    @property
    def _record(self) -> ServerRecord | None:
        record = self._home.record()
        return record if record is not None and record.engine == "ray" else None

    def prepare(self, found: Examined, run: Run, sources: Sequence[Source]) -> "Prepared":
        """Connect, and have every node check what it needs.

        Raises:
            NotRunningError: There is no cluster.
            StorageError: A node cannot read the files or the archive.
            LoadError: A node has not what the archive needs, or there is no room.
        """
        record = self._record
        self._connect(record)
        planned = RunPlan.of(found.config, workers=None, batch_size=None)
        label = f"{found.name} {found.version}"
        cluster.check_resources(planned, label, 1)
        cluster.probe(None)
        in_flight = LIMITS.in_flight(run.in_flight, planned.batch_size)
        wait_s = longest_wait_s(planned.timeout_s, in_flight, planned.batch_size)
        served = HostedVersion(
            name=found.name,
            version=found.version,
            source=found.source,
            batch_size=planned.batch_size,
            startup_s=planned.startup_s,
            has_gpu=planned.gpus > 0,
            seal_key=registration.seal_source(record),
        )
        task = ShareTask(
            served=served,
            chunks=_shared(found),
            content_type=run.content_type,
            in_flight=in_flight,
            timeout_s=longest_response_s(run.content_type, sources, wait_s),
        )
        cluster.on_every_node(_look, task, _samples(sources))
        return Prepared(label, planned, task, _room(planned))

    def _connect(self, record: ServerRecord | None) -> None:
        address = self.address or (record.cluster if record is not None else None)
        if address is None:
            raise NotRunningError(
                f"a Ray cluster must run for --engine ray, got none of the home {self._home.path}. "
                "Name one with --address HOST:PORT, or start one with: marship serve --engine ray"
            )
        cluster.check_data_installed()
        own = self._home.path / access.TOKEN_FILE
        is_own = record is not None and record.cluster == address and own.is_file()
        with _without_rays_words():
            cluster.connect(address, own if is_own else None)


@contextmanager
def _without_rays_words() -> Iterator[None]:
    """Have Ray's C++ in this process write nothing to standard error.

    It tells of each actor of Ray Data that it might not start again, and that its level was set.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What nodes have checked.

    Attributes:
        label: The model and its version.
        plan: What a worker needs.
        task: What each worker does.
        workers: How many there is room for.
    """

    label: str
    plan: RunPlan
    task: ShareTask
    workers: int

    def shares_of(self, files: int) -> int:
        """Into how many shares files are divided.

        Example:
            >>> Prepared("m 1", None, None, workers=3).shares_of(10_000)
            313
        """
        return max(min(files, self.workers), math.ceil(files / FEWEST_FILES))


def _shared(found: Examined) -> list[Any]:
    """The archive's parts in Ray's object store, which nodes that have it already do not read."""
    import ray

    return [ray.put(part) for part in archives.chunks(found.path)]


def _room(planned: RunPlan) -> int:
    """How many workers there is room for: a core for each thread, as no requests are waited for."""
    import ray

    free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    cores = planned.cpus / plan.CPUS_A_THREAD
    room = free.get("CPU", 0.0) / cores
    if planned.gpus:
        room = min(room, free.get("GPU", 0.0) / planned.gpus)
    return max(1, int(room))


def _samples(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The first file, the last one and one between, as they are here."""
    found = []
    for source in (sources[0], sources[len(sources) // 2], sources[-1]):
        with suppress(OSError):  # it has just gone, as its row will tell
            found.append(shares.packed(source) | {"changed": source.stamp().modified})
    return found


def _look(task: ShareTask, samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Whether this node gets the archive, and reads some of the files. Runs as a task on a node."""

    def look() -> None:
        node.place(task.served.source, task.kept)
        for sample in samples:
            check_readable(shares.unpacked(dict(sample)), sample["changed"])

    return node.tried(look)


def check_readable(source: Source, changed: str) -> None:
    """Check that a file on this node is the one that was listed elsewhere.

    Raises:
        StorageError: It is not.
    """
    try:
        source.read()
        stamp = source.stamp()
    except OSError as error:
        got = error.strerror or str(error)
    except UsageError as error:
        got = str(error)
    else:
        if stamp.modified == changed:
            return
        got = "another file of that name"
    raise StorageError(
        f"node {node.address()} must read {source.name} as the machine that listed it, got: {got}. "
        "Put the files in a folder that all nodes mount at the same path, or name a URL."
    )
