"""Over HTTP, with TorchServe making the batch: a fault stays with its request."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from marship import AsyncClient, Client
from marship.engines.torchserve.config import PACKAGED
from marship.engines.torchserve.server import Server
from marship.errors import MarshipError, TooLargeError
from marship.packaging.step import PackageSettings, package
from marship.serving.hosts.torchserve.report import INTERVAL_S
from waiting import until

BATCH = 32
DELAY_MS = 8000
BAD = {3: b'{"ids": [[1', 17: b'{"ids": [[0.5, 1]]}', 30: b'{"ids": [[99, 1]]}'}


@pytest.fixture(scope="module")
def batching(lookup_onnx: Path, store: Path, client: Client) -> str:
    """The lookup model with batches of 32 that wait long to be filled."""
    settings = PackageSettings(
        model_store=store, name="batching", batch_size=BATCH, max_batch_delay_ms=DELAY_MS
    )
    client.register(package(lookup_onnx, settings).name)
    return "batching"


async def ask_all(server: Server, model: str) -> list[object]:
    """Send 32 requests at once; responses and errors in their order."""
    url = server.record.inference_url  # the direct address waits for no batch
    async with AsyncClient(server.home.path, inference_url=url) as client:

        async def ask(number: int) -> object:
            body = BAD.get(number, b'{"ids": [[%d, 1]]}' % (number % 10))
            try:
                return await client.predict(model, body, content_type="application/json")
            except MarshipError as error:
                return error

        return await asyncio.gather(*map(ask, range(BATCH)))


def test_a_batch_of_32_with_3_bad_requests_has_29_responses(running: Server, batching: str) -> None:
    """Bad JSON, a wrong type and an id that the model refuses get 400; 29 get their own sums.

    All are in one batch: one that was not full would have waited the whole delay.
    """
    started = time.monotonic()
    answers = asyncio.run(ask_all(running, batching))
    assert time.monotonic() - started < DELAY_MS / 1000
    codes = {i: a.code for i, a in enumerate(answers) if isinstance(a, MarshipError)}
    assert codes.keys() == BAD.keys()
    assert (codes[3], codes[17], codes[30]) == ("malformed", "invalid_input", "invalid_input")
    for number, answer in enumerate(answers):
        if number not in BAD:
            assert answer == {"total": [number % 10 + 1.0]}


def test_the_worker_survived_it(client: Client, batching: str) -> None:
    """No worker was restarted for a client's fault."""
    (model,) = client.describe(batching)
    assert model.ready == 1


def test_a_response_over_the_servers_limit_is_a_clean_413(
    lookup_onnx: Path, store: Path, start: Callable[..., Server]
) -> None:
    """The handler knows the server's max_response_size, refuses more, and stays alive."""
    settings = PackageSettings(model_store=store, name="small-answers")
    archive = package(lookup_onnx, settings).name
    config = store.parent / "small.properties"
    text = PACKAGED.read_text()
    config.write_text(text.replace("max_response_size=16777216", "max_response_size=2000"))
    small = start(config=config)
    with Client(small.home.path) as client:
        worker = client.register(archive).workers
        with pytest.raises(TooLargeError, match="at most 2000 bytes"):
            client.predict("small-answers", {"ids": [[1]] * 1000})
        assert client.predict("small-answers", {"ids": [[1]]}) == {"total": [1.0]}
        assert client.describe("small-answers")[0].workers == worker


def test_metrics_reach_prometheus(client: Client, batching: str) -> None:
    """Requests, batches, seconds and errors by code are on the metrics port, with units in help."""
    del batching
    line = re.compile(r'^(marship_\w+)\{(?=.*"batching").*\} (\S+)$', re.MULTILINE)
    wanted = {
        f"marship_{what}_total" for what in ("requests", "batches", "infer_seconds", "errors")
    }

    def reported() -> dict[str, str] | None:
        found = dict(line.findall(client.metrics()))
        return found if wanted <= found.keys() else None

    found = until(reported, 3 * INTERVAL_S, "a worker's report")
    time.sleep(0.5)  # the frontend may be in the middle of a report
    text = client.metrics()
    assert float(found["marship_requests_total"]) == BATCH
    assert float(found["marship_batches_total"]) == 1
    assert float(found["marship_infer_seconds_total"]) > 0
    codes = re.findall(r'marship_errors_total\{.*code="(\w+)"', text)
    assert {"malformed", "invalid_input"} <= set(codes)
    assert re.search(r"# HELP marship_infer_seconds_total .*seconds", text)
