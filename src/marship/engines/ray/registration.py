"""Registering on Ray: checking an archive, sharing it, and starting its replicas."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marship.engines import store
from marship.engines.engine import Registration
from marship.engines.home import ServerRecord
from marship.engines.names import checked_name, checked_version
from marship.engines.ray import archives, cluster, keeper
from marship.engines.ray.access import ClusterAccess
from marship.engines.ray.archives import ArchiveSource
from marship.engines.ray.hosted import HostedVersion
from marship.engines.ray.plan import RunPlan
from marship.engines.ray.table import Table, TableEntry
from marship.errors import ServerError, StorageError, UsageError
from marship.serving.model import keysource

MOST_WORKERS = 1000


@dataclass(frozen=True, slots=True)
class Admission:
    """A verified archive, and how it will be served."""

    name: str
    version: str
    source: ArchiveSource
    plan: RunPlan
    files: str | None
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Examined:
    """An archive that was checked on this machine.

    Attributes:
        path: Where it lies here.
        name: The model's own name.
        version: Its version.
        source: The archive for nodes; its URL is to be set.
        config: Its settings.
    """

    path: Path
    name: str
    version: str
    source: ArchiveSource
    config: dict[str, Any]


def examined(path: Path, trust: str | Path | None) -> Examined:
    """Check an archive here, with its signature by a key of a trust folder.

    Raises:
        NotFoundError: There is none.
        PackageError: It is corrupted.
        SignatureError: It has no valid signature by a trusted key.
    """
    from marship.trust import archive, policy
    from marship.trust.signature import beside

    identity = store.check_archive(path.parent, path.name)
    keys: dict[str, bytes] = {}
    signature: bytes | None = None
    if trust is not None:
        policy.Trust.load(trust).verify(path)
        keys = {file.name: file.read_bytes() for file in Path(trust).glob("*.pem")}
        signature = beside(path).read_bytes()
    _, config = archive.read_settings(path)
    source = ArchiveSource(
        file=path.name,
        digest=archives.digest_of(path),
        url=None,
        signature=signature,
        keys=keys,
    )
    return Examined(path, identity.name, identity.version, source, config)


def seal_source(record: ServerRecord | None) -> str | None:
    """The source of sealed models' key: of a home, else of the environment."""
    if record is not None and record.seal_key is not None:
        return record.seal_key
    return keysource.chosen(None)


def added(table: Table, admitted: Admission, entry: TableEntry) -> Table:
    """The table with a new version.

    Raises:
        ServerError: It is there already.
    """
    if table.entry(admitted.name, admitted.version) is not None:
        raise _taken(admitted)
    return table.put(admitted.name, admitted.version, entry)


def dropped(table: Table, admitted: Admission, app: str) -> Table:
    """The table without a version, if an application is that of its entry."""
    found = table.entry(admitted.name, admitted.version)
    if found is None or found[1].app != app:
        return table
    return table.without(admitted.name, admitted.version)


def _taken(admitted: Admission) -> ServerError:
    return ServerError(
        f"{admitted.name} {admitted.version} must be registered once, got it on the cluster "
        "already. Unregister it first, or package another version."
    )


def admit(access: ClusterAccess, wanted: Registration, held: ExitStack) -> Admission:
    """Check an archive here and on every node, and put it where they can get it.

    Args:
        access: The cluster.
        wanted: What is registered.
        held: Until it closes, the archive stays there, though no version needs it yet.

    Raises:
        MarshipError: As `changes.register`.
    """
    if Path(wanted.archive).name != wanted.archive or wanted.archive.startswith("."):
        raise UsageError(
            f"an archive must be the name of a file in the model store, or its path there, got "
            f"{wanted.archive!r}. Put the file there and give its name."
        )
    if wanted.workers is not None and not 1 <= wanted.workers <= MOST_WORKERS:
        raise UsageError(f"workers must be from 1 to {MOST_WORKERS}, got {wanted.workers}.")
    if wanted.batch_size is not None and wanted.batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {wanted.batch_size}.")
    found = examined(access.model_store / wanted.archive, access.record.trust)
    name, version = checked_name(wanted.name or found.name), checked_version(found.version)
    plan = RunPlan.of(found.config, workers=wanted.workers, batch_size=wanted.batch_size)
    access.connect()
    admitted = Admission(
        name,
        version,
        replace(found.source, url=_archives_url()),
        plan,
        store.files_of(found.path),
        wanted.max_batch_delay_ms or int(found.config.get("maxBatchDelay") or 1),
    )
    if cluster.table().entry(name, version) is not None:
        raise _taken(admitted)
    remove_abandoned()
    cluster.check_resources(plan, f"{name} {version}", plan.minimum)
    share(found.path, admitted.source, held)
    cluster.probe(admitted.source)
    return admitted


def remove_abandoned() -> None:
    """Remove applications whose clients were killed before they listed them.

    Or just after they took them from the list: no command would know of their replicas, which hold
    cores. Whoever registers one holds a lock of its name.
    """
    own = {app for app in cluster.details() if app.startswith(f"{cluster.FRONT}-")}
    for app in own - _listed():
        with ExitStack() as held:
            is_free = keeper.claim(app, held) is None
            if is_free and app not in _listed():
                cluster.delete(app)


def _listed() -> set[str]:
    return {entry.app for _, _, entry in cluster.table().entries()}


def _archives_url() -> str | None:
    import ray

    return ray.get(keeper.running().facts.remote())["url"]  # type: ignore[no-any-return]


def share(place: Path, source: ArchiveSource, held: ExitStack) -> None:
    """Put an archive where all nodes can get it, unless it is there.

    Raises:
        StorageError: It cannot be, or is another one now.
    """
    if source.url is not None:
        archives.upload(place, source)
    elif not keeper.put(place, source.digest, held):
        raise StorageError(f"{place} must stay as it is while it is read, got another. Try again.")


def deploy(app: str, admitted: Admission, record: ServerRecord) -> None:
    """Start the replicas of a new application; does not wait."""
    version = HostedVersion(
        name=admitted.name,
        version=admitted.version,
        source=admitted.source,
        batch_size=admitted.plan.batch_size,
        startup_s=admitted.plan.startup_s,
        has_gpu=admitted.plan.gpus > 0,
        seal_key=record.seal_key,
    )
    cluster.deploy(app, version, admitted.plan)


def entry_of(app: str, admitted: Admission, wanted: Registration, *, streams: bool) -> TableEntry:
    """What the table says of a new version."""
    return TableEntry(
        app=app,
        archive=wanted.archive,
        digest=admitted.source.digest,
        registration=app.rpartition("-")[2],
        files=admitted.files,
        batch_size=admitted.plan.batch_size,
        max_batch_delay_ms=admitted.delay_ms,
        given_batch_size=wanted.batch_size,
        given_delay_ms=wanted.max_batch_delay_ms,
        timeout_s=admitted.plan.timeout_s,
        streams=streams,
        minimum=admitted.plan.minimum,
        maximum=admitted.plan.maximum,
    )
