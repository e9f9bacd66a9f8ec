"""Registering, scaling and asking models, as flows of calls that every client runs."""

from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from marship.errors import LoadError, MarshipError, NotFoundError, ServerError, UsageError
from marship.torchserve import turns
from marship.torchserve.access import Access
from marship.torchserve.calls import LINES_TYPE, Answer, Call, Flow, Work, path
from marship.torchserve.home import Home
from marship.torchserve.status import (
    Model,
    ModelStatus,
    Patience,
    Watch,
    checked_name,
    describe,
    optional,
    unknown,
)
from marship.torchserve.store import admit, check_archive, files_of, note_files
from marship.torchserve.workerlog import WorkerLog

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Registration:
    """What is registered, and how.

    Attributes:
        archive: A file name in the server's model store.
        name: The model's name; None is the archive's without its ending.
        workers: How many; None leaves it to the archive's model-config.yaml, else to
            default_workers_per_model. A number given here wins over both.
        batch_size: The most requests in one batch; None leaves it to the archive.
        max_batch_delay_ms: How long a batch waits; None leaves it to the archive.
    """

    archive: str
    name: str | None = None
    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None

    def model_name(self) -> str:
        """The name that the model will have.

        Raises:
            UsageError: The archive is no file name, or the model's name cannot be used.
        """
        if Path(self.archive).name != self.archive or self.archive.startswith("."):
            raise UsageError(
                f"an archive must be the name of a file in the model store, got "
                f"{self.archive!r}. Put the file there and give its name alone."
            )
        return checked_name(self.name or Path(self.archive).stem)


def list_models(access: Access) -> Flow[list[Model]]:
    """All models with all their versions, by name."""
    names: list[str] = []
    page: str | None = "0"
    while page is not None:
        params = {"limit": str(_PAGE), "next_page_token": page}
        answer = yield from access.authorized(Call("management", "GET", "/models", params))
        listed = answer.json()
        names += [entry["modelName"] for entry in listed["models"]]
        page = listed.get("nextPageToken")
    models = []
    for name in sorted(names):
        (default,) = yield from describe(access, name)
        versions = yield from describe(access, name, "all")
        models.append(Model(name, default.version, tuple(versions)))
    return models


def register(
    access: Access,
    wanted: Registration,
    patience: Patience,
) -> Flow[ModelStatus]:
    """Register an archive and wait until its workers are ready; undo it if they are not.

    Raises:
        UsageError: The archive is no file name.
        NotFoundError: The model store does not hold it.
        PackageError: It is damaged.
        SignatureError: The server trusts some keys, and none of them signed it as it is.
        LoadError: A worker died, or the time is over; the message is the worker's own, its
            notes are the log.
        ServerError: The server refused.
    """
    name = wanted.model_name()
    log = WorkerLog(access.home) if access.is_local else None
    with ExitStack() as copy:
        files = None
        if access.is_local:
            files = yield from _check(access.home, wanted, name, copy, patience.timeout_s)
        before = yield from _versions(access, name)
        try:
            yield from _post(access, wanted, name)
            copy.close()  # TorchServe has unpacked it
            new = (yield from _versions(access, name)) - before
            (status,) = yield from describe(access, name, next(iter(new)))
            if files is not None:
                note_files(access.home, name, status.version, files)
            if wanted.workers is not None and status.max_workers != wanted.workers:
                yield from _set_workers(access, status, wanted.workers)
                (status,) = yield from describe(access, name, status.version)
            watch = Watch(access, name, status.version, log, frozenset())
            return (yield from watch.until(status.min_workers, patience))
        except GeneratorExit:
            raise
        except BaseException as error:  # Ctrl-C too: nothing half-registered stays
            if getattr(error, "status", None) != HTTPStatus.CONFLICT:  # else it is another's
                yield from _withdraw(access, name, before, error)
            raise


def scale(
    access: Access,
    name: str,
    workers: int,
    *,
    version: str | None,
    patience: Patience,
) -> Flow[ModelStatus]:
    """Set the number of workers and wait until as many are ready, and no more exist.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Not all came up; the message says how many did, and why.
    """
    if workers < 0:
        raise UsageError(f"workers must be 0 or more, got {workers}.")
    log = WorkerLog(access.home) if access.is_local else None
    (before,) = yield from describe(access, name, version)
    yield from _set_workers(access, before, workers)
    known = frozenset(worker.id for worker in before.workers)
    watch = Watch(access, name, before.version, log, known)
    try:
        return (yield from watch.until(workers, patience))
    except LoadError as error:
        failure = ServerError(
            f"{name} must have {workers} workers ready, got {watch.ready} of {workers}: {error}"
        )
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error


