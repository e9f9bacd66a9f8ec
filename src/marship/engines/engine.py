"""What every engine does, as clients, rollouts, declared state and the command line use it.

An engine runs archives: it starts servers and stops them, and registers, scales, describes and
drains models. What takes an exchange over HTTP is a flow (`exchange.calls`), which each client
runs in its own way. TorchServe is the first engine: `engines.torchserve.engine`.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from marship.exchange.calls import Answer, Destination, Flow, Pause, Side

if TYPE_CHECKING:
    from marship.trust.policy import Trust

OnWait = Callable[[int, int], None]
"""Called with the number of workers that are ready, and of those wanted."""

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
    """One version of a model, as the server has it now.

    Attributes:
        name: The model's name.
        version: Its version.
        archive: The archive that it was registered from.
        registration: The id of the registration that created it; empty where another program did.
        min_workers: How many workers the server keeps.
        max_workers: The largest number of them.
        batch_size: The most requests in one batch.
        max_batch_delay_ms: How long a batch waits to be filled.
        response_timeout_s: How long a worker may take for one batch.
        loaded_at_startup: Whether the configuration asked for it.
        workers: Those that exist, ready or not.
        waiting: How many requests no worker has taken yet.

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
    """A name that predictions can be asked of: its versions, and which one answers.

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
    """How long workers are waited for, and who is told about it."""

    timeout_s: float
    on_wait: OnWait | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """What is registered, and how.

    Attributes:
        archive: A file name in the server's model store.
        name: The model's name; None is the archive's own.
        workers: How many; None leaves it to the archive's model-config.yaml, else to the server. A
            number given here wins over both.
        batch_size: The most requests in one batch; None leaves it to the archive.
        max_batch_delay_ms: How long a batch waits; None leaves it to the archive.
    """

    archive: str
    name: str | None = None
    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What is kept of a registration for as long as the server runs.

    Attributes:
        registration: Its id.
        files: A digest of what the archive held; None where it was no `.mar`.
        batch_size: As the registration asked for; None left it to the archive.
        max_batch_delay_ms: Likewise.
    """

    registration: str
    files: str | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None


class Engine(Destination, Protocol):
    """One server of an engine, and the models on it."""

    @staticmethod
    def start(settings: Any) -> Any:  # noqa: ANN401  each engine's own
        """Start a server.

        Raises:
            ServerError: It does not start.
        """

    @staticmethod
    def stop(home: Path | None = None) -> Any:  # noqa: ANN401  each engine's own
        """Stop the server of a folder.

        Raises:
            NotRunningError: None runs there.
        """

    @property
    def is_local(self) -> bool:
        """Whether the server's files are at hand."""

    def has(self, api: Side) -> bool:
        """Whether an API of the server has an address."""

    def check_name(self, name: str) -> str:
        """The name, if a model may have it.

        Raises:
            UsageError: It cannot be part of an address, or the engine uses it itself.
        """

    def turn(
        self,
        name: str,
        held: ExitStack,
        *,
        timeout_s: float,
        on_wait: Callable[[str], None] | None = None,
    ) -> Generator[Pause, None, None]:
        """Wait until nobody else exchanges versions of a model; it is kept by `held`.

        Where the server's files may not be written there is no such lock.

        Raises:
            ServerError: Another one goes on for longer than `timeout_s`.
        """

    def keys(self) -> "Trust | None":
        """The keys that the server accepts; None where it accepts every archive.

        Raises:
            NotRunningError: No server runs.
        """

    def note(self, name: str, version: str) -> Note | None:
        """What was kept of a version's registration; None where nothing was."""

    def has_other_files(self, name: str, version: str, archive: str) -> bool:
        """Whether an archive of the store is another by now than a version was registered from."""

    def models(self) -> Flow[list[Model]]:
        """All models with all their versions, by name."""

    def describe(self, name: str, version: str | None = None) -> Flow[list[ModelStatus]]:
        """One version of a model: the default, the named, or "all" of them.

        Raises:
            NotFoundError: There is no such model or version.
        """

    def register(self, wanted: Registration, wait: Wait) -> Flow[ModelStatus]:
        """Register an archive and wait until its workers are ready; undo it if they are not.

        Raises:
            UsageError: The archive is no file name, or the model's name cannot be used.
            NotFoundError: The model store does not hold it, or another client unregistered it.
            PackageError: It is damaged.
            SignatureError: The server trusts some keys, and none of them signed it as it is.
            LoadError: A worker died, or the time is over; the message is the worker's own, its
                notes are the log.
            ServerError: The server refused.
        """

    def scale(
        self, name: str, workers: int, *, version: str | None, wait: Wait
    ) -> Flow[ModelStatus]:
        """Set the number of workers and wait until as many are ready, and no more exist.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: Not all came up; the message says how many did, and why.
        """

    def wait_ready(self, name: str, *, version: str | None, wait: Wait) -> Flow[ModelStatus]:
        """Wait until the workers that the server keeps for a model are ready.

        Raises:
            NotFoundError: There is no such model or version.
            LoadError: A worker died, or the time is over.
        """

    def set_default(self, name: str, version: str) -> Flow[None]:
        """Make a version the one that answers where none is named.

        Raises:
            NotFoundError: There is no such model or version.
        """

    def drain(self, name: str, version: str, *, timeout_s: float = DRAIN_S) -> Flow[None]:
        """Wait until no request waits or runs; another version must be the default already.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: Requests are left when the time is over.
        """

    def unregister(self, name: str, version: str | None = None) -> Flow[None]:
        """Remove a version, or the default one, and end its workers.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: It is the default version, and there are others.
        """

    def withdraw(self, status: ModelStatus, *, leaves_last: bool = False) -> Flow[None]:
        """Unregister a version, if it is still the one that its registration created.

        Args:
            status: The version, as `register` returned it.
            leaves_last: Leave it where all others are gone by now and it is ready.

        Raises:
            ServerError: The server refused, or it is left.
        """

    def predict(
        self,
        name: str,
        *,
        version: str | None,
        body: bytes,
        content_type: str,
        streams: bool = False,
    ) -> Flow[Answer]:
        """Ask a model; for lines as they are ready, or for its whole response.

        Raises:
            RequestError: The model refused the body.
            NotFoundError: There is no such model or version.
            ServerError: The worker failed, or the queue is full.
        """

    def ping(self) -> Flow[str]:
        """The server's own word on its health: "Healthy" while models are still loading, too."""

    def metrics(self) -> Flow[str]:
        """All metrics in Prometheus' text format."""
