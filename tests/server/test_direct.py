"""Workers of a real server that respond themselves, behind an acceptor."""

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from directly import BODY, until
from marship.client import Client
from marship.engines.torchserve.home import Home
from marship.engines.torchserve.server import Server, start, stop
from marship.engines.torchserve.settings import ServeSettings

EARLIER = Path(__file__).parents[1] / "earlier" / "diabetes.mar"
RIGHT = pytest.approx(18.615952)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a direct address; its store holds a model of today and one of before."""
    folder = tmp_path_factory.mktemp("direct")
    store = folder / "store"
    store.mkdir()
    (store / "earlier.mar").write_bytes(EARLIER.read_bytes())
    _package(folder, store)
    started = start(
        ServeSettings(home=folder / "home", model_store=store, free_ports=True, direct_port=0)
    )
    yield started
    stop(folder / "home")


def _package(folder: Path, store: Path) -> None:
    import zipfile

    import marship

    with zipfile.ZipFile(EARLIER) as zipped:
        zipped.extract("model.onnx", folder)
    marship.package(folder / "model.onnx", marship.PackageSettings(name="m", model_store=store))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the home, which takes the direct address by itself."""
    with Client(home=server.home.path, retry_s=0) as made:
        yield made


def ask(server: Server, path: str = "/predictions/m") -> tuple[int, Any]:
    """The status of one request at the public address, and its JSON; 0 where it was cut off."""
    address = (server.record.direct_url or "").removeprefix("http://")
    token = json.loads(server.home.key_file.read_text())["inference"]["key"]
    line = http.client.HTTPConnection(address, timeout=20)
    head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    line.request("POST", path, BODY, head)
    try:
        response = line.getresponse()
        return response.status, json.loads(response.read())
    except ConnectionError:
        return 0, None
    finally:
        line.close()


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


def test_an_archive_of_before_is_relayed_to_torchserve(server: Server, client: Client) -> None:
    """Its copy of marship knows no direct address, and it is served all the same."""
    client.register("earlier.mar", name="old", workers=1)
    until(lambda: ask(server, "/predictions/old") == (200, [[RIGHT]]))
    assert client.predict("old", json.loads(BODY)) == [[RIGHT]]
    client.unregister("old")
    until(lambda: ask(server, "/predictions/old")[0] == 404)


@pytest.mark.usefixtures("model")
def test_a_worker_that_is_killed_is_replaced(server: Server, client: Client) -> None:
    """No request waits for ever: it is cut off or refused, until the next worker answers."""
    (status,) = client.describe("m")
    os.kill(status.workers[0].pid, signal.SIGKILL)
    until(lambda: ask(server)[0] == 503, 5)
    until(lambda: ask(server) == (200, [[RIGHT]]), 60)


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
    started = start(
        ServeSettings(home=tmp_path / "home", model_store=store, free_ports=True, direct_port=0)
    )
    acceptor = started.record.acceptor
    assert acceptor is not None
    assert acceptor.is_alive()
    stop(tmp_path / "home")
    assert not acceptor.is_alive()
    host, _, port = (started.record.direct_url or "").removeprefix("http://").partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
