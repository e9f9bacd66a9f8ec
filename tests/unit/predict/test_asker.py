"""Shares of files at a worker, which some files end or stop; tests/server/ray has a real one."""

import asyncio
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marship.predict.ray.asker import ShareAsker
from marship.predict.rows import Row
from marship.predict.sources import Source


class Worker:
    """Responds to files when as many as may be in hand wait; a bad one takes all with it."""

    def __init__(self, bad: str, status: HTTPStatus) -> None:
        self._bad, self._status = bad, status
        self._hand: list[str] = []
        self.asked: list[str] = []

    async def row_of(self, source: Source) -> Row:
        """As `Asker.row_of`."""
        self.asked.append(source.name)
        self._hand.append(source.name)
        await asyncio.sleep(0)  # until those that are asked at once are here
        is_lost = self._bad in self._hand
        await asyncio.sleep(0)
        self._hand.remove(source.name)
        return Row(source.name, "m 1", status=self._status if is_lost else HTTPStatus.OK)


def asker_of(worker: Worker, in_flight: int) -> Any:
    """One that asks it, without an archive."""

    async def ready(_: float) -> bool:
        return True

    asker: Any = object.__new__(ShareAsker)
    asker._asker, asker._load_s, asker._in_flight = worker, 1.0, in_flight
    asker._hosted = SimpleNamespace(ready=ready, close=lambda: None)
    asker._slots, asker._lonely = asyncio.Semaphore(in_flight), asyncio.Lock()
    return asker


@pytest.mark.parametrize("status", [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT])
@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_files_beside_one_that_takes_the_worker_are_asked_again_alone(
    status: HTTPStatus, in_flight: int
) -> None:
    """Only the one itself is a row of its error, and it is not asked a third time."""
    names = ["a", "b", "stop", "d"]
    worker = Worker("stop", status)
    sources = [Source(Path(name), name) for name in names]
    rows = asyncio.run(asker_of(worker, in_flight)._rows(sources))
    assert [row.file for row in rows] == names
    assert [row.status for row in rows] == [200, 200, status, 200]
    is_sure = in_flight == 1 and status == HTTPStatus.GATEWAY_TIMEOUT  # it was alone already
    assert worker.asked.count("stop") == (1 if is_sure else 2)
