"""Changes of a cluster's versions: registering, scaling, switching and removing them, as flows.

A version is registered beside the others, proven by its replicas' golden cases, and only then put
into the front's table. What fails is deleted; nothing that serves is updated in place.

A scaled version is listed with its new number before its replicas change: so whatever ends the
command, the table says how many there shall be, and the same command goes on from there.

Several clients may change one cluster. Each change looks at the table again once it has the table's
lock, and an application gets another number of replicas under that lock alone: so an application is
never deployed again, or listed, after another client has removed it.
"""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from marship.engines.engine import ModelStatus, Registration, Wait
from marship.engines.names import checked_name
from marship.engines.ray import cluster, keeper, models, registration
from marship.engines.ray.access import ClusterAccess
from marship.engines.ray.table import Table, TableEntry
from marship.errors import LoadError, ServerError, UsageError
from marship.exchange.calls import Flow, Work

_LOCK_S = 120.0
_SHOWN = 60
"""Characters of a model's name in that of its application."""


def register(access: ClusterAccess, wanted: Registration, wait: Wait) -> Flow[ModelStatus]:
    """Register an archive and wait until its replicas are ready; undo it on failure.

    Raises:
        UsageError: The archive is not a file name, or the model's name or the batch size is
            invalid.
        NotFoundError: It is not in the model store.
        PackageError: It is corrupted, or a node got another one.
        SignatureError: It has no valid signature by a trusted key, here or on a node.
        LoadError: A replica failed, or a node has not what it needs.
        ServerError: The version is registered already.
    """
    is_listing = False
    with ExitStack() as held:
        admitted: registration.Admission = yield Work(
            lambda: registration.admit(access, wanted, held)
        )
        found = access.model_store / wanted.archive
        # the rest of a name only helps those who look at Ray's dashboard: Ray names files by it
        start = f"{cluster.FRONT}-{admitted.name[:_SHOWN]}-{admitted.version}"
        app, record = f"{start}-{secrets.token_hex(4)}", access.record
        yield Work(lambda: keeper.claim(app, held))  # see `registration.remove_abandoned`
        try:
            yield Work(lambda: registration.deploy(app, admitted, record))
            yield from models.until_ready(app, admitted.name, admitted.plan.minimum, wait)
            facts: list[dict[str, Any]] = yield Work(lambda: cluster.broadcast(app, "told"))
            streams = bool(facts and facts[0]["streams"])
            entry = registration.entry_of(app, admitted, wanted, streams=streams)
            is_listing = True
            yield from _change(
                access,
                lambda table: registration.added(table, admitted, entry),
                # a keeper that died meanwhile forgot that it is wanted
                lambda _: registration.share(found, admitted.source, held),
            )
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C too: nothing half-registered stays
            if is_listing:  # Serve takes the table before `write` returns, if it ever does
                yield from _change(access, lambda t: registration.dropped(t, admitted, app))
            yield Work(lambda: cluster.delete(app))
            raise
    (status,) = yield from models.describe(access, admitted.name, admitted.version)
    return status


def _change(
    access: ClusterAccess,
    changed: Callable[[Table], Table],
    then: Callable[[Table], None] | None = None,
) -> Flow[None]:
    """Change the front's table, one client of the cluster after the other.

    Args:
        access: The cluster.
        changed: The new table.
        then: What is done with it before the next client's turn.
    """
    access.connect()
    with ExitStack() as held:
        yield from keeper.take("table", held, timeout_s=_LOCK_S, action="changes the models")
        after: Table = yield Work(lambda: _rewrite(changed))
        if then is not None:
            yield Work(lambda: then(after))


def _rewrite(changed: Callable[[Table], Table]) -> Table:
    before = cluster.table()
    after = changed(before)
    if after != before:
        cluster.write(after)
        keeper.sweep([entry.digest for _, _, entry in after.entries()])
    return after


def scale(
    access: ClusterAccess, name: str, workers: int, *, version: str | None, wait: Wait
) -> Flow[ModelStatus]:
    """Set the number of replicas, and wait until exactly that many are ready; undo it on failure.

    Raises:
        UsageError: The number is out of bounds.
        NotFoundError: There is no such model or version, or it was removed meanwhile.
        LoadError: There is no room for so many.
        ServerError: Not all became ready; the message says why.
    """
    if not 1 <= workers <= registration.MOST_WORKERS:
        raise UsageError(
            f"workers must be from 1 to {registration.MOST_WORKERS} on Ray, got {workers}."
        )
    access.connect()
    with ExitStack() as held:
        # two who want other numbers of one model would both wait in vain
        lock, action = f"replicas of {checked_name(name)}", f"scales {name}"
        yield from keeper.take(lock, held, timeout_s=wait.timeout_s, action=action)
        number, entry = yield from models.entry_of(access, name, version)
        sized = replace(entry, minimum=workers, maximum=workers)
        try:
            yield from _change(
                access,
                lambda table: _sized(table, name, number, sized),
                lambda _: _deploy(sized),
            )
            yield from _until_scaled(f"{name} {number}", entry, sized, wait)
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C too: the table and the replicas stay as they were
            yield from _change(
                access,
                lambda table: _restored(table, name, number, entry),
                lambda table: _deploy(entry) if _has(table, name, number, entry) else None,
            )
            raise
    (status,) = yield from models.describe(access, name, number)
    return status


