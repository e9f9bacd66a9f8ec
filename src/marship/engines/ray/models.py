"""Models on a cluster: registering, scaling, switching and removing versions, as flows.

A version is registered beside the others, proven by its replicas' golden cases, and only then put
into the front's table. What fails is deleted; nothing that serves is updated in place.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from marship.engines.engine import DRAIN_S, Model, ModelStatus, Registration, Wait, Worker
from marship.engines.figures.trials import samples
from marship.engines.names import checked_name
from marship.engines.ray import cluster, keeper, problems, registration
from marship.engines.ray.access import ClusterAccess
from marship.engines.ray.table import Table, TableEntry
from marship.engines.trials import merged
from marship.errors import LoadError, NotFoundError, ServerError, UsageError
from marship.exchange import tracing
from marship.exchange.calls import LINES_TYPE, Call, Flow, HttpResponse, Pause, Work, path

_POLL_S, _LOCK_S = 0.3, 120.0
_SHOWN = 60
"""Characters of a model's name in that of its application."""
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def list_models(access: ClusterAccess) -> Flow[list[Model]]:
    """All models with all their versions, sorted by name."""

    def look() -> list[Model]:
        access.connect()
        table, details = cluster.table(), cluster.details()
        return [
            Model(
                name,
                model.default,
                tuple(
                    _status(name, number, entry, details)
                    for number, entry in sorted(model.versions.items())
                ),
            )
            for name, model in sorted(table.models.items())
        ]

    found: list[Model] = yield Work(look)
    return found


def describe(
    access: ClusterAccess, name: str, version: str | None = None
) -> Flow[list[ModelStatus]]:
    """The status of a model's default version, of a given version, or of "all" versions.

    Raises:
        NotFoundError: There is no such model or version.
    """
    checked_name(name)
    found: list[ModelStatus] = []
    for model in (yield from list_models(access)):
        wanted = model.default_version if version is None else version
        if model.name == name:
            found += [status for status in model.versions if wanted in ("all", status.version)]
    if not found:
        raise unknown(name, version)
    return found


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
    admitted: registration.Admission = yield Work(lambda: registration.admit(access, wanted))
    # the rest of a name only helps those who look at Ray's dashboard: Ray names files by it
    start = f"{cluster.FRONT}-{admitted.name[:_SHOWN]}-{admitted.version}"
    app, record = f"{start}-{secrets.token_hex(4)}", access.record
    with ExitStack() as held:
        yield Work(lambda: keeper.claim(app, held))  # see `registration.remove_abandoned`
        try:
            yield Work(lambda: registration.deploy(app, admitted, record))
            yield from _until_ready(app, admitted.name, admitted.plan.minimum, wait)
            facts: list[dict[str, Any]] = yield Work(lambda: cluster.broadcast(app, "told"))
            streams = bool(facts and facts[0]["streams"])
            entry = registration.entry_of(app, admitted, wanted, streams=streams)
            yield from _change(access, lambda table: registration.added(table, admitted, entry))
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C too: nothing half-registered stays
            yield Work(lambda: cluster.delete(app))
            raise
    (status,) = yield from describe(access, admitted.name, admitted.version)
    return status


def _until_ready(app: str, name: str, wanted: int, wait: Wait) -> Flow[None]:
    """Wait until an application has so many replicas that are ready, and no others.

    Raises:
        LoadError: A replica failed, or the timeout passed; the message is the replica's own.
    """
    end = time.monotonic() + wait.timeout_s
    while True:
        found: Mapping[str, Any] = yield Work(lambda: cluster.details().get(app, {}))
        workers = _workers(found)
        ready = sum(worker.ready for worker in workers)
        if wait.on_wait:
            wait.on_wait(ready, wanted)
        if found.get("status") == "RUNNING" and ready == wanted == len(workers):
            return
        if found.get("status") in _FAILED:
            raise problems.found(_message(found), f"a replica of {name}")
        if time.monotonic() > end:
            raise LoadError(
                f"{name} must have {wanted} replicas within {wait.timeout_s:g} s, got {ready}. "
                f"Ray says: {problems.last_line(_message(found))}"
            )
        yield Pause(_POLL_S)


def _message(found: Mapping[str, Any]) -> str:
    """All that Serve says of an application and its deployment."""
    told = [one.get("message") or "" for one in found.get("deployments", {}).values()]
    return "\n".join([found.get("message") or "", *told])


