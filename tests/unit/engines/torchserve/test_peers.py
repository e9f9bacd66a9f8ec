"""A home's clients speak to the process that the home names, and to nobody who took its place."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marship import AsyncClient, Client
from marship.engines import processes
from marship.engines.home import Home, ServerRecord
from marship.engines.torchserve import peers
from marship.errors import NotRunningError
from marship.exchange import sockets
from stranger import Stranger, sends

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: 8\r\n\r\n"
)
SERVE = f"""
import os, socket, sys
family, place, port = sys.argv[1:]
if family == "unix":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
else:
    kind = socket.AF_INET6 if ":" in place else socket.AF_INET
    dual = place == "::"
    listener = socket.create_server((place, int(port)), family=kind, dualstack_ipv6=dual)
print(listener.getsockname()[1] if family == "tcp" else 0, flush=True)
while True:
    line, _ = listener.accept()
    with line:
        while not line.recv(1 << 16).endswith(b"[1]"): pass
        line.sendall({ANSWER!r} + b'"real"  ')
"""


@dataclass(frozen=True)
class Real:
    """A process that stands for Java, and its home."""

    process: subprocess.Popen[str]
    home: Home
    port: int
    url: str

    def die(self) -> None:
        """Kill it; its place is free then."""
        self.process.kill()
        self.process.wait()


Begin = Callable[..., Real]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start one at an address, or at a unix socket."""
    begun: list[Real] = []

    def run(family: str, place: str, wanted_port: int = 0) -> Real:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, family, place, str(wanted_port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        port = int(process.stdout.readline())
        host = f"[{place}]" if ":" in place else place
        url = sockets.url(f"unix:{place}") if family == "unix" else f"http://{host}:{port}"
        ends = {"expiration time": "2099-01-01T00:00:00Z"}
        keys = {side: {"key": "SECRET", **ends} for side in ("inference", "management", "API")}
        (tmp_path / "key_file.json").write_text(json.dumps(keys))
        home = Home(tmp_path)
        home.write_record(
            ServerRecord(
                pid=process.pid,
                created=processes.start_time(process.pid),
                boot=processes.boot_id(),
                inference_url=url,
                management_url=url,
                metrics_url=url,
                model_store=str(tmp_path),
                tmp=str(tmp_path / "tmp"),
            )
        )
        begun.append(Real(process, home, port, url))
        return begun[-1]

    yield run
    for one in begun:
        one.die()
        assert one.process.stdout
        one.process.stdout.close()


def impostor(place: tuple[str, int] | str) -> Stranger:
    """A program that responds at the port, or path, of a stopped server."""
    listener = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(place)
    listener.listen()
    return Stranger(sends(ANSWER + b'"forged"'), listener=listener)


def asked(real: Real, between: Callable[[], None], **given: Any) -> Any:
    """What a client receives after something happened between two requests."""
    with Client(real.home.path, retry_s=0, **given) as client:
        assert client.predict("m", [1]) == "real"
        between()
        return client.predict("m", [1])


def awaited(real: Real, between: Callable[[], None], **given: Any) -> Any:
    """The same of an asyncio client."""

    async def ask() -> Any:
        async with AsyncClient(real.home.path, retry_s=0, **given) as client:
            assert await client.predict("m", [1]) == "real"
            between()
            return await client.predict("m", [1])

    return asyncio.run(ask())


CLIENTS = pytest.mark.parametrize("ask", [asked, awaited])


@CLIENTS
@pytest.mark.parametrize("place", ["127.0.0.1", "0.0.0.0", "::", "::1", "unix"])  # noqa: S104
def test_the_homes_own_server_is_called(
    begin: Begin, tmp_path: Path, ask: Callable[..., Any], place: str
) -> None:
    """Wherever it listens, over a new connection for each request."""
    real = begin("unix", str(tmp_path / "s")) if place == "unix" else begin("tcp", place)
    assert ask(real, lambda: None) == "real"


@CLIENTS
@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("given", ["nothing", "url", "token"])
def test_who_took_the_place_of_a_dead_server_gets_nothing(
    begin: Begin, tmp_path: Path, ask: Callable[..., Any], family: str, given: str
) -> None:
    """A client that knew the server sends no token and no data, and takes no response."""
    path = str(tmp_path / "s")
    real = begin(family, path if family == "unix" else "127.0.0.1")
    taken: list[Stranger] = []

    def take() -> None:
        real.die()
        Path(path).unlink(missing_ok=True)
        taken.append(impostor(path if family == "unix" else ("127.0.0.1", real.port)))

    settings = {
        "nothing": {},
        "url": {"inference_url": real.url},
        "token": {"inference_token": "x"},
    }
    with pytest.raises(NotRunningError):
        ask(real, take, **settings[given])
    assert taken[0].received == b""
    with Client(real.home.path, retry_s=0) as late, pytest.raises(NotRunningError):
        late.predict("m", [1])
    assert taken[0].received == b""
    taken[0].close()


@CLIENTS
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_process_that_runs_and_listens_elsewhere_is_not_it(
    begin: Begin, tmp_path: Path, ask: Callable[..., Any], family: str
) -> None:
    """Java lives on, and the place that its home names belongs to another program."""
    real = begin(family, str(tmp_path / "s") if family == "unix" else "127.0.0.1")
    other = impostor(str(tmp_path / "other") if family == "unix" else ("127.0.0.1", 0))
    place = other.place
    url = sockets.url(f"unix:{place}") if family == "unix" else f"http://127.0.0.1:{place[1]}"
    record = real.home.require_running()
    fields = {name: getattr(record, name) for name in record.__slots__}
    real.home.write_record(ServerRecord(**{**fields, "inference_url": url}))
    with pytest.raises(NotRunningError, match="got another program"):
        ask(real, lambda: None)
    assert other.received == b""
    other.close()


def test_a_name_with_two_addresses(begin: Begin) -> None:
    """The same port of ::1 is another listener than that of 127.0.0.1."""
    real = begin("tcp", "127.0.0.1")
    group = real.home.require_running().group
    with socket.create_connection(("127.0.0.1", real.port)) as line:
        assert peers.is_held_by(line, group)
    with (
        socket.create_server(("::1", real.port), family=socket.AF_INET6),
        socket.create_connection(("::1", real.port)) as line,
    ):
        assert not peers.is_held_by(line, group)


def test_a_listener_that_was_closed_is_not_remembered(begin: Begin) -> None:
    """Its process lives on, and another one has the port; then it listens there again."""
    group = processes.Group(os.getpid(), processes.start_time(os.getpid()), processes.boot_id())
    for _ in range(2):
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as line,
        ):
            port = listener.getsockname()[1]
            assert peers.is_held_by(line, group)
            assert peers.is_held_by(line, group)
        begin("tcp", "127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)) as line:
            assert not peers.is_held_by(line, group)


def test_a_server_elsewhere_is_called_with_its_own_token(begin: Begin) -> None:
    """An address and a token that were given have nothing to do with the home."""
    real = begin("tcp", "127.0.0.1")
    other = Stranger(sends(ANSWER + b'"others"'))
    with Client(real.home.path, inference_url=other.url, inference_token="given") as client:
        assert client.predict("m", [1]) == "others"
    assert b"SECRET" not in other.received
    other.close()
