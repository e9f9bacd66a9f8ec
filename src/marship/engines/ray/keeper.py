"""A cluster's keeper: an actor that holds archives on the disk of one node, the token, and locks.

Where all nodes can read a folder or a URL, archives lie there instead (`--archives`), and the
keeper's node may be lost.
"""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from marship.engines.locks import REPORT_AFTER_S
from marship.engines.ray import archives
from marship.errors import NotRunningError, ServerError
from marship.exchange.calls import Pause

NAME, NAMESPACE = "keeper", "marship"
_CALL_S, _PAUSE_S = 60.0, 0.2
_LOCK, _DIGEST = ".lock", 64
_ABANDONED_S = 86_400.0


class Keeper:
    """Holds what outlives the clients; restarted by Ray where its process dies.

    Args:
        key: The token that requests must carry; None asks for none.
        url: Where archives lie for all nodes; None is here.
        session: Ray's name of the cluster.
    """

    def __init__(self, key: str | None, url: str | None, session: str) -> None:

        # on the head: the node of a keeper before may be lost, and fronts ask for that one's key
        before = json.loads(_kv("get", "facts") or b"{}")
        self._key, self._url = before.get("key", key), url or before.get("url")
        _kv("put", "facts", json.dumps(self.facts()).encode(), overwrite=True)
        self._owners: dict[str, str] = {}
        self._wanted: dict[str, set[str]] = {}
        self._folder = folder_of(session)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(self._folder)
        self._lock = (self._folder / _LOCK).open("a")
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        _remove_abandoned(self._folder.parent)

    def facts(self) -> dict[str, str | None]:
        """What another home of the same cluster needs."""
        return {"key": self._key, "url": self._url}

    def take(self, lock: str, owner: str) -> str | None:
        """Give a lock to an owner; or who has it.

        Args:
            lock: Its name.
            owner: The id of a job of Ray, which is a client's connection, and something unique.
        """
        held = self._owners.get(lock)
        if held is not None and (process := _process_of(held)) is not None:
            return process
        self._owners[lock] = owner
        return None

    def leave(self, lock: str, owner: str) -> None:
        """Take a lock back from its owner."""
        if self._owners.get(lock) == owner:
            del self._owners[lock]

    def note(self, app: str, text: str) -> None:
        """Remember what an application was deployed with, on the head: this node may be lost."""
        _kv("put", app, text.encode(), overwrite=True)

    def noted(self, app: str) -> str | None:
        """What an application was deployed with; None of an unknown one."""
        found = _kv("get", app)
        return None if found is None else str(found.decode())

    def forget(self, app: str) -> None:
        """Forget what an application was deployed with."""
        _kv("del", app)

    def want(self, digest: str, owner: str) -> None:
        """Keep an archive, whatever the table says, so long as its owner lives: see `take`."""
        self._wanted.setdefault(digest, set()).add(owner)

    def unwant(self, digest: str, owner: str) -> None:
        """The owner has listed it, or gave it up."""
        self._wanted.get(digest, set()).discard(owner)

    def sweep(self, listed: Collection[str]) -> None:
        """Remove archives that no version needs, and no client that is registering one.

        Args:
            listed: The digests of the table; the client has the table's lock.
        """
        for path in self._folder.iterdir():
            digest = path.name[:_DIGEST]
            if path.name == _LOCK or digest in listed:
                continue
            if not any(map(_process_of, self._wanted.get(digest, ()))):
                path.unlink()
                self._wanted.pop(digest, None)

    def has(self, digest: str) -> bool:
        """Whether an archive is here, whole."""
        place = self._place(digest)
        return place.exists() and archives.digest_of(place) == digest

    def add(self, upload: str, data: bytes) -> None:
        """Take some bytes of an archive; others may be on their way, perhaps of the same one."""
        with self._draft(upload).open("ab") as file:
            file.write(data)

    def finish(self, upload: str, digest: str) -> bool:
        """Keep what was taken, if it is what it should be."""
        draft = self._draft(upload)
        is_right = archives.digest_of(draft) == digest
        if is_right:
            draft.rename(self._place(digest))
        else:
            draft.unlink()
        return is_right

    def read(self, digest: str, offset: int) -> bytes:
        """Some bytes of an archive; none at its end."""
        with self._place(digest).open("rb") as file:
            file.seek(offset)
            return file.read(archives.CHUNK_BYTES)

    def _place(self, digest: str) -> Path:
        return self._folder / f"{digest}.mar"

    def _draft(self, upload: str) -> Path:
        return self._folder / f"{upload}.part"


def folder_of(session: str) -> Path:
    """Where a cluster's keeper has its archives: others' may be on this machine."""
    from marship.engines.ray import node

    return node.root() / "kept" / session


