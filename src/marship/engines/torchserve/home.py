"""A server's private home folder: what lies in it, and which server runs from it.

    .gitignore         keeps all of it out of git
    config.properties  TorchServe's settings as this server runs with them
    key_file.json      its tokens, written by TorchServe
    server.json        the running server: process, addresses, model store
    logs/              server.log, workers.log, console.log
    tmp/               the server's temporary folder: sockets and unpacked archives
    registered/        what the versions that run were registered from
    trust.json         the folder of keys that archives were held to at the last start
    start.lock         held while a server starts; a folder with this file is a home
    verified/          its model store where archives must be signed: copies while they load
    verified.lock      held while one is registered
    rollouts/          a file for each model, locked while its versions are exchanged

Server and client both read it; nothing here starts, ends or asks a process.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from marship import storage, unversioned
from marship.engines.torchserve.processes import Group
from marship.errors import DataError, NotRunningError, ServerError, UsageError
from marship.exchange import sockets

HOME_VARIABLE = "MARSHIP_HOME"
DEFAULT_HOME = ".marship"
_SOCKET_NAME = "/.ts.sock.65535"


def default_home() -> Path:
    """MARSHIP_HOME, or `.marship` in the current folder; absolute."""
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).absolute()


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server as `server.json` describes it.

    Attributes:
        pid: The Java process; its workers are its children.
        created: When that process began, in seconds since the machine did: pids are used again.
        boot: Of which run of the machine that is.
        inference_url: Where predictions are asked for.
        management_url: Where models are registered and scaled.
        metrics_url: Where Prometheus reads.
        model_store: The folder that archives are registered from.
        tmp: The server's temporary folder.
        seal_key: The source of the key to sealed models, never the key; None is none.
        trust: The folder with the keys that archives must be signed with; None asks for none.
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
        """What describes the running server."""
        return self.path / "server.json"

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.path / "logs"

    @property
    def lock_file(self) -> Path:
        """What is locked at a start, and marks a folder as a home from its first start on."""
        return self.path / "start.lock"

    @property
    def trust_file(self) -> Path:
        """What names the trust folder of the last start."""
        return self.path / "trust.json"

    @property
    def tmp(self) -> Path:
        """The server's temporary folder, unless that needs a shorter path."""
        return self.path / "tmp"

    @property
    def registered(self) -> Path:
        """The folder of notes on what each version was registered from."""
        return self.path / "registered"

    def rollout_lock(self, model: str) -> Path:
        """What is locked while a model's versions are exchanged."""
        return self.path / "rollouts" / f"{model}.lock"

    @property
    def verified(self) -> Path:
        """The folder that TorchServe reads where archives must be signed."""
        return self.path / "verified"

    @property
    def passing(self) -> tuple[Path, ...]:
        """The folders that go with the server."""
        return self.tmp, self.registered, self.verified

    @property
    def server_log(self) -> Path:
        """TorchServe's own warnings and errors."""
        return self.logs / "server.log"

    @property
    def worker_log(self) -> Path:
        """What workers print, tracebacks among it."""
        return self.logs / "workers.log"

    @property
    def console_log(self) -> Path:
        """What the Java process itself prints."""
        return self.logs / "console.log"

    def create(self) -> None:
        """Make the folder, or take an empty one or a home, for its owner only.

        A server overwrites and removes files in it. Other homes may lie in it.

        Raises:
            UsageError: It cannot be made, belongs to someone else, holds what is not ours, or git
                would take its tokens.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_ours()
            self.path.chmod(0o700)
            unversioned.cover(self.path)
            unversioned.ignore(self.key_file)  # where a .gitignore of somebody else is in it
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
                continue  # the second is another start's draft of it
            if path in self.passing or not Home(path).lock_file.exists():
                raise UsageError(
                    f"{self.path} must be a server's home, or an empty or new folder, got one "
                    f"with {path.name} in it. Choose another with --home."
                )

    def make_tmp(self) -> Path:
        """Make the server's temporary folder: in here, or a short one where sockets need it."""
        if sockets.is_too_long(f"{self.tmp}{_SOCKET_NAME}"):
            return Path(tempfile.mkdtemp(prefix="marship-"))
        self.tmp.mkdir(mode=0o700)
        return self.tmp

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from starting a server here.

        Raises:
            ServerError: Someone else is doing that.
        """
        with self.lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ServerError(
                    f"only one server may start in {self.path}, got another one starting. "
                    "Wait for it, or choose another folder with --home."
                ) from error
            yield

    def log_files(self) -> list[Path]:
        """The logs that exist."""
        files = (self.server_log, self.worker_log, self.console_log)
        return [file for file in files if file.is_file()]

    def record(self) -> ServerRecord | None:
        """What `server.json` says; the server may have ended since.

        Raises:
            UsageError: The home may not be read.
            ServerError: The file is damaged.
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
        """The trust folder of the last start; None where it had none.

        Raises:
            UsageError: The home may not be read.
            ServerError: The file is damaged.
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
        """The server that runs from this home, if one does."""
        record = self.record()
        return record if record and record.group.is_alive() else None

    def require_stopped(self) -> None:
        """Make sure that no server runs from this home.

        Raises:
            ServerError: One does.
        """
        if (record := self.running()) is not None:
            raise ServerError(
                f"no server must run in {self.path}, got one at {record.inference_url} "
                f"(process {record.pid}). Stop it with: marship stop"
            )

    def require_running(self) -> ServerRecord:
        """The server that runs from this home.

        Raises:
            NotRunningError: None does.
        """
        record = self.running()
        if record is None:
            raise NotRunningError(
                f"a server must run in {self.path}, got none. Start one with: marship serve"
            )
        return record
