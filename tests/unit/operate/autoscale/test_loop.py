"""What autoscaling does to a server, here one that only says what it has."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from marship.engines.addresses import Target
from marship.engines.engine import ModelStatus, Worker
from marship.engines.home import Home
from marship.engines.load import ModelLoad
from marship.errors import NotRunningError, ServerError
from marship.exchange.calls import Flow, Pause
from marship.operate.autoscale import loop, record
from marship.operate.autoscale.bounds import bounds_of
from marship.operate.autoscale.loop import Autoscaler
from marship.operate.autoscale.policy import Scale
from marship.operate.autoscale.settings import ScalingSettings
from signed import write


@dataclass
class Stub:
    """A server with one model: what it answers, and what it was told."""

    home: Home
    workers: int = 1
    ongoing: int = 0
    told: list[str] = field(default_factory=list)
    fails: Callable[[str], None] = lambda _what: None
    is_busy: bool = False
    tls: None = None

    def check_peer(self, *_any: object) -> None:
        """Nothing is sent."""

    @property
    def model_store(self) -> Path:
        """Without archives: bounds are given."""
        return self.home.path

    def status(self) -> ModelStatus:
        """As many workers as it was told, all ready."""
        workers = tuple(Worker(str(n), n, ready=True) for n in range(1, self.workers + 1))
        return ModelStatus(
            "m", "1.0", "m.mar", self.workers, self.workers, 1, 1, 60, False, workers
        )

    def loads(self) -> Flow[list[ModelLoad]]:
        """Requests in hand, and nothing else."""
        self.fails("loads")
        yield Pause(0)
        return [ModelLoad(self.status(), "workers", self.ongoing, 0, 0, 0, 0, 0, (), (), 0)]

    def describe(self, _name: str, _version: str) -> Flow[list[ModelStatus]]:
        """The version."""
        yield Pause(0)
        return [self.status()]

    def version_lock(self, _name: str, _held: ExitStack, *, timeout_s: float) -> Flow[None]:
        """Held by a rollout where that is wanted."""
        yield Pause(0 * timeout_s)
        self.fails("lock")

    def scale(self, _name: str, workers: int, **_rest: Any) -> Flow[ModelStatus]:
        """More workers, or an error."""
        self.told.append(f"scale {workers}")
        yield Pause(0)
        self.fails(f"scale {workers}")
        self.workers = workers
        return self.status()

    def shrink(self, _name: str, workers: int, **_rest: Any) -> Flow[ModelStatus | None]:
        """Fewer, unless they are busy."""
        self.told.append(f"shrink {workers}")
        yield Pause(0)
        if self.is_busy:
            return None
        self.workers = workers
        return self.status()


class Running:
    """Autoscaling of the stub, a second at a time."""

    def __init__(self, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stub, self.now = stub, 0.0
        monkeypatch.setattr(loop, "DefaultEngine", lambda _target: stub)
        monkeypatch.setattr(loop, "time", self)
        settings = ScalingSettings(min_workers=1, max_workers=4, window_s=10, cool_down_s=10)
        self.scaler = Autoscaler(Target(stub.home.path), ["m"], settings)
        self.transport = self.scaler._transport(stub)  # type: ignore[arg-type]  # a stand-in

    def monotonic(self) -> float:
        """The time here."""
        return self.now

    def pass_s(self, seconds: int) -> None:
        """Look once a second; a change that was begun ends before the next look."""
        for _ in range(seconds):
            self.now += 1
            with ThreadPoolExecutor() as pool:  # its end waits for what was begun
                self.scaler._look(self.stub, self.transport, pool)  # type: ignore[arg-type]

    @property
    def reason(self) -> str:
        """What is told of the model."""
        (state,) = record.read(self.stub.home)
        return state.reason


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Autoscaling from one to four workers."""
    assert time.monotonic()  # what is patched is the loop's clock alone
    return Running(Stub(Home(tmp_path)), monkeypatch)


def test_workers_are_added_at_once_and_ended_when_it_is_calm(running: Running) -> None:
    """Up under load, down after it, and what was done is counted."""
    running.stub.ongoing = 6
    running.pass_s(4)
    assert running.stub.told == ["scale 3"]
    running.stub.ongoing = 0
    running.pass_s(60)
    assert running.stub.told == ["scale 3", "shrink 2", "shrink 1"]
    (state,) = record.read(running.stub.home)
    assert (state.ready, state.ups, state.downs) == (1, 1, 2)


