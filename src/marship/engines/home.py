"""A server's private home folder: its layout, and which server runs from it.

    .gitignore         keeps all of it out of git
    config.properties  TorchServe's settings as this server runs with them
    key_file.json      its tokens, written by TorchServe
    server.json        the running server: process, addresses, model store
    logs/              server.log, workers.log, direct.log, console.log
    tmp/               the server's temporary folder: sockets and unpacked archives
    registered/        records of registrations: what each version was registered from
    trust.json         the trust folder of the last start
    start.lock         locked while a server starts; a folder with this file is a home
    verified/          the model store if archives must be signed: verified copies while they load
    verified.lock      locked while an archive is registered
    client-keys/       evaluation keys of clients of private models, by digest
    autoscale.json     what autoscaling last decided
    autoscale.lock     locked while autoscaling runs
    rollouts/          a file for each model, locked while its versions are exchanged

Server and client read it; nothing here starts, stops or calls a process.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from marship import storage, unversioned
from marship.engines.processes import Group
from marship.errors import DataError, NotRunningError, ServerError, UsageError
from marship.exchange import sockets

HOME_VARIABLE = "MARSHIP_HOME"
DEFAULT_HOME = ".marship"
DIRECT_SOCKET, WORKERS_SOCKET, SHEETS_FOLDER = "direct.sock", "workers.sock", "sheets"
"""In the server's temporary folder: the acceptor's sockets, and where workers count."""
_SOCKET_NAME = "/.ts.sock.65535"


def default_home() -> Path:
    """MARSHIP_HOME, or `.marship` in the current folder; absolute."""
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).absolute()


@contextmanager
def _locked(path: Path, refusal: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(refusal) from error
        yield


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server as described by `server.json`.

    Attributes:
        pid: The Java process; its workers are its children.
        created: Start time of that process in seconds since boot: pids are reused.
        boot: The machine's boot id.
        inference_url: Address of the inference API.
        management_url: Address of the management API.
        metrics_url: Address of the metrics API, for Prometheus.
        model_store: The folder that archives are registered from.
        tmp: The server's temporary folder.
        seal_key: The source of the key of sealed models, never the key itself; None without.
        trust: The folder with the trusted keys; None accepts unsigned archives.
        direct_url: Address at which workers respond themselves; None where they do not.
        direct_pid: The acceptor of that address; 0 where there is none.
        direct_created: Start time of the acceptor, as `created`.
        prometheus_url: One page for Prometheus of all workers and TorchServe; None without.
        grpc_address: Host and port of KServe v2 over gRPC; None where it is not served.
        engine: Which engine serves: torchserve or ray.
        cluster: The address of Ray's cluster; empty without one. Where another program started the
            cluster, `pid` is 0.
    """

    pid: int
    created: float
    boot: str
    inference_url: str
    management_url: str
    metrics_url: str
    model_store: str
    tmp: str
    seal_key: str | None = None
    trust: str | None = None
    direct_url: str | None = None
    direct_pid: int = 0
    direct_created: float = 0.0
    grpc_address: str | None = None
    prometheus_url: str | None = None
    engine: str = "torchserve"
    cluster: str = ""

    def with_direct(
        self, url: str, acceptor: Group, grpc_address: str | None, page: str | None = None
    ) -> "ServerRecord":
        """The same server, with its direct address."""
        return replace(
            self,
            direct_url=url,
            direct_pid=acceptor.pid,
            direct_created=acceptor.created,
            grpc_address=grpc_address,
            prometheus_url=page,
        )

    @property
    def acceptor(self) -> Group | None:
        """The processes that accept for the direct address."""
        if not self.direct_pid:
            return None
        return Group(self.direct_pid, self.direct_created, self.boot)

    @property
    def direct_addresses(self) -> tuple[str, ...]:
        """The acceptor's: a unix socket for clients on this machine, and the public one."""
        if self.direct_url is None:
            return ()
        return sockets.url(f"{self.tmp}/{DIRECT_SOCKET}"), self.direct_url

    def addresses(self, side: str) -> tuple[str, ...]:
        """The addresses of an API, the one to use first.

        While the acceptor is gone, TorchServe's own address serves as before.
        """
        own: str = getattr(self, f"{side}_url")
        if side != "inference" or self.acceptor is None:
            return (own,)
        direct = [url for url in self.direct_addresses if sockets.is_visible(url)]
        return (*direct, own) if self.acceptor.is_alive() else (own, *direct)

    @property
    def is_alive(self) -> bool:
        """Whether it runs; of a cluster that another program started only calls can tell."""
        return self.group.is_alive() if self.pid else bool(self.cluster)

    @property
    def group(self) -> Group:
        """The server's processes."""
        return Group(self.pid, self.created, self.boot)