def _remove_abandoned(folder: Path) -> None:
    """Remove archives of clusters that ended long ago: a keeper that died is soon there again."""
    for place in folder.iterdir():
        lock = place / _LOCK
        if not lock.is_file() or time.time() - place.stat().st_mtime < _ABANDONED_S:
            continue
        with suppress(BlockingIOError), lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)


def _kv(action: str, key: str, *given: object, **settings: object) -> Any:  # noqa: ANN401  Ray's
    """Ask the store of keys and values of Ray's head."""
    from ray.experimental import internal_kv

    ask: Any = getattr(internal_kv, f"_internal_kv_{action}")
    return ask(key.encode(), *given, **settings, namespace=NAMESPACE.encode())


def _process_of(owner: str) -> str | None:
    """The process of a job; None where it has ended."""
    from ray._private.state import state

    for job in state.job_table():  # type: ignore[no-untyped-call]
        if job["JobID"] == owner.partition("/")[0] and not job["IsDead"]:
            return f"process {job['DriverPid']} on {job['DriverIPAddress']}"
    return None


def take(
    lock: str,
    held: ExitStack,
    *,
    timeout_s: float,
    action: str,
    on_wait: Callable[[str], None] | None = None,
) -> Generator[Pause, None, None]:
    """Take a lock of the cluster, whichever home is another's who wants it.

    It is free again when `held` closes, or this process's connection ends.

    Args:
        lock: Its name.
        held: Holds the lock.
        timeout_s: How long to wait for the lock.
        action: What its holder is doing, such as "exchanges versions of a".
        on_wait: Called once, after a while, with a message about the holder.

    Raises:
        ServerError: The timeout passed.
    """
    started_at, is_reported = time.monotonic(), False
    while (other := claim(lock, held)) is not None:
        waited_s = time.monotonic() - started_at
        if waited_s >= timeout_s:
            raise ServerError(
                f"the cluster must be free within {timeout_s:g} s, got it held by {other}, which "
                f"{action}. Wait for it, or end it if it hangs."
            )
        if waited_s >= REPORT_AFTER_S and not is_reported and on_wait:
            is_reported = True
            on_wait(f"waiting up to {timeout_s:g} s for {other}, which {action}")
        yield Pause(_PAUSE_S)


def claim(lock: str, held: ExitStack) -> str | None:
    """Take a lock of the cluster as `take`, if it is free; or who has it."""
    import ray

    holder, me = running(), _owner()
    other: str | None = ray.get(holder.take.remote(lock, me), timeout=_CALL_S)
    if other is None:
        held.callback(lambda: holder.leave.remote(lock, me))
    return other


def _owner() -> str:
    import ray

    return f"{ray.get_runtime_context().get_job_id()}/{secrets.token_hex(8)}"


def sweep(listed: Collection[str]) -> None:
    """As `Keeper.sweep`; what a lost keeper or a full disk lets stay is removed by the next one."""
    import ray

    with suppress(NotRunningError, ray.exceptions.RayError):  # OSErrors of the keeper are RayErrors
        ray.get(running().sweep.remote(listed), timeout=_CALL_S)


def find() -> Any:  # noqa: ANN401  Ray's handle
    """The cluster's keeper; None if it has none."""
    import ray

    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def running() -> Any:  # noqa: ANN401  Ray's handle
    """The cluster's keeper.

    Raises:
        NotRunningError: It has none.
    """
    holder = find()
    if holder is None:
        raise NotRunningError(
            "the cluster must run marship's keeper, got none. Start it with: marship serve "
            "--engine ray"
        )
    return holder


def start(key: str | None, url: str | None) -> Any:  # noqa: ANN401  Ray's handle
    """Start the cluster's keeper on this node; one that was lost had the same key."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    here = context.get_node_id()
    remote = ray.remote(Keeper).options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    )
    return remote.remote(key, url, context.get_session_name())


def put(path: Path, digest: str, held: ExitStack) -> bool:
    """Give the keeper an archive, which it has at least until `held` closes; whether it has it."""
    import ray

    holder, me = running(), _owner()
    ray.get(holder.want.remote(digest, me), timeout=_CALL_S)
    held.callback(lambda: holder.unwant.remote(digest, me))
    if ray.get(holder.has.remote(digest)):
        return True
    upload = f"{digest}-{secrets.token_hex(8)}"
    for data in archives.chunks(path):
        ray.get(holder.add.remote(upload, data))
    return bool(ray.get(holder.finish.remote(upload, digest)))


def read(digest: str) -> Iterator[bytes]:
    """An archive's bytes, from the keeper; for nodes."""
    import ray

    holder, offset = running(), 0
    while data := ray.get(holder.read.remote(digest, offset), timeout=60):
        offset += len(data)
        yield data