def _until_scaled(label: str, before: TableEntry, sized: TableEntry, wait: Wait) -> Flow[None]:
    try:
        yield from models.until_ready(sized.app, label, sized.minimum, wait)
    except LoadError as error:
        least, most = before.minimum, before.maximum
        kept = f"{least}" if least == most else f"{least} to {most}"
        raise ServerError(
            f"{label} must have {sized.minimum} replicas ready, got: {error} It has {kept} as "
            "before."
        ) from error


def _sized(table: Table, name: str, number: str, sized: TableEntry) -> Table:
    """With another number of replicas of a version, for which there is room.

    Raises:
        NotFoundError: It is not there any more; perhaps another one of the same number.
        LoadError: There is no room.
    """
    if not _has(table, name, number, sized):
        raise models.unknown(name, number)
    plan = cluster.deployed(sized.app)[1]
    more = sized.minimum - len(models.workers_of(cluster.details().get(sized.app, {})))
    cluster.check_resources(plan, f"{name} {number}", max(0, more))
    return table.put(name, number, sized)


def _restored(table: Table, name: str, number: str, entry: TableEntry) -> Table:
    """As before the version was scaled; nothing where it was removed."""
    return table.put(name, number, entry) if _has(table, name, number, entry) else table


def _has(table: Table, name: str, number: str, entry: TableEntry) -> bool:
    """Whether a version is there, by the same application."""
    found = table.entry(name, number)
    return found is not None and found[1].app == entry.app


def _deploy(entry: TableEntry) -> None:
    version, plan = cluster.deployed(entry.app)
    plan = replace(plan, minimum=entry.minimum, maximum=entry.maximum)
    cluster.deploy(entry.app, version, plan)


def set_default(access: ClusterAccess, name: str, version: str) -> Flow[None]:
    """Make a version the default; returns when every front sends requests there.

    Raises:
        NotFoundError: There is no such model or version.
    """
    checked_name(name)

    def switched(table: Table) -> Table:
        if table.entry(name, version) is None:
            raise models.unknown(name, version)
        return table.default(name, version)

    yield from _change(access, switched)


def unregister(access: ClusterAccess, name: str, version: str | None = None) -> Flow[None]:
    """Unregister a version, or the default one; its replicas finish what they have.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: It is the default version, and there are others.
    """
    checked_name(name)
    removed: list[str] = []

    def without(table: Table) -> Table:
        found = table.entry(name, version)
        if found is None:
            raise models.unknown(name, version)
        number, entry = found
        model = table.models[name]
        if model.default == number and len(model.versions) > 1:
            raise ServerError(
                f"{name} {number} must not be the default to be unregistered beside others, got "
                "the default. Make another version the default first."
            )
        removed.append(entry.app)
        return table.without(name, number)

    yield from _change(access, without)
    yield Work(lambda: cluster.delete(removed[0]))


def withdraw(
    access: ClusterAccess, status: ModelStatus, *, leaves_last: bool = False
) -> Flow[None]:
    """Unregister a version if it was created by the same registration.

    If it is the default, another version becomes it: one that is ready, if any is.

    Raises:
        ServerError: It was kept, as `leaves_last` asks.
    """
    name, version, removed = status.name, status.version, list[str]()

    def withdrawn(table: Table) -> Table:
        found = table.entry(name, version)
        if found is None or found[1].registration != status.registration:
            return table
        ready = models.ready_versions(table, name)
        others = [number for number in table.serving(name) if number != version]
        if leaves_last and not others and version in ready:
            raise ServerError(f"{name} {version} stays, since other clients removed all others.")
        removed.append(found[1].app)
        if others and table.models[name].default == version:
            table = table.default(name, max(others, key=lambda other: (other in ready, other)))
        return table.without(name, version)

    yield from _change(access, withdrawn)
    if removed:
        yield Work(lambda: cluster.delete(removed[0]))
