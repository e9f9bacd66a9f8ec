"""Requests that fail at the acceptor are counted, and logged if requests are."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from directly import Place, request, until
from marship.engines.figures import sheets, workers
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.seats import ModelState, Staff
from marship.serving.hosts.direct.trial import TrialOrder
from marship.serving.metrics import Metrics
from prometheus import samples
from worker_process import Process

OF_M = 'model_name="m",model_version="1.0"'


class Counted(Place):
    """A place that counts and logs in a folder."""

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(**more)
        self.folder, self.log = folder, folder / "requests.jsonl"
        told = {"MARSHIP_REQUEST_LOG": json.dumps({"file": str(self.log), "bodies": False})}
        self.acceptor.failures.share(folder, told)

    def errors(self) -> dict[str, float]:
        """Counts by labels, of those that are not 0."""
        page = workers.page_of(self.folder, self.acceptor.seats.staff(), 0)
        found = samples(page.render().decode())
        start = "marship_errors_total{"
        return {
            n.removeprefix(start)[:-1]: v for n, v in found.items() if n.startswith(start) and v
        }

    def rows(self, count: int) -> list[dict[str, Any]]:
        """The lines of the log, once there are so many."""
        until(lambda: self.log.exists() and self.log.read_bytes().count(b"\n") >= count)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    """An acceptor without workers."""
    made = Counted(tmp_path)
    yield made
    made.close()


def test_a_worker_that_dies_is_an_error_of_each_client(
    counted: Counted, folder: Path, loaded: Any
) -> None:
    """By the model and version that it served, also where no death is told; its log has a line."""
    assert loaded  # the folder is there
    counted.follow(m=("1.0",))
    worker = Process(counted, folder, "slow")
    with counted.line() as line:
        line.send(request())
        assert line.read().status == 200
        line.send(request(headers={"X-Hold": "1"}))
        seat = counted.acceptor.seats._seats["m", "1.0"][0]
        assert seat.slots is not None
        until(lambda: seat.slots.count(1) == 1)
        worker.kill()
        assert line.read().json()["code"] == "worker_died"
    assert counted.errors() == {f'{OF_M},code="worker_died"': 1}
    (row,) = counted.rows(1)
    assert row.pop("time")
    assert row == {"model": "m", "version": "1.0", "status": 503, "code": "worker_died"}


def test_models_without_a_worker_have_errors_too(counted: Counted) -> None:
    """With and without a version in the path, and those that were scaled to zero."""
    off = ModelState("2", ("2",), {"2": 0})
    here = ModelState("1.0", ("1.0",), {"1.0": 1})
    counted._loop.call_soon_threadsafe(counted.acceptor.follow, {"m": here, "off": off})
    until(lambda: counted.acceptor.seats.knows_models)
    for path in ("/predictions/m", "/predictions/m/1.0", "/v2/models/off/infer"):
        assert counted.ask(path, headers={"X-Request-Id": path[-3:]}).status == 503
    off_labels = 'model_name="off",model_version="2",code="scaled_to_zero"'
    assert counted.errors() == {f'{OF_M},code="no_worker"': 2, off_labels: 1}
    rows = counted.rows(3)
    assert [row["id"] for row in rows] == ["s/m", "1.0", "fer"]
    assert rows[0]["path"] == "/predictions/m"
    assert [(row["version"], row["code"]) for row in rows][1:] == [
        ("1.0", "no_worker"),
        ("2", "scaled_to_zero"),
    ]


def test_names_that_clients_make_up_are_one_series(counted: Counted) -> None:
    """Unknown models and versions, and paths that are none; else each would be kept for ever."""
    counted.follow(m=("1.0",))
    for number in range(5):
        assert counted.ask(f"/predictions/x{number}").status == 404
        assert counted.ask(f"/predictions/m/{number}").status == 404
        assert counted.ask(f"/nowhere/{number}").status == 404
    assert counted.errors() == {'code="not_found"': 15}


def test_clients_beyond_the_limit_are_errors_of_no_model(tmp_path: Path) -> None:
    """Nobody has read what they ask."""
    made = Counted(tmp_path, limits=Limits(connections=0))
    try:
        assert made.ask().status == 503
        assert made.errors() == {'code="busy"': 1}
    finally:
        made.close()


def test_requests_of_a_trial_count_once(counted: Counted, folder: Path, loaded: Any) -> None:
    """Each crosses a connection of the acceptor's own to its version, which fails in its place."""
    assert loaded
    counted.follow(m=("1.0", "2.0"))
    order = TrialOrder(
        owner="me", model="m", default="1.0", version="2.0", share=1.0, gives_new=True, absolute=1
    )
    serving = counted.acceptor.seats.serving("m")
    counted.acceptor.seats.trials.renew(order, time.monotonic(), serving)
    assert counted.ask().json()["code"] == "no_worker"
    assert counted.errors() == {f'{OF_M},code="no_worker"': 1}
    worker = Process(counted, folder, "slow")
    with counted.line() as line:
        line.send(request(headers={"X-Hold": "1"}))
        seat = counted.acceptor.seats._seats["m", "1.0"][0]
        assert seat.slots is not None
        until(lambda: seat.slots.count(1) == 1)
        worker.kill()
        assert line.read().json()["code"] == "worker_died"
    assert counted.errors() == {f'{OF_M},code="no_worker"': 1, f'{OF_M},code="worker_died"': 1}


def test_every_fault_of_a_server_is_shown_before_it_happens(tmp_path: Path) -> None:
    """Prometheus would miss the first one of each."""
    page = workers.page_of(tmp_path, [Staff("m", "1.0", 0, 1, 0)], 0)
    found = samples(page.render().decode())
    for code in sheets.FAULTS:
        assert found[f'marship_errors_total{{{OF_M},code="{code}"}}'] == 0


def test_what_workers_and_the_acceptor_count_is_one_sum(counted: Counted) -> None:
    """Both refuse a client with a wrong method, say; Prometheus takes no label set twice."""
    counted.follow(m=("1.0",))
    metrics = Metrics()
    metrics.share(counted.folder, "m", "1.0")
    metrics.add_error("no_worker")
    assert counted.ask().json()["code"] == "no_worker"
    assert counted.errors() == {f'{OF_M},code="no_worker"': 2}