def _change(access: ClusterAccess, changed: Callable[[Table], Table]) -> Flow[None]:
    """Change the front's table, one client of the cluster after the other."""
    access.connect()
    with ExitStack() as held:
        yield from keeper.take("table", held, timeout_s=_LOCK_S, action="changes the models")
        yield Work(lambda: cluster.write(changed(cluster.table())))


def scale(
    access: ClusterAccess, name: str, workers: int, *, version: str | None, wait: Wait
) -> Flow[ModelStatus]:
    """Set the number of replicas, and wait until exactly that many are ready.

    Raises:
        UsageError: The number is out of bounds.
        NotFoundError: There is no such model or version.
        ServerError: Not all became ready; the message says how many did, and why.
    """
    if not 1 <= workers <= registration.MOST_WORKERS:
        raise UsageError(
            f"workers must be from 1 to {registration.MOST_WORKERS} on Ray, got {workers}."
        )
    number, entry = yield from _entry_of(access, name, version)

    def deploy() -> None:
        given, plan = cluster.deployed(entry.app)
        more = workers - len(_workers(cluster.details().get(entry.app, {})))
        cluster.check_resources(plan, f"{name} {number}", max(0, more))
        cluster.deploy(entry.app, given, replace(plan, minimum=workers, maximum=workers))

    yield Work(deploy)
    sized = replace(entry, minimum=workers, maximum=workers)
    try:
        yield from _until_ready(entry.app, name, workers, wait)
    except LoadError as error:
        raise ServerError(f"{name} must have {workers} replicas ready, got: {error}") from error
    yield from _change(access, lambda table: table.put(name, number, sized))
    (status,) = yield from describe(access, name, number)
    return status


def wait_ready(
    access: ClusterAccess, name: str, *, version: str | None, wait: Wait
) -> Flow[ModelStatus]:
    """Wait until a model's minimum number of replicas is ready.

    Raises:
        NotFoundError: There is no such model or version.
        LoadError: A replica failed, or the timeout passed.
    """
    end = time.monotonic() + wait.timeout_s
    while True:
        (status,) = yield from describe(access, name, version)
        if wait.on_wait:
            wait.on_wait(status.ready, status.min_workers)
        if status.ready >= status.min_workers:
            return status
        if time.monotonic() > end:
            raise LoadError(
                f"{name} must have {status.min_workers} replicas within {wait.timeout_s:g} s, got "
                f"{status.ready}."
            )
        yield Pause(_POLL_S)


def set_default(access: ClusterAccess, name: str, version: str) -> Flow[None]:
    """Make a version the default; returns when every front sends requests there.

    Raises:
        NotFoundError: There is no such model or version.
    """
    yield from _entry_of(access, name, version)
    yield from _change(access, lambda table: table.default(name, version))


def drain(
    access: ClusterAccess, name: str, version: str, *, timeout_s: float = DRAIN_S
) -> Flow[None]:
    """Wait until no front waits for a response of a version; another one must be the default.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Requests remain after the timeout.
    """
    _, entry = yield from _entry_of(access, name, version)
    end = time.monotonic() + timeout_s
    while True:
        counts: list[int] = yield Work(lambda: _in_hand(entry.app))
        if not sum(counts):
            return
        if time.monotonic() > end:
            raise ServerError(
                f"{name} {version} must respond to its open requests within {timeout_s:g} s, got "
                f"{sum(counts)} of them still open."
            )
        yield Pause(_POLL_S)


def _in_hand(app: str) -> list[int]:
    return cluster.broadcast(cluster.FRONT, "in_hand", app)


def unregister(access: ClusterAccess, name: str, version: str | None = None) -> Flow[None]:
    """Unregister a version, or the default one; its replicas finish what they have.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: It is the default version, and there are others.
    """
    number, entry = yield from _entry_of(access, name, version)

    def removed(table: Table) -> Table:
        model = table.models.get(name)
        if model is None or number not in model.versions:
            raise unknown(name, version)
        if model.default == number and len(model.versions) > 1:
            raise ServerError(
                f"{name} {number} must not be the default to be unregistered beside others, got "
                "the default. Make another version the default first."
            )
        return table.without(name, number)

    yield from _change(access, removed)
    yield Work(lambda: cluster.delete(entry.app))


