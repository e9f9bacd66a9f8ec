"""Registering, scaling and calling models, as flows that both clients run."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from marship.engines import locks
from marship.engines.engine import Model, ModelStatus, Registration, Wait
from marship.engines.home import Home
from marship.engines.names import checked_name
from marship.engines.torchserve import draining
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.registration import Admitted, OwnRegistration, check
from marship.engines.torchserve.status import (
    ReadinessWatch,
    describe,
    optional,
    unknown,
)
from marship.engines.torchserve.store import admit, check_archive, files_of, write_note
from marship.engines.torchserve.versions import names
from marship.engines.torchserve.workerlog import WorkerLog
from marship.errors import LoadError, NotFoundError, ServerError, UsageError
from marship.exchange import tracing
from marship.exchange.calls import LINES_TYPE, Call, Flow, HttpResponse, Work, path

MOST_WORKERS = 256
"""Of one version; each is a process with a model of its own."""


def list_models(access: Access) -> Flow[list[Model]]:
    """All models with all their versions, sorted by name."""
    models = []
    for name in sorted((yield from names(access))):
        try:
            (default,) = yield from describe(access, name)
            versions = yield from describe(access, name, "all")
        except NotFoundError:  # another client unregistered it meanwhile
            continue
        models.append(Model(name, default.version, tuple(versions)))
    return models


def register(
    access: Access,
    wanted: Registration,
    wait: Wait,
) -> Flow[ModelStatus]:
    """Register an archive and wait until its workers are ready; undo it on failure.

    Raises:
        UsageError: The archive is not a file name, or the model's name or the batch size is
            invalid.
        NotFoundError: It is not in the model store, or another client unregistered it.
        PackageError: It is corrupted.
        SignatureError: It has no valid signature by a key that the server trusts.
        LoadError: A worker crashed or timed out; the message is the worker's error, the notes
            are the end of its log.
        ServerError: The server rejected it.
    """
    check(wanted)
    _check_workers(wanted.workers or 0)
    log = WorkerLog(access.home) if access.is_local else None
    with ExitStack() as copy:
        admitted = None
        if access.is_local:
            admitted = yield from _check(access.home, wanted, copy, wait.timeout_s)
        own = OwnRegistration(access, wanted, admitted)
        try:
            yield from own.send()
            copy.close()  # TorchServe has unpacked it
            status = yield from own.created()
            if admitted is not None:
                write_note(access.home, status.name, status.version, own.note())
            # an archive with its own number of workers gets that number, whatever is requested here
            bounds = {status.min_workers, status.max_workers}
            if wanted.workers is not None and bounds != {wanted.workers}:
                yield from _set_workers(access, status, wanted.workers)
                (status,) = yield from describe(access, status.name, status.version)
            watch = ReadinessWatch(access, status.name, status.version, log, frozenset())
            return own.checked((yield from watch.until(status.min_workers, wait)))
        except GeneratorExit:
            raise
        except BaseException as error:  # Ctrl-C too: undo a partial registration
            yield from own.withdraw(error)
            raise


def scale(
    access: Access,
    name: str,
    workers: int,
    *,
    version: str | None,
    wait: Wait,
) -> Flow[ModelStatus]:
    """Set the number of workers, and wait until exactly that many are ready.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Not all became ready; the message says how many did, and why.
    """
    _check_workers(workers)
    log = WorkerLog(access.home) if access.is_local else None
    (before,) = yield from describe(access, name, version)
    known = frozenset(worker.id for worker in before.workers)
    watch = ReadinessWatch(access, name, before.version, log, known)
    ending = [worker.pid for worker in before.workers[workers:]]  # TorchServe ends the last ones
    try:
        with draining.taken_off(access, name, before.version, ending) as taken:
            if ending:
                yield taken
            yield from _set_workers(access, before, workers)
            return (yield from watch.until(workers, wait))
    except LoadError as error:
        failure = ServerError(
            f"{name} must have {workers} workers ready, got {watch.ready} of {workers}: {error}"
        )
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error


def shrink(
    access: Access, name: str, workers: int, *, version: str, wait: Wait
) -> Flow[ModelStatus | None]:
    """Scale down if no request is lost by it; None if workers to be ended stay busy.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: The server refused.
    """
    (before,) = yield from describe(access, name, version)
    ending = [worker.pid for worker in before.workers[workers:]]  # TorchServe ends the last ones
    watch = ReadinessWatch(access, name, version, None, frozenset())
    with draining.taken_off(access, name, version, ending) as taken:
        if not (yield taken) or not (yield from draining.is_quiet(access, before, ending)):
            return None
        yield from _set_workers(access, before, workers)
        return (yield from watch.until(workers, wait))


def wait_ready(
    access: Access,
    name: str,
    *,
    version: str | None,
    wait: Wait,
) -> Flow[ModelStatus]:
    """Wait until a model's minimum number of workers is ready.

    Raises:
        NotFoundError: There is no such model or version.
        LoadError: A worker crashed, or the timeout passed.
    """
    log = WorkerLog(access.home) if access.is_local else None
    (status,) = yield from describe(access, name, version)
    watch = ReadinessWatch(access, name, status.version, log, frozenset())
    return (yield from watch.until(status.min_workers, wait))


def predict(  # noqa: PLR0913  keyword-only
    access: Access,
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
    where = path("predictions", checked_name(name), *optional(version))
    template = "/predictions/{model}" + "/{version}" * (version is not None)
    headers = {"Content-Type": content_type} | ({"Accept": LINES_TYPE} if streams else {})
    call = Call("inference", "POST", where, {}, headers, body, streams, is_retryable=True)
    try:
        return (yield from tracing.traced(access.authorized, call, access.url, template))
    except NotFoundError as error:
        raise unknown(name, version) from error


def openapi(access: Access) -> Flow[dict[str, Any]]:
    """The OpenAPI document of all models at the direct address.

    Raises:
        ServerError: The server has no direct address: TorchServe describes itself alone.
    """
    try:
        response = yield from access.authorized(Call("inference", "GET", "/openapi.json"))
    except NotFoundError as error:
        raise ServerError(
            "the server must have a direct address to be described, got none. Start it without "
            "--no-direct, or describe an archive: marship openapi model.mar"
        ) from error
    return dict(response.json())


def ping(access: Access) -> Flow[str]:
    """The server's health as it reports it: "Healthy" even while models are loading."""
    response = yield from access.authorized(Call("inference", "GET", "/ping"))
    return str(response.json()["status"])


