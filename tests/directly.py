"""Workers that speak HTTP themselves behind an acceptor, all in this process, on real sockets."""

import contextlib
import io
import json
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import yaml

from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct import acceptor, seats
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.samples import SampleWriter
from marship.serving.hosts.direct.worker import DirectWorker, WorkerSettings
from marship.serving.service import Placement, Service

ARCHIVE = Path(__file__).parent / "earlier" / "diabetes.mar"
ROW = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.5]
BODY = json.dumps([ROW]).encode()
RIGHT = pytest.approx(18.615952)
"""What the model makes of the row."""
JSON = {"Content-Type": "application/json"}


def service(
    folder: Path, name: str = "m", version: str = "1.0", *, kind: type[Service] = OnnxHandler,
    timeout_s: float | None = 60.0,
) -> Any:  # fmt: skip
    """A model of ten numbers, loaded."""
    if not folder.exists():
        with zipfile.ZipFile(ARCHIVE) as zipped:
            zipped.extractall(folder)
    loaded = kind()
    config = yaml.safe_load((folder / "model-config.yaml").read_text())
    loaded.load(
        Placement(folder=folder, name=name, version=version, config=config, timeout_s=timeout_s)
    )
    return loaded


@dataclass(frozen=True)
class Response:
    """One response as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)


class Line:
    """A client's connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=20)
        self._stream = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def read(self, method: str = "POST") -> Response:
        """The next response, of a request of this method."""

        class Kept(io.BufferedReader):
            def close(self) -> None:
                pass  # the next response is read of it, too

        found = HTTPResponse(self.socket, method=method)
        found.fp.close()
        found.fp = self._stream
        kept_close, self._stream.close = self._stream.close, lambda: None  # type: ignore[method-assign]
        try:
            found.begin()
            headers = {name.lower(): value for name, value in found.getheaders()}
            return Response(found.status, headers, found.read())
        finally:
            self._stream.close = kept_close  # type: ignore[method-assign]

    def is_closed(self) -> bool:
        """Whether the other side ends it without another byte."""
        try:
            return self._stream.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        """End it."""
        self._stream.close()
        self.socket.close()


def request(
    path: str = "/predictions/m", body: bytes = BODY, method: str = "POST",
    headers: Mapping[str, str] = JSON,
) -> bytes:  # fmt: skip
    """A request's bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: here"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Place:
    """An acceptor and its workers.

    Args:
        key_file: Holds the token; None asks for none.
        limits: Of clients.
        engine: Who answers for models that have no worker here.
        headers: Of every response of the acceptor's.
        keeps_roster: Whether the next acceptor knows the workers of this one; they must be
            processes of their own.
    """

    def __init__(
        self,
        key_file: Path | None = None,
        limits: Limits | None = None,
        engine: tuple[str, int] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        keeps_roster: bool = False,
    ) -> None:
        self._headers = headers or {}
        self._folder = tempfile.TemporaryDirectory(prefix="d")
        self.key_file, self.limits, self._engine = key_file, limits or Limits(), engine
        self.workers: list[DirectWorker] = []
        self.is_restart = False
        self.path = Path(self._folder.name) / "w"
        self.roster = Path(self._folder.name) / "roster.json" if keeps_roster else None
        self._clients = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: tuple[str, int] = self._clients.getsockname()
        self.socket = Path(self._folder.name) / "c"
        self._local = socket.socket(socket.AF_UNIX)
        self._local.bind(str(self.socket))
        self._local.listen(512)
        self._workers = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._workers.bind(str(self.path))
        self._workers.listen(16)
        self.start_acceptor()

    def start_acceptor(self) -> None:
        """Start an acceptor at the same sockets."""
        began = threading.Event()

        def on_start(made: acceptor.Acceptor, loop: Any) -> None:
            self.acceptor, self._loop = made, loop
            began.set()

        def run() -> None:
            acceptor.run(
                clients=[self._clients.dup(), self._local.dup()],
                workers=self._workers.dup(),
                key_file=self.key_file,
                limits=self.limits,
                engine=self._engine,
                headers=self._headers,
                is_restart=self.is_restart,
                roster=self.roster,
                on_start=on_start,
            )

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert began.wait(10)

    def stop_acceptor(self) -> None:
        """End it; its connections close."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def add(  # noqa: PLR0913  keyword-only
        self, loaded: Service, name: str = "m", version: str = "1.0", *, batch: int = 64,
        queue: int = 100, sampler: SampleWriter | None = None,
    ) -> DirectWorker:  # fmt: skip
        """Start a worker, and wait until the acceptor knows it."""
        settings = WorkerSettings(
            acceptor=self.path, model=name, version=version, batch=batch, queue=queue,
            key_file=self.key_file, limits=self.limits, sampler=sampler,
        )  # fmt: skip
        loaded.measure_pace()
        worker = DirectWorker(loaded, settings)
        before = self.seats(name, version)
        threading.Thread(target=worker.run, daemon=True).start()
        self.workers.append(worker)
        until(lambda: self.seats(name, version) == before + 1)
        return worker

    def seats(self, name: str = "m", version: str = "1.0") -> int:
        """How many workers the acceptor has for a version."""
        return self.acceptor.seats.count(name, version)

    def follow(self, **defaults: tuple[str, ...]) -> None:
        """Tell the acceptor each model's versions, the default one first."""
        told = {
            name: seats.ModelState(versions[0], versions, dict.fromkeys(versions, 1))
            for name, versions in defaults.items()
        }
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (self.acceptor.follow(told), done.set()))
        assert done.wait(10)

    @contextlib.contextmanager
    def line(self) -> Iterator[Line]:
        """A connection."""
        line = Line(self.address)
        try:
            yield line
        finally:
            line.close()

    def ask(self, *args: Any, **kwargs: Any) -> Response:
        """The response to one request on a connection of its own."""
        with self.line() as line:
            line.send(request(*args, **kwargs))
            return line.read(kwargs.get("method", "POST"))

    def close(self) -> None:
        """End all of it."""
        for worker in self.workers:
            worker.stop()
        self.stop_acceptor()
        self._clients.close()
        self._local.close()
        self._workers.close()
        self._folder.cleanup()


def until(holds: Any, seconds: float = 10.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)  # what is waited for raises no event