def withdraw(
    access: ClusterAccess, status: ModelStatus, *, leaves_last: bool = False
) -> Flow[None]:
    """Unregister a version if it was created by the same registration.

    Raises:
        ServerError: It was kept, as `leaves_last` asks.
    """
    try:
        found = yield from describe(access, status.name, "all")
    except NotFoundError:
        return
    mine = [each for each in found if each.registration == status.registration]
    others = [each for each in found if each.version != status.version]
    if not mine:
        return
    if leaves_last and not others and mine[0].ready:
        raise ServerError(
            f"{status.name} {status.version} stays, since other clients removed all others."
        )
    (default,) = yield from describe(access, status.name)
    if default.version == status.version and others:
        best = max(others, key=lambda each: (each.ready > 0, each.version))
        yield from set_default(access, status.name, best.version)
    yield from unregister(access, status.name, status.version)


def predict(  # noqa: PLR0913  keyword-only
    access: ClusterAccess,
    name: str,
    *,
    version: str | None,
    body: bytes,
    content_type: str,
    streams: bool = False,
) -> Flow[HttpResponse]:
    """Get a prediction, as one response or streamed as lines.

    Raises:
        RequestError: The model rejected the body.
        NotFoundError: There is no such model or version.
        ServerError: The worker failed, or the queue is full.
    """
    where = path("predictions", checked_name(name), *(() if version is None else (version,)))
    headers = {"Content-Type": content_type} | ({"Accept": LINES_TYPE} if streams else {})
    headers |= tracing.headers()
    call = Call("inference", "POST", where, {}, headers, body, streams, is_retryable=True)
    return (yield from access.ask(call))


def openapi(access: ClusterAccess) -> Flow[dict[str, Any]]:
    """The OpenAPI document of the front, which knows of models no more than their names."""
    response = yield from access.ask(Call("inference", "GET", "/openapi.json"))
    return dict(response.json())


def ping(access: ClusterAccess) -> Flow[str]:
    """The front's health as it reports it."""
    response = yield from access.ask(Call("inference", "GET", "/ping"))
    return str(response.json()["status"])


def metrics(access: ClusterAccess) -> Flow[str]:
    """What all replicas counted so far, in Prometheus' text format."""

    def collect() -> str:
        access.connect()
        lines = []
        for name, number, entry in cluster.table().entries():
            for place, told in enumerate(cluster.broadcast(entry.app, "counts")):
                labels = f'model_name="{name}",model_version="{number}",node="{told["node"]}"'
                for metric, code, value in told["counts"]:
                    more = f',code="{code}"' if code else ""
                    lines.append(f'{metric}{{{labels},replica="{place}"{more}}} {value}')
        states = merged(cluster.trial_states())
        for metric, named, value in samples(states):
            shown = ",".join(f'{label}="{text}"' for label, text in named.items())
            lines.append(f"{metric}{{{shown}}} {value}")
        return "".join(f"{line}\n" for line in sorted(lines))

    text: str = yield Work(collect)
    return text


def unknown(name: str, version: str | None) -> NotFoundError:
    """The error for a model that is not registered."""
    what = f"{name} version {version}" if version else name
    return NotFoundError(f"{what} must be registered, got no such model. See: marship models")


def _entry_of(
    access: ClusterAccess, name: str, version: str | None
) -> Flow[tuple[str, TableEntry]]:
    def look() -> tuple[str, TableEntry]:
        access.connect()
        found = cluster.table().entry(checked_name(name), version)
        if found is None:
            raise unknown(name, version)
        return found

    entry: tuple[str, TableEntry] = yield Work(look)
    return entry


def _status(name: str, number: str, entry: TableEntry, details: Mapping[str, Any]) -> ModelStatus:
    return ModelStatus(
        name=name,
        version=number,
        archive=entry.archive,
        min_workers=entry.minimum,
        max_workers=entry.maximum,
        batch_size=entry.batch_size,
        max_batch_delay_ms=entry.max_batch_delay_ms,
        response_timeout_s=int(entry.timeout_s),
        loaded_at_startup=False,
        workers=_workers(details.get(entry.app, {})),
        registration=entry.registration,
    )


def _workers(found: Mapping[str, Any]) -> tuple[Worker, ...]:
    """An application's replicas, those that end left out."""
    return tuple(
        Worker(
            f"{replica['replica_id']}@{replica.get('node_ip') or 'nowhere'}",
            replica.get("pid") or 0,
            replica["state"] == "RUNNING",
        )
        for deployment in found.get("deployments", {}).values()
        for replica in deployment["replicas"]
        if replica["state"] != "STOPPING"
    )
