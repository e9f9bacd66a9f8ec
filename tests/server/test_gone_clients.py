"""Requests whose client has gone, and those that wait behind them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from marship import Client
from marship.engines.torchserve.server import Server
from marship.packaging.step import PackageSettings, package
from posting import endpoint

HANDLER = Path(__file__).parent / "onnx_handlers" / "doze_handler.py"
NAP_S, CLIENT_TIMEOUT_S, GONE = 2, 1, 8


@pytest.fixture(scope="module")
def dozing(linear_onnx: Path, store: Path, client: Client) -> Iterator[str]:
    """A slow model whose clients wait for a second."""
    settings = PackageSettings(
        model_store=store,
        name="dozing",
        handler=HANDLER,
        batch_size=32,
        client_timeout_s=CLIENT_TIMEOUT_S,
    )
    client.register(package(linear_onnx, settings).name, workers=1)
    yield "dozing"
    client.unregister("dozing")


def test_queued_requests_of_disconnected_clients_are_dropped(running: Server, dozing: str) -> None:
    """Of eight requests whose clients disconnect two run, and the next request succeeds.

    Those are the one that the worker has, and the first of the next batch: TorchServe looks at
    the time of those behind it alone.
    """
    url, headers = endpoint(running, dozing)
    began = time.monotonic()
    for _ in range(GONE):
        with pytest.raises(requests.ReadTimeout):
            requests.post(url, json=[[NAP_S, 0, 0]], headers=headers, timeout=0.1)
    answer = None
    while answer is None:
        try:
            answer = requests.post(url, json=[[0, 0, 0]], headers=headers, timeout=CLIENT_TIMEOUT_S)
        except requests.ReadTimeout:
            assert time.monotonic() - began < GONE * NAP_S
    assert answer.json() == [[0.0, 0.0]]
    assert time.monotonic() - began < (GONE / 2) * NAP_S
