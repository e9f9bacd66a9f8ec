"""Threads follow the number of workers, and no call notices."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from marship.contract import GoldenCase, write_golden
from marship.proof import graph
from marship.serving.model import memory, session, share
from marship.serving.model.session import Session, SessionSettings
from marship.serving.model.share import FEWER_S, MORE_S, Share
from marship.serving.model.siblings import Siblings

CORES = 8
INPUT = np.ones((2, 3), np.float32)


class Crew:
    """Workers whose number a test sets, with one session that follows it."""

    def __init__(self, folder: Path, settings: SessionSettings) -> None:
        self.others = [Siblings(folder) for _ in range(20)]
        self.inside = 0
        own = Siblings(folder)
        own.join()
        self.session = Session(folder, graph.contract_of(folder / "linear.onnx"), settings)
        self.share = Share(self.session, own)
        self.now_s = 0.0

    def set(self, workers: int) -> None:
        """Let there be so many in all."""
        for other in self.others[: self.inside]:
            other.leave()
        for other in self.others[: workers - 1]:
            other.join()
        self.inside = workers - 1

    def wait(self, seconds: float) -> None:
        """Look twice: now, and after a while."""
        self.share.check(self.now_s)
        self.now_s += seconds
        self.share.check(self.now_s)

    @property
    def threads(self) -> int:
        """Those of the session in use, as ONNX Runtime has them."""
        return self.session._session.get_session_options().intra_op_num_threads


@pytest.fixture
def folder(linear_onnx: Path, tmp_path: Path) -> Path:
    """An extracted archive, with its golden cases."""
    shutil.copy(linear_onnx, tmp_path)
    outputs = {"output": np.full((2, 2), [6, 9], np.float32)}
    write_golden(tmp_path / "golden.npz", [GoldenCase({"input": INPUT}, outputs)])
    return tmp_path


@pytest.fixture
def crew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Crew:
    """A worker alone on eight cores."""
    monkeypatch.setattr(session, "usable_cores", lambda: CORES)
    return Crew(folder, SessionSettings())


def test_threads_are_the_cores_divided_by_the_workers(crew: Crew) -> None:
    """From one worker to sixteen and back each number has its share, one thread at least."""
    assert crew.threads == CORES
    for workers in (2, 1, 3, 8, 16, 4, 1):
        crew.set(workers)
        crew.wait(FEWER_S)
        assert crew.threads == max(1, CORES // workers)
        assert crew.session.settings.workers == workers
        assert crew.session.run({"input": INPUT})["output"].tolist() == [[6, 9]] * 2


def test_a_number_that_does_not_last_changes_nothing(crew: Crew) -> None:
    """A worker that is away for less than FEWER_S, or there for less than MORE_S, costs nothing."""
    first = crew.session._session
    crew.set(2)
    crew.wait(MORE_S * 0.9)
    crew.set(1)
    crew.wait(0.1)
    assert crew.session._session is first
    crew.set(2)
    crew.wait(MORE_S)
    second = crew.session._session
    assert second is not first
    crew.set(1)
    crew.wait(FEWER_S * 0.9)
    crew.set(2)
    crew.wait(FEWER_S)
    assert crew.session._session is second


def test_threads_that_are_set_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit intra_op_threads wins over any number of workers; no session is made."""
    monkeypatch.setattr(session, "usable_cores", lambda: CORES)
    crew = Crew(folder, SessionSettings(intra_op_threads=3))
    first = crew.session._session
    crew.set(8)
    crew.wait(MORE_S)
    assert crew.session._session is first
    assert crew.session.settings.workers == 8


def test_spinning_ends_where_workers_have_no_spare_core(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that were told to spin do so only while there are fewer workers than cores."""
    monkeypatch.setattr(session, "usable_cores", lambda: CORES)
    crew = Crew(folder, SessionSettings(spinning=True, intra_op_threads=2))
    for workers, spin in ((7, "1"), (8, "0"), (9, "0"), (1, "1")):
        crew.set(workers)
        crew.wait(FEWER_S)
        options = crew.session._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spin
        assert crew.session.settings.has_spare_cores == (workers < CORES)


def test_calls_go_on_while_a_session_is_made(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the second session held in its proof, the first serves the calls."""
    inside, proceed = threading.Event(), threading.Event()
    replay = Session.replay_golden

    def held(self: Session, source: Path) -> float:
        inside.set()
        assert proceed.wait(60)
        return replay(self, source)

    monkeypatch.setattr(Session, "replay_golden", held)
    first = crew.session._session
    crew.set(2)
    thread = threading.Thread(target=crew.wait, args=(MORE_S,))
    thread.start()
    assert inside.wait(60)
    assert crew.session._session is first
    assert crew.session.run({"input": INPUT})["output"].tolist() == [[6, 9]] * 2
    proceed.set()
    thread.join(60)
    assert crew.threads == CORES // 2


def test_a_session_that_fails_its_proof_is_not_used(
    crew: Crew, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where golden cases fail the first session stays, and the log says so once."""
    wrong = GoldenCase({"input": INPUT}, {"output": np.full((2, 2), 5, np.float32)})
    write_golden(folder / "golden.npz", [wrong])
    first = crew.session._session
    crew.set(2)
    crew.wait(MORE_S)
    crew.wait(MORE_S)
    assert crew.session._session is first
    assert crew.session.settings.workers == 1
    assert caplog.text.count("golden case 0") == 1


def test_without_room_for_two_the_model_stays_as_it_is(
    crew: Crew, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No second copy is begun while less than three times the model is free; later one is."""
    size = (folder / "linear.onnx").stat().st_size
    asked: list[int] = []
    monkeypatch.setattr(memory, "has_room", lambda size: asked.append(size) or False)
    crew.set(2)
    crew.wait(MORE_S)
    crew.wait(MORE_S)
    assert crew.threads == CORES
    assert set(asked) == {3 * size}
    assert caplog.text.count("room for a second model") == 1
    monkeypatch.setattr(memory, "has_room", lambda _: True)
    crew.wait(MORE_S)
    assert crew.threads == CORES // 2


def test_workers_make_their_second_copies_one_at_a_time(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for its turn, so that there is one copy too many at a time."""
    turns = Siblings(crew.share._siblings._folder.parent)
    began: list[bool] = []
    renew = Session.renew

    def noted(self: Session, found: SessionSettings) -> bool:
        began.append(released.is_set())
        return renew(self, found)

    monkeypatch.setattr(Session, "renew", noted)
    released = threading.Event()
    crew.set(2)
    with turns.one_at_a_time():
        thread = threading.Thread(target=crew.wait, args=(MORE_S,))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        released.set()
    thread.join(60)
    assert began == [True]


def test_room_is_the_machines_and_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller of MemAvailable and what the cgroup leaves decides; unknown ones do not."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.has_room(1 << 60)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4 kB\n")
    assert (memory.has_room(4096), memory.has_room(4097)) == (True, False)
    for name, text in (("max", "max"), ("current", "3000"), ("stat", "anon 1\ninactive_file 96")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.has_room(4096)
    (tmp_path / "memory.max").write_text("5000")
    assert (memory.has_room(2096), memory.has_room(2097)) == (True, False)


def test_following_ends_with_the_models_folder(crew: Crew, folder: Path) -> None:
    """After unregistering nothing is there to count, and the thread ends quietly."""
    crew.share._siblings.leave()
    shutil.rmtree(folder / ".marship-workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share, "CHECK_S", 0.0)
        crew.share.follow()
        for thread in threading.enumerate():
            if thread.name == "marship-share":
                thread.join(60)
                assert not thread.is_alive()
