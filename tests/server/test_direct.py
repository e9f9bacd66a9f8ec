"""Workers of a real server that respond themselves, behind an acceptor."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

import marship
from directly import ARCHIVE, BODY, JSON, RIGHT, until
from marship.client import Client
from marship.engines.home import Home
from marship.engines.torchserve.server import Server
from served import bearer, direct_address, serving, write_model

SLOW = """
import time

from marship.serving.handler import OnnxHandler


class SlowHandler(OnnxHandler):
    def decode(self, request):
        time.sleep(0.3)  # a call that lasts
        return super().decode(request)
"""
CORS = """
cors_allowed_origin=https://shop.example
cors_allowed_methods=GET, POST, OPTIONS
cors_allowed_headers=Authorization, Content-Type
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a direct address; its store holds a model of today and one of before."""
    folder = tmp_path_factory.mktemp("direct")
    store = folder / "store"
    store.mkdir()
    (store / "earlier.mar").write_bytes(ARCHIVE.read_bytes())
    marship.package(write_model(folder), marship.PackageSettings(name="m", model_store=store))
    config = folder / "config.properties"
    shipped = Path(__file__).parents[2] / "config.properties"
    config.write_text(shipped.read_text() + CORS)
    with serving(folder / "home", store, config=config) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the home, which takes the direct address by itself."""
    with Client(home=server.home.path, retry_s=0) as made:
        yield made


def ask(server: Server, path: str = "/predictions/m") -> tuple[int, Any]:
    """The status of one request at the public address, and its JSON; 0 where it was cut off."""
    with contextlib.closing(HTTPConnection(direct_address(server), timeout=20)) as line:
        send(line, server, path)
        try:
            return read(line)
        except ConnectionError:
            return 0, None


@contextlib.contextmanager
def connected(server: Server, path: str = "/predictions/m") -> Iterator[Any]:
    """Sends requests on one connection."""
    with contextlib.closing(HTTPConnection(direct_address(server), timeout=60)) as line:

        def once() -> tuple[int, Any]:
            line.auto_open = line.sock is None
            send(line, server, path)
            return read(line)

        yield once


def send(line: HTTPConnection, server: Server, path: str) -> None:
    """Send a request."""
    line.request("POST", path, BODY, {"Authorization": bearer(server), **JSON})


def read(line: HTTPConnection) -> tuple[int, Any]:
    """The status of its response, and its JSON."""
    response = line.getresponse()
    return response.status, json.loads(response.read())


@pytest.fixture
def model(client: Client, server: Server) -> Iterator[None]:
    """A model `m` that can be asked."""
    client.register("m.mar", workers=1)
    until(lambda: ask(server)[0] == 200)
    yield
    client.unregister("m")


def test_the_way_of_a_model(server: Server, client: Client) -> None:
    """Unknown, registered, scaled up and down, unregistered: the direct address follows."""
    assert ask(server)[0] == 404
    client.register("m.mar", workers=1)
    until(lambda: ask(server) == (200, [[RIGHT]]))
    assert client.predict("m", json.loads(BODY)) == [[RIGHT]]
    client.scale("m", 2)
    for _ in range(4):
        assert ask(server) == (200, [[RIGHT]])
    client.scale("m", 1)
    for _ in range(4):
        assert ask(server) == (200, [[RIGHT]])
    client.unregister("m")
    assert ask(server)[0] == 404


@pytest.mark.usefixtures("model")
def test_browsers_get_what_the_cors_settings_allow(server: Server) -> None:
    """The same lines as TorchServe sends, in responses of all who write some: also refusals."""
    head = {"Authorization": bearer(server), **JSON}
    told = []
    for url in (server.record.inference_url, server.record.direct_url or ""):
        for path in ("/predictions/m", "/predictions/earlier", "/predictions/nobody"):
            got = requests.post(url + path, BODY, headers=head, timeout=20)
            names = (f"access-control-allow-{name}" for name in ("origin", "methods", "headers"))
            told.append([got.headers.get(name) for name in names])
    wanted = [line.partition("=")[2] for line in CORS.split("\n") if line]
    assert told == [wanted] * 6
    asked = requests.options(f"{server.record.direct_url}/predictions/m", timeout=20)
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, wanted[0])


