"""The host's process: it accepts clients, keeps the workers running, and ends in order.

The acceptor runs here, as beside TorchServe in a process of its own. There is no management: the
models are those it was started with. SIGTERM lets requests that have come be answered.
"""

import asyncio
import logging
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from marship import errors
from marship.engines import listeners, page, processes
from marship.engines.figures import requests
from marship.engines.figures.deaths import Deaths
from marship.engines.figures.server import FiguresPage
from marship.engines.home import SHEETS_FOLDER, WORKERS_SOCKET, Home, default_home
from marship.engines.standalone import archives, figures
from marship.engines.standalone.archives import HostedModel
from marship.engines.standalone.settings import HostSettings, split
from marship.engines.standalone.tokens import TokenFile
from marship.engines.standalone.workers import Failure, WorkerProcess
from marship.errors import LoadError, ServerError, UsageError
from marship.serving import sheet
from marship.serving.hosts.direct import acceptor
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.seats import ModelState
from marship.serving.hosts.direct.task import WorkerTask
from marship.serving.metrics import SHEETS_VARIABLE
from marship.serving.model import keysource
from marship.trust.policy import Trust

logger = logging.getLogger(__name__)

_TOKEN_S, _POLL_S = 1.0, 0.05


@dataclass(frozen=True, slots=True)
class Serving:
    """What a host serves.

    Attributes:
        url: Where clients connect.
        metrics_url: The page for Prometheus.
        models: Name and version of each model.
    """

    url: str
    metrics_url: str
    models: tuple[tuple[str, str], ...]


def run(
    given: Sequence[str],
    settings: HostSettings,
    on_listening: Callable[[Serving], None] = lambda _serving: None,
) -> None:
    """Serve archives until SIGTERM or Ctrl-C.

    Args:
        given: Archives, folders of them, and URLs.
        settings: How they are served.
        on_listening: Called once clients can connect; workers may still load their models.

    Raises:
        UsageError: A setting is invalid, or an archive does not exist.
        StorageError: The folder for samples cannot be written to.
        SignatureError: An archive is not signed with a pinned key.
        PackageError: An archive cannot be read.
        LoadError: A worker cannot load its model; the message says why.
        ServerError: An address cannot be listened at, or a server runs in this home.
    """
    settings.check()
    home = Home((settings.home or default_home()).absolute())
    home.require_stopped()
    home.create()
    with home.locked(), ExitStack() as stack:
        host = Host(home, settings)
        stack.callback(host.close)
        host.open()
        host.load(given)
        host.serve(on_listening)


