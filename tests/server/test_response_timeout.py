"""Requests that take longer than the model's responseTimeout, with each client."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from marship import AsyncClient, Client
from marship.engines.torchserve.server import Server
from marship.engines.torchserve.workerlog import WorkerLog
from marship.errors import MarshipError, ResponseTimeoutError

LIMIT_S = 1  # of the archive `brief`
TOO_LATE = "Number or consecutive unsuccessful inference"  # WorkerThread.java
TOO_LONG = b"30"
Ask = Callable[[Server], Any]


@pytest.fixture(scope="module")
def brief(client: Client) -> Iterator[str]:
    """A model that sleeps as long as the request says, with a responseTimeout of one second."""
    client.register("brief.mar", workers=1)
    yield "brief"
    client.unregister("brief")


def blocking(server: Server) -> Any:
    """Sent by a client with default retries."""
    with Client(server.home.path) as client:
        return client.predict("brief", TOO_LONG)


def awaiting(server: Server) -> Any:
    """The same, with asyncio."""

    async def ask() -> Any:
        async with AsyncClient(server.home.path) as client:
            return await client.predict("brief", TOO_LONG)

    return asyncio.run(ask())


def streaming(server: Server) -> Any:
    """Sent as a request for a stream."""
    with Client(server.home.path) as client:
        return list(client.stream("brief", TOO_LONG))


@pytest.mark.parametrize("ask", [blocking, awaiting, streaming])
def test_the_client_raises_the_timeout_without_a_retry(
    running: Server, brief: str, ask: Ask
) -> None:
    """The error names responseTimeout, one worker ended, and the next one serves."""
    log = WorkerLog(running.home)
    with pytest.raises(ResponseTimeoutError, match=f"response timeout of {LIMIT_S} s"):
        ask(running)
    with Client(running.home.path) as patient:
        assert patient.predict(brief, b"0") == b'{"version": "1.0"}'
    ended = [line for line in log.lines(brief, "1.0") if TOO_LATE in line.text]
    assert len(ended) == 1


def test_other_requests_of_the_batch_get_the_same_error(running: Server, brief: str) -> None:
    """Queued requests are served by the next worker."""

    async def ask() -> list[Any]:
        async with AsyncClient(running.home.path) as client:
            late = asyncio.create_task(client.predict(brief, TOO_LONG))
            await asyncio.sleep(0)
            others = [client.predict(brief, b"0") for _ in range(5)]
            return await asyncio.gather(late, *others, return_exceptions=True)

    found = asyncio.run(ask())
    failed = [answer for answer in found if isinstance(answer, MarshipError)]
    assert [type(error) for error in failed] == [ResponseTimeoutError]
    assert len(found) - len(failed) == 5