def wait_ready(
    access: Access,
    name: str,
    *,
    version: str | None,
    patience: Patience,
) -> Flow[ModelStatus]:
    """Wait until the workers that the server keeps for a model are ready.

    Raises:
        NotFoundError: There is no such model or version.
        LoadError: A worker died, or the time is over.
    """
    log = WorkerLog(access.home) if access.is_local else None
    (status,) = yield from describe(access, name, version)
    watch = Watch(access, name, status.version, log, frozenset())
    return (yield from watch.until(status.min_workers, patience))


def set_default(access: Access, name: str, version: str) -> Flow[None]:
    """Make a version the one that answers where none is named.

    Raises:
        NotFoundError: There is no such model or version.
    """
    where = path("models", checked_name(name), version, "set-default")
    try:
        yield from access.authorized(Call("management", "PUT", where))
    except NotFoundError as error:
        raise unknown(name, version) from error


def unregister(access: Access, name: str, version: str | None = None) -> Flow[None]:
    """Remove a version, or the default one, and end its workers.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: It is the default version, and there are others.
    """
    where = path("models", checked_name(name), *optional(version))
    try:
        yield from access.authorized(Call("management", "DELETE", where))
    except NotFoundError as error:
        raise unknown(name, version) from error


def predict(  # noqa: PLR0913  keyword-only
    access: Access,
    name: str,
    *,
    version: str | None,
    body: bytes,
    content_type: str,
    streams: bool = False,
) -> Flow[Answer]:
    """Ask a model; for lines as they are ready, or for its whole answer.

    Raises:
        RequestError: The model refused the body.
        NotFoundError: There is no such model or version.
        ServerError: The worker failed, or the queue is full.
    """
    where = path("predictions", checked_name(name), *optional(version))
    headers = {"Content-Type": content_type} | ({"Accept": LINES_TYPE} if streams else {})
    call = Call("inference", "POST", where, {}, headers, body, streams, repeats=True)
    try:
        return (yield from access.authorized(call))
    except NotFoundError as error:
        raise unknown(name, version) from error


def ping(access: Access) -> Flow[str]:
    """The server's own word on its health: "Healthy" while models are still loading, too."""
    answer = yield from access.authorized(Call("inference", "GET", "/ping"))
    return str(answer.json()["status"])


def metrics(access: Access) -> Flow[str]:
    """All figures in Prometheus' text format."""
    answer = yield from access.authorized(Call("metrics", "GET", "/metrics"))
    return answer.body.decode("utf-8")


def _check(
    home: Home, wanted: Registration, name: str, copy: ExitStack, timeout_s: float
) -> Flow[str | None]:
    """Hold an archive against the server's trust folder, else make sure that it is whole.

    Returns:
        What is in it, where it is a `.mar`.
    """
    record = home.require_running()
    store = Path(record.model_store)
    if record.trust is None:
        check_archive(store, wanted.archive)
    else:
        # one at a time: of two copies of one name the first to go would take the other along
        turn = home.verified.with_suffix(".lock")
        deed = "registers an archive"
        yield from turns.take(turn, copy, timeout_s=timeout_s, deed=deed)
        store = home.verified
        copy.callback((store / wanted.archive).unlink, missing_ok=True)
        yield Work(lambda: admit(home, wanted.archive, name))
    return files_of(store / wanted.archive)


def _post(access: Access, wanted: Registration, name: str) -> Flow[None]:
    params = {"url": wanted.archive, "model_name": name, "synchronous": "false"}
    optional = {
        "initial_workers": wanted.workers,
        "batch_size": wanted.batch_size,
        "max_batch_delay": wanted.max_batch_delay_ms,
    }
    params |= {key: str(value) for key, value in optional.items() if value is not None}
    try:
        yield from access.authorized(Call("management", "POST", "/models", params))
    except NotFoundError as error:
        raise NotFoundError(
            f"{wanted.archive} must lie in the server's model store, got none there."
        ) from error


def _set_workers(access: Access, model: ModelStatus, workers: int) -> Flow[None]:
    """Set both bounds: the lower alone only adds workers, the upper alone only ends some."""
    params = {"min_worker": str(workers), "max_worker": str(workers), "synchronous": "false"}
    where = path("models", model.name, model.version)
    yield from access.authorized(Call("management", "PUT", where, params))


def _versions(access: Access, name: str) -> Flow[set[str]]:
    try:
        found = yield from describe(access, name, "all")
    except NotFoundError:
        return set()
    return {status.version for status in found}


def _withdraw(access: Access, name: str, before: set[str], error: BaseException) -> Flow[None]:
    try:
        for version in (yield from _versions(access, name)) - before:
            yield from unregister(access, name, version)
    except MarshipError as second:
        error.add_note(f"{name} may still be registered: {second}")
