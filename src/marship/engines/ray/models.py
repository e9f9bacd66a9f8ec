"""Models on a cluster: what there is, whether it is ready, and requests to it, as flows."""

import time
from collections.abc import Mapping
from typing import Any

from marship.engines.engine import DRAIN_S, Model, ModelStatus, Wait, Worker
from marship.engines.figures.trials import samples
from marship.engines.names import checked_name
from marship.engines.ray import cluster, problems
from marship.engines.ray.access import ClusterAccess
from marship.engines.ray.table import Table, TableEntry
from marship.engines.trials import merged
from marship.errors import LoadError, NotFoundError, ServerError
from marship.exchange import tracing
from marship.exchange.calls import LINES_TYPE, Call, Flow, HttpResponse, Pause, Work, path

_POLL_S = 0.3
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


def until_ready(app: str, name: str, wanted: int, wait: Wait) -> Flow[None]:
    """Wait until an application has so many replicas that are ready, and no others.

    Raises:
        LoadError: A replica failed, or the timeout passed; the message is the replica's own.
        NotFoundError: The application was removed meanwhile.
    """
    end = time.monotonic() + wait.timeout_s
    while True:
        found: Mapping[str, Any] = yield Work(lambda: cluster.details().get(app, {}))
        if found.get("status", "DELETING") == "DELETING":
            raise NotFoundError(
                f"{name} must stay registered until its replicas are ready, got it removed."
            )
        workers = workers_of(found)
        ready = sum(worker.ready for worker in workers)
        if wait.on_wait:
            wait.on_wait(ready, wanted)
        if found.get("status") == "RUNNING" and ready == wanted == len(workers):
            return
        # Serve itself tries on for ever where one replica has started
        if found.get("status") in _FAILED or problems.is_told(_message(found)):
            raise problems.found(_message(found), f"a replica of {name}")
        if time.monotonic() > end:
            raise LoadError(
                f"{name} must have {wanted} replicas within {wait.timeout_s:g} s, got {ready}. "
                f"Ray says: {problems.last_line(_message(found))}"
            )
        yield Pause(_POLL_S)


def ready_versions(table: Table, name: str) -> set[str]:
    """The versions of a model that have a replica that is ready."""
    details = cluster.details()
    return {
        number
        for number, entry in table.models[name].versions.items()
        if any(worker.ready for worker in workers_of(details.get(entry.app, {})))
    }


def _message(found: Mapping[str, Any]) -> str:
    """All that Serve says of an application and its deployment."""
    told = [one.get("message") or "" for one in found.get("deployments", {}).values()]
    return "\n".join([found.get("message") or "", *told])


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


def drain(
    access: ClusterAccess, name: str, version: str, *, timeout_s: float = DRAIN_S
) -> Flow[None]:
    """Wait until no front waits for a response of a version; another one must be the default.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Requests remain after the timeout.
    """
    _, entry = yield from entry_of(access, name, version)
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
    call = Call("inference", "POST", where, {}, headers, body, streams, is_retryable=True)
    template = "/predictions/{model}" + "/{version}" * (version is not None)
    return (yield from tracing.traced(access.ask, call, access.url, template))


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


def entry_of(access: ClusterAccess, name: str, version: str | None) -> Flow[tuple[str, TableEntry]]:
    """A version's number and entry in the table.

    Raises:
        NotFoundError: There is no such model or version.
    """

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
        workers=workers_of(details.get(entry.app, {})),
        registration=entry.registration,
    )


def workers_of(found: Mapping[str, Any]) -> tuple[Worker, ...]:
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