@dataclass(frozen=True, slots=True)
class Home:
    """The folder's layout."""

    path: Path

    @property
    def config(self) -> Path:
        """TorchServe's resolved settings."""
        return self.path / "config.properties"

    @property
    def key_file(self) -> Path:
        """The tokens."""
        return self.path / "key_file.json"

    @property
    def record_file(self) -> Path:
        """The description of the running server."""
        return self.path / "server.json"

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.path / "logs"

    @property
    def lock_file(self) -> Path:
        """The lock of a starting server; it marks a folder as a home from the first start on."""
        return self.path / "start.lock"

    @property
    def trust_file(self) -> Path:
        """The trust folder of the last start."""
        return self.path / "trust.json"

    @property
    def tmp(self) -> Path:
        """The server's temporary folder, unless sockets need a shorter path."""
        return self.path / "tmp"

    @property
    def registered(self) -> Path:
        """The folder of registration records."""
        return self.path / "registered"

    def rollout_lock(self, model: str) -> Path:
        """The lock for exchanging a model's versions."""
        return self.path / "rollouts" / f"{model}.lock"

    @property
    def autoscale_file(self) -> Path:
        """What autoscaling last decided."""
        return self.path / "autoscale.json"

    @property
    def client_keys(self) -> Path:
        """The folder of the evaluation keys that clients of private models upload."""
        return self.path / "client-keys"

    @property
    def verified(self) -> Path:
        """The folder that TorchServe reads if archives must be signed."""
        return self.path / "verified"

    @property
    def passing(self) -> tuple[Path, ...]:
        """The folders that are removed with the server."""
        return self.tmp, self.registered, self.verified

    @property
    def server_log(self) -> Path:
        """TorchServe's own warnings and errors."""
        return self.logs / "server.log"

    @property
    def worker_log(self) -> Path:
        """The workers' output, including tracebacks."""
        return self.logs / "workers.log"

    @property
    def direct_log(self) -> Path:
        """The acceptor's: workers that died."""
        return self.logs / "direct.log"

    @property
    def console_log(self) -> Path:
        """The Java process's own output."""
        return self.logs / "console.log"

    def create(self) -> None:
        """Create the folder, or use an empty one or a home, accessible to its owner only.

        A server overwrites and removes files in it. It may contain other homes.

        Raises:
            UsageError: It cannot be created, belongs to another user, holds other files, or git
                would track its tokens.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_ours()
            self.path.chmod(0o700)
            unversioned.cover(self.path)
            unversioned.ignore(self.key_file)  # in case it has a .gitignore by someone else
        except OSError as error:
            raise UsageError(
                f"{self.path} must be a folder of your own, got: {error.strerror}. "
                "Choose another with --home."
            ) from error

    def _check_ours(self) -> None:
        if self.lock_file.exists():
            return
        for path in sorted(self.path.iterdir()):
            if path.name.startswith((unversioned.IGNORE_FILE, f".{unversioned.IGNORE_FILE}.")):
                continue  # the second is the draft of a concurrent start
            if path in self.passing or not Home(path).lock_file.exists():
                raise UsageError(
                    f"{self.path} must be a server's home, or an empty or new folder, got one "
                    f"with {path.name} in it. Choose another with --home."
                )

    def make_tmp(self) -> Path:
        """Create the server's temporary folder: here, or where sockets have a shorter path."""
        if sockets.is_too_long(f"{self.tmp}{_SOCKET_NAME}"):
            return Path(tempfile.mkdtemp(prefix="marship-"))
        self.tmp.mkdir(mode=0o700)
        return self.tmp

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for starting a server here.

        Raises:
            ServerError: Another process holds it.
        """
        refusal = (
            f"only one server may start in {self.path}, got another one starting. "
            "Wait for it, or choose another folder with --home."
        )
        with _locked(self.lock_file, refusal):
            yield

    @contextmanager
    def autoscaling(self) -> Iterator[None]:
        """Hold the lock for scaling the models of this server.

        Raises:
            NotRunningError: No server ever ran here.
            ServerError: Another process holds it.
        """
        if not self.lock_file.exists():
            self.require_running()
        with _locked(
            self.path / "autoscale.lock",
            f"only one autoscaling may run in {self.path}, got another one. End it first.",
        ):
            yield

    def check_readable(self) -> None:
        """Check that the folder is one that this user may look into.

        Raises:
            UsageError: It is a file, or belongs to another user.
        """
        try:
            os.scandir(self.path).close()
        except FileNotFoundError:
            return
        except OSError as error:
            if (unusable := storage.as_usage(error, self.path)) is None:
                raise
            raise unusable from error

    def log_files(self) -> list[Path]:
        """The existing log files."""
        names = (self.server_log, self.worker_log, self.direct_log, self.console_log)
        return list(filter(Path.is_file, names))

    def record(self) -> ServerRecord | None:
        """The content of `server.json`; the server may have stopped since.

        Raises:
            UsageError: The home cannot be read.
            ServerError: The file is corrupted.
        """
        try:
            return ServerRecord(**storage.read_json(self.record_file))
        except storage.MissingError:
            return None
        except (DataError, TypeError) as error:
            raise ServerError(
                f"{self.record_file} must describe a server, got {error}. Remove the file."
            ) from error

    def write_record(self, record: ServerRecord) -> None:
        """Write `server.json`."""
        storage.write_json(self.record_file, asdict(record))

    def trust(self) -> Path | None:
        """The trust folder of the last start; None if it had none.

        Raises:
            UsageError: The home cannot be read.
            ServerError: The file is corrupted.
        """
        try:
            return Path(storage.read_json(self.trust_file)["folder"])
        except storage.MissingError:
            return None
        except (DataError, KeyError, TypeError) as error:
            raise ServerError(
                f"{self.trust_file} must name the trust folder, got {error}. Name it with "
                "--trust, or serve unsigned archives with --no-trust."
            ) from error

    def write_trust(self, folder: Path | None) -> None:
        """Write `trust.json`, or remove it."""
        if folder is None:
            self.trust_file.unlink(missing_ok=True)
        else:
            storage.write_json(self.trust_file, {"folder": str(folder.absolute())})

    def running(self) -> ServerRecord | None:
        """The server that runs from this home, if any."""
        return record if (record := self.record()) and record.is_alive else None

    def require_stopped(self) -> None:
        """Check that no server runs from this home.

        Raises:
            ServerError: One runs.
        """
        if (record := self.running()) is not None:
            raise ServerError(
                f"no server must run in {self.path}, got one at {record.inference_url} "
                f"(process {record.pid}). Stop it with: marship stop"
            )

    def require_running(self) -> ServerRecord:
        """The server that runs from this home.

        Raises:
            NotRunningError: None runs.
        """
        if (record := self.running()) is None:
            raise NotRunningError(
                f"a server must run in {self.path}, got none. Start one with: marship serve"
            )
        return record
