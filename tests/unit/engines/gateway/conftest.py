"""A gateway in front of workers in this process."""

import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton

import marship
from directly import Place, service, until
from echoes import write_echoes
from gateways import Gateway
from marship.serving.handler import OnnxHandler
from marship.serving.message import Reply, Request


class Held(OnnxHandler):
    """Responds when it is told to."""

    def prepare(self) -> None:
        """Nothing came yet."""
        self.entered, self.goes = threading.Semaphore(0), threading.Semaphore(0)

    def _reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        self.entered.release()
        assert self.goes.acquire(timeout=30)
        return super()._reply(requests)

    def call_s(self, rows: int) -> float:  # noqa: ARG002
        """On a thread, so that the worker's loop goes on."""
        return 1.0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extracted archive of a model with all datatypes of numbers."""
    place = tmp_path_factory.mktemp("echoes")
    settings = marship.PackageSettings(name="echoes", model_store=place)
    with zipfile.ZipFile(marship.package(write_echoes(place / "model.onnx"), settings)) as zipped:
        zipped.extractall(place / "model")
    return place / "model"


@pytest.fixture(scope="session")
def echoes(folder: Path) -> Any:
    """That model, loaded."""
    return service(folder, "echoes")


@pytest.fixture(scope="session")
def diabetes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model of ten numbers is extracted."""
    return tmp_path_factory.mktemp("diabetes") / "model"


@pytest.fixture
def place() -> Iterator[Place]:
    """An acceptor without workers."""
    made = Place()
    yield made
    made.close()


@pytest.fixture
def gateway(place: Place) -> Iterator[Gateway]:
    """A gateway in front of it."""
    with Gateway(place.socket) as made:
        yield made


@pytest.fixture
def client(gateway: Gateway) -> Iterator[triton.InferenceServerClient]:
    """Triton's client of it."""
    with triton.InferenceServerClient(gateway.address) as made:
        yield made


@pytest.fixture
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    """A channel of grpc's own."""
    with grpc.insecure_channel(gateway.address) as made:
        yield made


@pytest.fixture
def held(place: Place, diabetes: Path) -> Iterator[Any]:
    """A model `m` with one worker that responds when it is told to, and a queue of one."""
    loaded = service(diabetes, kind=Held)
    place.add(loaded, queue=1, batch=1)
    place.follow(m=("1.0",))
    yield loaded
    for _ in range(100):
        loaded.goes.release()
    until(lambda: all(worker._lane.load == 0 for worker in place.workers))