def test_workers_that_do_not_load_are_taken_back_and_tried_later(running: Running) -> None:
    """With the error as the reason, and twice the pause after each failure."""

    def fail(what: str) -> None:
        if what == "scale 4":
            raise ServerError("m must have 4 workers ready, got 1 of 4: no memory")

    running.stub.fails, running.stub.ongoing = fail, 90
    running.pass_s(3)
    assert running.stub.told == ["scale 4", "scale 1"]
    running.pass_s(20)
    assert running.reason.endswith("got 1 of 4: no memory")
    assert running.stub.told == ["scale 4", "scale 1"]
    running.pass_s(12)
    assert running.stub.told == ["scale 4", "scale 1"] * 2
    running.pass_s(50)
    assert running.stub.told == ["scale 4", "scale 1"] * 2
    running.pass_s(15)
    assert running.stub.told == ["scale 4", "scale 1"] * 3


def test_busy_workers_are_asked_again(running: Running) -> None:
    """They are not ended, and the reason says why."""
    running.stub.workers, running.stub.is_busy = 2, True
    running.pass_s(14)
    assert running.stub.told == ["shrink 1"]
    assert running.reason == "workers to be ended are busy"
    running.stub.is_busy = False
    running.pass_s(8)
    assert running.stub.told == ["shrink 1"] * 2
    assert running.stub.workers == 1


def test_nothing_changes_during_a_rollout(running: Running) -> None:
    """Whoever exchanges versions holds their lock."""

    def fail(what: str) -> None:
        if what == "lock":
            raise ServerError("held by another process")

    running.stub.fails, running.stub.ongoing = fail, 90
    running.pass_s(10)
    assert running.stub.told == []
    assert running.reason.startswith("versions are being exchanged")


def test_a_server_that_is_gone_is_waited_for(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once; and nothing is remembered of the time before."""

    def fail(_what: str) -> None:
        raise NotRunningError("a server must run")

    running.pass_s(5)
    running.stub.fails = fail
    with caplog.at_level(logging.WARNING):
        running.pass_s(5)
    assert caplog.messages == ["a server must run"]
    assert record.read(running.stub.home) == []
    running.stub.fails, running.stub.ongoing = lambda _what: None, 90
    running.pass_s(1)
    assert running.reason == "the first samples are taken"
    running.pass_s(3)
    assert running.stub.workers == 4


def test_a_version_by_hand_out_of_bounds_is_brought_back(running: Running) -> None:
    """Once its workers are ready."""
    running.stub.workers = 9
    running.pass_s(2)
    assert running.stub.told == ["shrink 4"]


def test_models_of_one_number_are_left_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are named; their archives are read once."""
    read = []

    def bounds(*_any: object) -> Scale:
        read.append(1)
        return Scale(1, 1)

    monkeypatch.setattr(loop, "bounds_of", bounds)
    running.scaler.names, running.stub.ongoing = (), 90
    running.pass_s(5)
    assert (record.read(running.stub.home), len(read)) == ([], 1)


def test_a_fault_with_one_model_ends_nothing(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """What no code expects is logged with its traceback, and tried again later."""

    def fail(what: str) -> None:
        if what.startswith("scale"):
            raise ValueError("unexpected")

    running.stub.fails, running.stub.ongoing = fail, 90
    running.pass_s(5)
    assert "unexpected" in running.reason
    assert any(entry.exc_info for entry in caplog.records)


def test_a_state_that_cannot_be_written_ends_nothing(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is told of once, and workers come all the same."""
    place = running.stub.home.autoscale_file
    place.mkdir(parents=True)
    running.stub.ongoing = 90
    with caplog.at_level(logging.WARNING):
        running.pass_s(4)
        assert running.stub.workers == 4
        place.rmdir()
        running.pass_s(2)
    told = [text for text in caplog.messages if "state" in text or str(place) in text]
    assert len(told) == 2
    assert str(place) in told[0]
    assert told[1] == "the state is written again"


@pytest.mark.parametrize(
    ("config", "bounds"),
    [
        (b"maxWorkers: many", (1, 1)), (b"maxWorkers: 2.5", (1, 1)), (b"maxWorkers: -3", (1, 1)),
        (b"maxWorkers: [1]", (1, 1)), (b"maxWorkers: true", (1, 1)), (b"marship: [1]", (1, 1)),
        (b"minWorkers: 3\nmaxWorkers: 1", (3, 3)), (b"minWorkers: x\nmaxWorkers: 4", (1, 4)),
    ],
)  # fmt: skip
def test_bounds_of_archives_that_others_made(
    config: bytes, bounds: tuple[int, int], running: Running
) -> None:
    """TorchServe registers them where a client gives the number of workers; that is taken."""
    write(running.stub.model_store / "m.mar", {"model-config.yaml": config})
    found = bounds_of(running.stub, running.stub.status(), ScalingSettings())  # type: ignore[arg-type]
    assert (found.least, found.most) == bounds