class Host:
    """The models of a host with their workers.

    Args:
        home: The folder that is written to.
        settings: How models are served.
    """

    def __init__(self, home: Home, settings: HostSettings) -> None:
        self._home, self._settings = home, settings
        self._tokens: TokenFile | None = None
        self._seal_key = keysource.tried(settings.seal_key)
        self._trust = None if settings.trust is None else Trust.load(settings.trust)
        self._models: list[tuple[HostedModel, figures.ModelFigures, list[WorkerProcess]]] = []
        self._listeners: dict[str, socket.socket] = {}
        self._failure: Failure | None = None
        self._deadline: float | None = None
        shutil.rmtree(home.tmp, ignore_errors=True)  # a host that was killed left it
        self._temporary = home.make_tmp()
        self._sheets = self._temporary / SHEETS_FOLDER

    def close(self) -> None:
        """End workers, and remove what they used."""
        for _, _, workers in self._models:
            for worker in workers:
                worker.stop()
        for listener in self._listeners.values():
            listener.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._home.key_file.unlink(missing_ok=True)

    def open(self) -> None:
        """Take the addresses and the token."""
        if self._settings.require_token is not None:
            self._tokens = TokenFile(self._settings.require_token, self._home.key_file)
        for name, address in self._settings.addresses.items():
            self._listeners[name] = _listening(name, address)

    def load(self, given: Sequence[str]) -> None:
        """Verify and extract archives, and start their workers, which do not load them yet."""
        self._sheets.mkdir(mode=0o700)
        self._written = requests.variables(self._home.logs, self._settings)
        variables = {
            "MARSHIP_CLIENT_KEYS": str(self._home.client_keys),
            SHEETS_VARIABLE: str(self._sheets),
            **self._written,
        }
        self._home.logs.mkdir(exist_ok=True)
        if self._seal_key is not None:
            variables[keysource.SOURCE_VARIABLE] = self._seal_key
        paths = archives.find(given, self._trust, self._temporary / "downloads")
        for number, path in enumerate(paths):
            model = archives.prepare(path, self._trust, self._temporary / "models" / str(number))
            if any(model.name == other.name for other, _, _ in self._models):
                raise UsageError(
                    f"a host must have one version of each model, got several of {model.name}. "
                    "Start another host for the other one."
                )
            wanted = self._settings.workers or model.workers
            counted = figures.ModelFigures(model.name, model.version, wanted)
            workers: list[WorkerProcess] = []
            self._models.append((model, counted, workers))
            workers += [
                WorkerProcess(counted, self._temporary, variables, self._fail)
                for _ in range(wanted)
            ]

    def serve(self, on_listening: Callable[[Serving], None]) -> None:
        """Accept clients until SIGTERM; returns when all is answered."""

        def start(accepting: acceptor.Acceptor, loop: asyncio.AbstractEventLoop) -> None:
            self._start(accepting, loop)
            on_listening(self._serving())

        most = min(Limits().connections, processes.raise_open_files())
        acceptor.run(
            clients=[self._listeners["address"]],
            workers=listeners.workers(self._temporary / WORKERS_SOCKET),
            key_file=self._home.key_file if self._tokens else None,
            limits=replace(
                Limits(), connections=most, request_bytes=self._settings.max_request_size
            ),
            pages=page.files(),
            on_start=start,
        )
        if self._failure is not None:
            raise _error(self._failure)

    def _start(self, accepting: acceptor.Acceptor, loop: asyncio.AbstractEventLoop) -> None:
        self._accepting, self._loop = accepting, loop
        accepting.follow(
            {
                model.name: ModelState(
                    model.version, (model.version,), {model.version: counted.wanted}
                )
                for model, counted, _ in self._models
            }
        )
        for model, counted, workers in self._models:
            task = asdict(self._task(model, counted.wanted))
            for worker in workers:
                worker.begin(loop, task)
        FiguresPage(loop, self._listeners["metrics_address"], self._figures)
        accepting.failures.share(self._sheets, self._written)
        accepting.spans.share(self._written)
        accepting.seats.on_death = Deaths(loop, self._sheets, accepting.seats.staff).note
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._finish)
        if self._tokens is not None:
            loop.call_later(_TOKEN_S, self._renew_tokens)

    def _figures(self) -> Callable[[], bytes]:
        models = [counted for _, counted, _ in self._models]
        connections, staff = self._accepting.connections, self._accepting.seats.staff()
        return lambda: figures.page(models, connections, staff, sheet.read(self._sheets))

    def _serving(self) -> Serving:
        urls = [_url(listener) for listener in self._listeners.values()]
        names = tuple((model.name, model.version) for model, _, _ in self._models)
        return Serving(urls[0], urls[1], names)

    def _task(self, model: HostedModel, workers: int) -> WorkerTask:
        return WorkerTask(
            folder=str(model.folder),
            name=model.name,
            version=model.version,
            handler=model.handler,
            config=model.config,
            workers=workers,
            device_id=model.device_id,
            timeout_s=model.timeout_s,
            batch=model.batch,
            queue=self._settings.queue,
            acceptor=str(self._temporary / WORKERS_SOCKET),
            key_file=str(self._home.key_file) if self._tokens else None,
            request_bytes=self._settings.max_request_size,
            response_bytes=self._settings.max_response_size,
        )

    def _renew_tokens(self) -> None:
        assert self._tokens is not None  # noqa: S101  else it is not called
        self._tokens.renew()
        self._loop.call_later(_TOKEN_S, self._renew_tokens)

    def _fail(self, failure: Failure) -> None:
        """End with the first error: a model that never loaded will not load the next time."""
        self._failure = self._failure or failure
        self._loop.stop()

    def _finish(self) -> None:
        """End when what has come is answered; the second signal ends at once."""
        if self._deadline is not None:
            self._loop.stop()
            return
        self._deadline = time.monotonic() + self._settings.grace_s
        for _, _, workers in self._models:
            for worker in workers:
                worker.leave()
        self._accepting.finish()
        self._await_end()

    def _await_end(self) -> None:
        left, is_finished = self._accepting.connections, self._accepting.is_finished
        if not is_finished and time.monotonic() < (self._deadline or 0.0):
            self._loop.call_later(_POLL_S, self._await_end)
            return
        if left:
            logger.warning(
                "all clients must have their responses within %g s, got %d without. Raise "
                "--grace-s.", self._settings.grace_s, left,
            )  # fmt: skip
        self._loop.stop()


def _listening(name: str, address: str) -> socket.socket:
    host, port = split(name, address)
    try:
        return listeners.clients(host, port)
    except OSError as error:
        raise ServerError(
            f"{name} {address} must be free, got: {error.strerror}. Choose another one."
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _error(failure: Failure) -> errors.MarshipError:
    kind = next((k for k in errors.kinds() if k.code == failure.code), LoadError)
    return kind(failure.message)
