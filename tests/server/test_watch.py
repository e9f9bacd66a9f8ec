"""A worker that finds out that its model mixes rows ends joining, and the server says so."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from claims import claiming
from marship import AsyncClient, Client
from marship.cli import app
from marship.engines.metrics import joining_ended
from marship.engines.torchserve.server import Server
from marship.packaging.step import PackageSettings, package
from marship.serving.hosts.torchserve.report import INTERVAL_S
from models import centring
from waiting import until

NAME = "centring"
ROWS = ([[1.0, 2.0]], [[3.0, 6.0]])


@pytest.fixture
def mixing(store: Path, client: Client) -> str:
    """A model of which a wrong contract says that rows do not influence each other."""
    settings = PackageSettings(
        model_store=store, name=NAME, batch_size=2, max_batch_delay_ms=2000, max_workers=2
    )
    archive = package(centring(store / f"{NAME}.onnx"), settings)
    wrong = claiming(archive, lambda c: c.update(batch_axis="n"), {"recheck_share": 1})
    client.register(wrong.name, name=NAME, workers=1)
    return wrong.name


async def ask_both(server: Server) -> list[object]:
    """Two requests that share a batch."""
    url = server.record.inference_url  # the direct address waits for no batch
    async with AsyncClient(server.home.path, inference_url=url) as client:
        return list(await asyncio.gather(*(client.predict(NAME, row) for row in ROWS)))


def wait_for(client: Client, *, ended: bool) -> None:
    """Wait until the figures say whether requests of the model run alone."""

    def is_reported() -> bool:
        return ((NAME, "1.0") in joining_ended(client.metrics())) is ended

    until(is_reported, 4 * INTERVAL_S, "the worker's report")


def test_a_difference_ends_joining_until_the_model_is_registered_again(
    running: Server, client: Client, mixing: str
) -> None:
    """Batched outputs are wrong once; then requests run alone, also in a new worker, as shown."""
    assert asyncio.run(ask_both(running)) == [[[-1, -2]], [[1, 2]]]
    wait_for(client, ended=True)
    shown = CliRunner().invoke(app, ["models", "--home", str(running.home.path)])
    assert f"{NAME} 1.0 runs requests alone" in shown.stderr
    client.scale(NAME, 0)
    client.scale(NAME, 1)
    assert asyncio.run(ask_both(running)) == [[[0, 0]], [[0, 0]]]
    client.unregister(NAME)
    client.register(mixing, name=NAME, workers=1)
    wait_for(client, ended=False)
    assert asyncio.run(ask_both(running)) == [[[-1, -2]], [[1, 2]]]
