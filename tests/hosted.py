"""`marship host` as a process, on free ports, and clients of it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from waiting import until

TOKEN = "0123456789abcdef-token"


class Hosted:
    """A host that was started; use it as a context, which ends it.

    Args:
        home: Its folder; the log is beside it.
        words: Archives and flags.
        before: Words in front of the command.
        program: The command and its home, where it is another one.
        environment: Further variables.
    """

    def __init__(
        self,
        home: Path,
        *words: object,
        before: tuple[str, ...] = (),
        program: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        self.log = home.with_suffix(".log")
        ports = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
        own = (sys.executable, "-m", "marship", "host", "--home", str(home))
        command = (*(program or own), *ports)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, *command, *map(str, words)],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = 60) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(timeout_s)

    def listens(self) -> Self:
        """Once clients can connect."""

        def found() -> re.Match[str] | None:
            assert self.process.poll() is None, self.text()
            return re.search(
                r"serving .* at (http://\S+), figures at (http://\S+)/metrics", self.text()
            )

        match = until(found, 60, "a host that listens")
        self.url, self.figures = urlsplit(match[1]), urlsplit(match[2])
        return self

    def ready(self) -> Self:
        """Once its workers serve."""
        self.listens()

        def is_ready() -> bool:
            assert self.process.poll() is None, self.text()
            return self.get("/v2/health/ready")[0] == 200

        until(is_ready, 60, "a host that is ready")
        return self

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return exchange(self.address, "GET", path)

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect."""
        return self.url.hostname or "", self.url.port or 0

    def page(self) -> str:
        """The page for Prometheus."""
        address = self.figures.hostname or "", self.figures.port or 0
        status, body = exchange(address, "GET", "/metrics")
        assert status == 200
        return body.decode()

    def terminate(self) -> None:
        """As Kubernetes does."""
        self.process.send_signal(signal.SIGTERM)


def exchange(
    address: tuple[str, int], method: str, path: str, body: object = None, token: str | None = None
) -> tuple[int, bytes]:
    """A request on a connection of its own."""
    line = HTTPConnection(*address, timeout=30)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        line.request(method, path, None if body is None else json.dumps(body), headers)
        response = line.getresponse()
        return response.status, response.read()
    finally:
        line.close()


class Load:
    """Clients that keep their connections, each asking one request after the other.

    Args:
        addresses: Where to ask; one that refuses a connection is left for the next.
        path: What to ask.
        body: As JSON.
        clients: How many.
        headers: Of each request.
    """

    def __init__(
        self,
        addresses: list[tuple[str, int]],
        path: str,
        body: object,
        clients: int,
        **headers: str,
    ) -> None:
        self._addresses, self._path, self._body = addresses, path, json.dumps(body)
        self._headers = {"Content-Type": "application/json", **headers}
        self.answered = self.closes = 0
        self.lost: list[str] = []
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _connect(self) -> HTTPConnection:
        for address in self._addresses:
            line = HTTPConnection(*address, timeout=30)
            try:
                line.connect()
            except ConnectionRefusedError:
                continue
            assert line.sock is not None
            line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return line
        raise ConnectionRefusedError

    def _ask(self) -> None:
        line: HTTPConnection | None = None
        while not self._ended.is_set():
            try:
                line = line or self._connect()
                line.request("POST", self._path, self._body, self._headers)
                response = line.getresponse()
                response.read()
                fault = "" if response.status == 200 else str(response.status)
                is_last = response.will_close
            except (OSError, HTTPException) as error:
                fault, is_last = repr(error), True
            with self._lock:
                self.answered += not fault
                self.closes += is_last
                if fault:
                    self.lost.append(fault)
            if is_last and line is not None:
                line.close()
                line = None
