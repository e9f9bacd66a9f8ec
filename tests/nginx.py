"""A real nginx, started from the folder that `marship proxy` wrote."""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from marship.operate import certificate, proxy
from waiting import until

TIMEOUT_S = 20


def find() -> str:
    """Debian keeps it where only root's path leads."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, "these tests need nginx: apt-get install nginx"
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


@dataclass
class Door:
    """A proxy that runs."""

    folder: Path
    port: int
    headers: dict[str, str] = field(default_factory=dict)  # that every request has

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def authority(self) -> Path:
        """Who signed its certificate: itself."""
        return self.folder / certificate.CERTIFICATE_FILE

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def connect(self, receive_bytes: int | None = None) -> ssl.SSLSocket:
        """A TLS connection on which nothing was sent."""
        raw = socket.socket()
        if receive_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(TIMEOUT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as http.client's own
        raw.connect(("127.0.0.1", self.port))
        return self._context.wrap_socket(raw, server_hostname="localhost")

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> Answer:
        """One request on a connection of its own, its path as it is given."""
        given = {**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self._context)
        connection.sock = self.connect()
        try:
            connection.request(
                method, path, body, {k: v for k, v in given.items() if v is not None}
            )
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def log(self, request_id: str) -> dict[str, Any]:
        """The log's line of a request, once it is there."""

        def line() -> dict[str, Any] | None:
            lines = (self.folder / "access.log").read_text().splitlines()
            entries = (json.loads(line) for line in lines)
            return next((entry for entry in entries if entry["id"] == request_id), None)

        return until(line, TIMEOUT_S, f"a line with {request_id}")


@contextmanager
def in_front(
    settings: proxy.ProxySettings, names: list[str], *, further: str = ""
) -> Iterator[Door]:
    """Write the configuration, run nginx with it and `further` settings of HTTP, and stop it."""
    proxy.write(settings, names)
    config = settings.out / proxy.CONFIG_FILE
    config.write_text(config.read_text().replace("\nhttp {\n", f"\nhttp {{\n{further}\n", 1))
    port = int(settings.listen.rpartition(":")[2])
    extra = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    command = [find(), "-p", str(settings.out), "-c", proxy.CONFIG_FILE, "-g", extra]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(port, process)
            yield Door(settings.out, port)
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    """Return when it accepts connections."""

    def listens() -> bool:
        assert process.poll() is None, process.communicate()[1]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, TIMEOUT_S, "nginx's listening")
