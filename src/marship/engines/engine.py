"""The engine interface that clients, rollouts, declared state and the command line use.

An engine runs archives: it starts and stops servers, and registers, scales, describes and drains
models. Operations over HTTP are flows (`exchange.calls`), which each client runs on its own
transport. `engines.default` names the engine in use.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from marship.engines.addresses import Target
from marship.exchange.calls import Destination, Flow, HttpResponse, Pause, Side

if TYPE_CHECKING:
    from marship.engines.home import Home, ServerRecord
    from marship.engines.load import ModelLoad
    from marship.engines.trials import TrialFigures, TrialOrder, TrialState
    from marship.trust.policy import Trust

OnWait = Callable[[int, int], None]
"""Called with the number of workers that are ready, and that are wanted."""

DRAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process.

    Example:
        >>> marship.Worker(id="9000", pid=4711, ready=True).ready
        True
    """

    id: str
    pid: int
    ready: bool


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The current state of one version of a model on the server.

    Attributes:
        name: The model's name.
        version: Its version.
        archive: The archive that it was registered from.
        registration: The id of the registration that created it; empty if another program did.
        min_workers: Minimum number of workers, which the server keeps running.
        max_workers: Maximum number of workers.
        batch_size: Maximum requests in one batch.
        max_batch_delay_ms: How long a batch waits to fill.
        response_timeout_s: How long a worker may take for one batch.
        loaded_at_startup: Whether it was loaded by the server's configuration.
        workers: The existing workers, ready or not.
        waiting: Number of queued requests.

    Example:
        >>> with marship.Client() as client:
        ...     [(status.version, status.ready) for status in client.describe("tiny")]
        [('1.0', 1)]
    """

    name: str
    version: str
    archive: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int
    loaded_at_startup: bool
    workers: tuple[Worker, ...]
    waiting: int = 0
    registration: str = ""

    @property
    def ready(self) -> int:
        """How many workers are ready."""
        return sum(worker.ready for worker in self.workers)


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model: its versions, and which one is the default.

    Example:
        >>> with marship.Client() as client:
        ...     [model.default_version for model in client.models() if model.name == "tiny"]
        ['1.0']
    """

    name: str
    default_version: str
    versions: tuple[ModelStatus, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """How long to wait for workers, and a callback for progress."""

    timeout_s: float
    on_wait: OnWait | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """A request to register an archive.

    Attributes:
        archive: A file name in the server's model store.
        name: The model's name; None is the archive's own.
        workers: Number of workers; None is that of the archive's model-config.yaml, else the
            server's default. A number given here overrides both.
        batch_size: Maximum requests in one batch, at least 1; None is the archive's.
        max_batch_delay_ms: How long a batch waits to fill; None is the archive's.
    """

    archive: str
    name: str | None = None
    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """The record of a registration, kept as long as the server runs.

    Attributes:
        registration: Its id.
        files: A digest of the archive's files; None if it was not a `.mar`.
        batch_size: As given at registration; None was the archive's.
        max_batch_delay_ms: Likewise.
    """

    registration: str
    files: str | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings of a server that its clients and a proxy in front of it depend on.

    Attributes:
        inference_address: Where the server itself serves predictions; empty is its default.
        direct_address: Where workers respond themselves; None where they do not.
        queue_size: The maximum number of queued requests of one model.
        max_request_bytes: The maximum size of a request's body.
        checks_tokens: Whether requests need a token.
        model_store: The folder with the archives; None is the engine's default.
    """

    inference_address: str
    direct_address: str | None
    queue_size: int
    max_request_bytes: int
    checks_tokens: bool
    model_store: str | None

    @property
    def prediction_addresses(self) -> list[str]:
        """Where predictions are served, the better address first."""
        return [found for found in (self.direct_address, self.inference_address) if found]


class Engine(Destination, Protocol):
    """One server of an engine, and the models on it."""

    def __init__(self, target: Target) -> None:
        """Take the addresses and tokens of a server, which is not called yet.

        Raises:
            UsageError: An address, a token or the certificate file is invalid.
        """

    @staticmethod
    def start(settings: Any, *, on_wait: Callable[[float], None] | None = None) -> Any:  # noqa: ANN401  each engine's own
        """Start a server, and return when it responds.

        Args:
            settings: The engine's own.
            on_wait: Called again and again with the seconds waited so far.

        Raises:
            ServerError: It failed to start.
        """

    @staticmethod
    def stop(home: Path | None = None) -> "ServerRecord":
        """Stop the server of a home folder.

        Raises:
            NotRunningError: No server runs there.
        """

    @staticmethod
    def log_files(home: Path | None = None) -> list[Path]:
        """The logs of a home folder's server, whether it runs or not.

        Raises:
            UsageError: No server ever ran there.
        """

    @staticmethod
    def server_config(home: Path | None = None) -> ServerConfig:
        """The settings of a home folder's server, or those that it would start with.

        Raises:
            UsageError: The settings cannot be read.
        """

    @property
    def home(self) -> "Home":
        """The server's home folder, if it is local: see `is_local`."""

    @property
    def is_local(self) -> bool:
        """Whether the server's files are accessible on this machine."""

    @property
    def model_store(self) -> Path:
        """The server's model store; for a remote server the local folder with copies of archives.

        Raises:
            NotRunningError: No server runs in the home.
        """

    def has(self, api: Side) -> bool:
        """Whether the address of an API of the server is known."""

    @staticmethod
    def check_name(name: str) -> str:
        """The name, if it is a valid model name.

        Raises:
            UsageError: It cannot be part of a URL, or is reserved by the engine.
        """

    def version_lock(
        self,
        name: str,
        held: ExitStack,
        *,
        timeout_s: float,
        on_wait: Callable[[str], None] | None = None,
    ) -> Generator[Pause, None, None]:
        """Take the lock for exchanging versions of a model; `held` releases it.

        There is no lock where the server's files cannot be written.

        Raises:
            ServerError: Another process holds the lock for longer than `timeout_s`.
        """

    def keys(self) -> "Trust | None":
        """The keys that the server trusts; None if it accepts unsigned archives.

        Raises:
            NotRunningError: No server runs.
        """

    def note(self, name: str, version: str) -> Note | None:
        """The record of a version's registration; None if there is none."""

    def has_other_files(self, name: str, version: str, archive: str) -> bool:
        """Whether an archive of the store differs from the one a version was registered from."""

    def models(self) -> Flow[list[Model]]:
        """All models with all their versions, sorted by name."""

    def describe(self, name: str, version: str | None = None) -> Flow[list[ModelStatus]]:
        """The status of a model's default version, of a given version, or of "all" versions.

        Raises:
            NotFoundError: There is no such model or version.
        """

    def register(self, wanted: Registration, wait: Wait) -> Flow[ModelStatus]:
        """Register an archive and wait until its workers are ready; undo it on failure.

        Raises:
            UsageError: The archive is not a file name, or the model's name or the batch size is
                invalid.
            NotFoundError: It is not in the model store, or another client unregistered it.
            PackageError: It is corrupted.
            SignatureError: It has no valid signature by a key that the server trusts.
            LoadError: A worker crashed or timed out; the message is the worker's error, the
                notes are the end of its log.
            ServerError: The server rejected it.
        """

    def scale(
        self, name: str, workers: int, *, version: str | None, wait: Wait
    ) -> Flow[ModelStatus]:
        """Set the number of workers, and wait until exactly that many are ready.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: Not all became ready; the message says how many did, and why.
        """

    def shrink(
        self, name: str, workers: int, *, version: str, wait: Wait
    ) -> Flow[ModelStatus | None]:
        """Scale down if no request is lost by it; None if workers to be ended stay busy.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: The server refused.
        """

    def loads(self) -> "Flow[list[ModelLoad]]":
        """The load of every version of every model."""

    def renew_trial(self, order: "TrialOrder") -> "Flow[list[TrialFigures]]":
        """Begin a trial, let it go on for a lease, or end it; the figures of all who take part."""

    def trials(self) -> "Flow[list[TrialState]]":
        """The trials that run."""

    def wait_ready(self, name: str, *, version: str | None, wait: Wait) -> Flow[ModelStatus]:
        """Wait until a model's minimum number of workers is ready.

        Raises:
            NotFoundError: There is no such model or version.
            LoadError: A worker crashed, or the timeout passed.
        """

    def set_default(self, name: str, version: str) -> Flow[None]:
        """Make a version the default, which serves requests without a version.

        Raises:
            NotFoundError: There is no such model or version.
        """

    def drain(self, name: str, version: str, *, timeout_s: float = DRAIN_S) -> Flow[None]:
        """Wait until no request is queued or running; another version must be the default.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: Requests remain after the timeout.
        """

    def unregister(self, name: str, version: str | None = None) -> Flow[None]:
        """Unregister a version, or the default one, and stop its workers.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: It is the default version, and there are others.
        """

    def withdraw(self, status: ModelStatus, *, leaves_last: bool = False) -> Flow[None]:
        """Unregister a version if it was created by the same registration.

        Args:
            status: The version, as `register` returned it.
            leaves_last: Keep it if it is ready and all others are gone meanwhile.

        Raises:
            ServerError: The server refused, or the version was kept.
        """

    def predict(
        self,
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

    def ping(self) -> Flow[str]:
        """The server's health as it reports it: "Healthy" even while models are loading."""

    def openapi(self) -> "Flow[dict[str, Any]]":
        """The OpenAPI document of all models at the direct address.

        Raises:
            ServerError: The server has no direct address.
        """

    def metrics(self) -> Flow[str]:
        """All metrics in Prometheus' text format."""