def metrics(access: Access) -> Flow[str]:
    """All metrics in Prometheus' text format."""
    response = yield from access.authorized(Call("metrics", "GET", "/metrics"))
    return response.body.decode("utf-8")


def _check(home: Home, wanted: Registration, copy: ExitStack, timeout_s: float) -> Flow[Admitted]:
    """Verify an archive with the server's trusted keys, or check that it is valid without them."""
    record = home.require_running()
    store = Path(record.model_store)
    if record.trust is None:
        found = check_archive(store, wanted.archive)
        held = store / wanted.archive
    else:
        from marship.trust import vault

        draft = copy.enter_context(vault.drafts(home.verified))
        found = yield Work(lambda: admit(home, draft, wanted.archive, wanted.name))
        held = draft / wanted.archive
    checked_name(wanted.name or found.name)
    admitted = Admitted(found, files_of(held))
    if record.trust is not None:
        yield from _show(home, held, copy, timeout_s)
    return admitted


def _show(home: Home, draft: Path, copy: ExitStack, timeout_s: float) -> Flow[None]:
    """Move a verified copy to where TorchServe reads it, until `copy` closes.

    One at a time, since of two copies with the same name removing one removes the other; and only
    after verification, so that a slow or stuck one does not block others.
    """
    lock = home.verified.with_suffix(".lock")
    yield from locks.take(lock, copy, timeout_s=timeout_s, action="registers an archive")
    place = home.verified / draft.name
    copy.callback(place.unlink, missing_ok=True)
    draft.replace(place)


def _check_workers(workers: int) -> None:
    """Refuse what TorchServe would start one process after the other for, until the machine stops.

    Raises:
        UsageError: There are too many, or fewer than none.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise UsageError(
            f"workers must be from 0 to {MOST_WORKERS}, got {workers}. One for each processor "
            "core is as fast as a model gets."
        )


def _set_workers(access: Access, model: ModelStatus, workers: int) -> Flow[None]:
    """Set both bounds: the minimum alone only adds workers, the maximum alone only stops some."""
    params = {"min_worker": str(workers), "max_worker": str(workers), "synchronous": "false"}
    where = path("models", model.name, model.version)
    yield from access.authorized(Call("management", "PUT", where, params))
