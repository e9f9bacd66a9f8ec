"""The examples in the docstrings of the clients, against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import examples
from marship import Client
from marship.engines.torchserve.server import Server
from marship.packaging.step import PackageSettings, package
from versions import linear


@pytest.fixture
def tiny(
    tmp_path: Path, store: Path, running: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The model that they name, in the model store of the server that is found."""
    monkeypatch.setenv("MARSHIP_HOME", str(running.home.path))
    settings = PackageSettings(model_store=store, name="tiny")
    package(linear(tmp_path / "tiny.onnx", 1), settings)
    yield
    client.unregister("tiny")


@pytest.mark.usefixtures("tiny")
def test_the_examples_of_the_clients() -> None:
    """One registers the model, and the others call it."""
    for name in ("Client", *sorted(examples.NEED_A_SERVER - {"Client"})):
        assert examples.run(name), name
