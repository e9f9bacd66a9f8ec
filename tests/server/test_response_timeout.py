"""A request that takes longer than the model's responseTimeout, asked by each client."""

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
    """A model that naps for as long as it is asked to, and may for one second."""
    client.register("brief.mar", workers=1)
    yield "brief"
    client.unregister("brief")


def blocking(server: Server) -> Any:
    """Asked by a client with its usual patience."""
    with Client(server.home.path) as client:
        return client.predict("brief", TOO_LONG)


def awaiting(server: Server) -> Any:
    """The same, with asyncio."""

    async def ask() -> Any:
        async with AsyncClient(server.home.path) as client:
            return await client.predict("brief", TOO_LONG)

    return asyncio.run(ask())


def streaming(server: Server) -> Any:
    """As one asks who wants lines."""
    with Client(server.home.path) as client:
        return list(client.stream("brief", TOO_LONG))


@pytest.mark.parametrize("ask", [blocking, awaiting, streaming])
def test_the_client_says_what_happened_and_asks_once(running: Server, brief: str, ask: Ask) -> None:
    """The error names responseTimeout, one worker ended, and the next one answers."""
    log = WorkerLog(running.home)
    with pytest.raises(ResponseTimeoutError, match=f"responseTimeout of {LIMIT_S} s"):
        ask(running)
    with Client(running.home.path) as patient:
        assert patient.predict(brief, b"0") == b'{"version": "1.0"}'
    ended = [line for line in log.lines(brief, "1.0") if TOO_LATE in line.text]
    assert len(ended) == 1


def test_its_neighbours_in_a_batch_are_told_too(running: Server, brief: str) -> None:
    """What waits for the worker meanwhile is answered by the next one."""

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