def test_an_archive_of_before_is_relayed_to_torchserve(server: Server, client: Client) -> None:
    """Its copy of marship knows no direct address, and it is served all the same."""
    client.register("earlier.mar", name="old", workers=1)
    until(lambda: ask(server, "/predictions/old") == (200, [[RIGHT]]))
    assert client.predict("old", json.loads(BODY)) == [[RIGHT]]
    client.unregister("old")
    until(lambda: ask(server, "/predictions/old")[0] == 404)


@pytest.mark.usefixtures("model")
def test_a_worker_that_is_killed_is_replaced(server: Server, client: Client) -> None:
    """A connection without a request outlives it; TorchServe takes requests until another is up."""
    with connected(server) as line:
        assert line() == (200, [[RIGHT]])
        (status,) = client.describe("m")
        os.kill(status.workers[0].pid, signal.SIGKILL)
        statuses = {ask(server)[0] for _ in range(3)}
        # docs/reliability.md: TorchServe says "Worker died" with 500 or 507
        assert statuses <= {200, 500, 503, 507}
        until(lambda: ask(server) == (200, [[RIGHT]]), 60)
        assert line() == (200, [[RIGHT]])


def code(response: tuple[int, Any]) -> str | None:
    """The code of an error."""
    return None if response[0] == 200 else response[1].get("code")


@pytest.mark.parametrize("ends", ["scale", "unregister"])
def test_requests_under_way_are_served_before_their_worker_ends(
    server: Server, client: Client, tmp_path: Path, ends: str
) -> None:
    """TorchServe runs `kill -9` at once; workers get the time that they need."""
    handler = tmp_path / "slow_handler.py"
    handler.write_text(SLOW)
    store = Path(server.record.model_store)
    model = tmp_path / "model.onnx"
    model.write_bytes((store.parent / "model.onnx").read_bytes())
    settings = marship.PackageSettings(name=f"slow{ends}", model_store=store, handler=handler)
    marship.package(model, settings)
    client.register(f"slow{ends}.mar", workers=2)
    seen: list[tuple[int, Any]] = []

    def load() -> None:
        with connected(server, f"/predictions/slow{ends}") as line:
            for _ in range(3):
                try:
                    seen.append(line())
                except (OSError, HTTPException) as error:
                    seen.append((0, {"code": repr(error)}))

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(seen) >= 2, 30)
    if ends == "scale":
        client.scale(f"slow{ends}", 1)
    else:
        client.unregister(f"slow{ends}")
    for thread in threads:
        thread.join(60)
    if ends == "scale":
        assert seen == [(200, [[RIGHT]])] * 18
        client.unregister(f"slow{ends}")
    else:
        assert {status for status, _ in seen} <= {200, 404, 503}
        assert not any(told == "worker_died" for told in map(code, seen))


@pytest.mark.usefixtures("model")
def test_an_acceptor_that_is_killed_is_back_within_a_second(server: Server) -> None:
    """Who connects meanwhile waits, and is not refused."""
    parent = Home(server.home.path).require_running().direct_pid
    children = Path(f"/proc/{parent}/task/{parent}/children")
    before = children.read_text().split()
    os.kill(int(before[0]), signal.SIGKILL)
    until(lambda: children.read_text().split() not in ([], before), 1.0)
    until(lambda: ask(server)[0] == 200, 2.0)


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    """No process, no socket, no port."""
    store = tmp_path / "store"
    store.mkdir()
    with serving(tmp_path / "home", store, grpc_port=0) as started:
        acceptor = started.record.acceptor
        assert acceptor is not None
        assert acceptor.is_alive()
        children = [child.pid for child in psutil.Process(acceptor.pid).children()]
        assert len(children) == 2
    assert not acceptor.is_alive()
    assert not any(map(psutil.pid_exists, children))
    for address in (direct_address(started), started.record.grpc_address or ""):
        host, _, port = address.partition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
