"""What a rollout keeps of the old version's registration, and how it waits for another one."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from held import Held
from homes import of_a_server
from management import Management, Stored
from marship import Client
from marship.errors import RolloutError, UsageError
from marship.rollout import Watcher, rollout
from marship.torchserve import draining
from marship.torchserve.store import Note, write_note
from signed import write

STORE = {f"m-{n}.mar": Stored("m", f"{n}.0") for n in (1, 2)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose store has two versions of a model; draining takes no time."""
    monkeypatch.setattr(draining, "QUIET_S", 0.0)
    of_a_server(tmp_path)
    for file, stored in STORE.items():
        write(tmp_path / file, model=stored.name, version=stored.version)
    return tmp_path


def done(home: Path, server: Management, act: Callable[[Client], Any]) -> Any:
    """What comes of it."""
    client = Held("one", home, server, act)
    client.finish()
    if client.error is not None:
        raise client.error
    return client.result


@pytest.mark.parametrize(
    ("asked", "told", "kept"),
    [
        ({"profile": "throughput"}, {}, (1, 32, 1)),
        ({"batch_size": 7, "max_batch_delay_ms": 9, "workers": 3}, {}, (3, 7, 9)),
        ({"batch_size": 7}, {"profile": "latency", "workers": 2}, (2, 1, 1)),
        ({}, {}, (1, 1, 100)),  # both are the archive's: the model of the server has these
    ],
)
def test_a_registrations_settings_are_kept(
    home: Path, asked: dict[str, Any], told: dict[str, Any], kept: tuple[int, int, int]
) -> None:
    """Batch size, delay and workers, over two rollouts; what is told wins."""
    server = Management(STORE)
    done(home, server, lambda client: client.register("m-1.mar", **asked))
    for file in ("m-2.mar", "m-1.mar"):
        new = done(home, server, lambda client, f=file: rollout(client, f, **told)).new
        assert (new.min_workers, new.batch_size, new.max_batch_delay_ms) == kept


def test_what_the_old_archive_said_is_not_kept(home: Path) -> None:
    """Where nothing was asked for, the new archive's batches are asked for; else what runs."""
    server = Management(STORE)
    old = done(home, server, lambda client: client.register("m-1.mar"))
    registered = server.models["m"].versions["1.0"]
    registered.batch_size = 16  # as its model-config.yaml would have it
    assert done(home, server, lambda client: rollout(client, "m-2.mar")).new.batch_size == 1
    registered = server.models["m"].versions["2.0"]
    registered.batch_size = 16
    write_note(Client(home).home, "m", "2.0", Note(old.registration))  # of another version
    assert done(home, server, lambda client: rollout(client, "m-1.mar")).new.batch_size == 16


class Waiting(Watcher):
    """Tells when a rollout waits for another one."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def on_turn(self, model: str) -> None:
        """It does."""
        assert model == "m"
        self.event.set()


def test_two_rollouts_of_one_home_take_turns(home: Path) -> None:
    """The second says that it waits, looks again, and has nothing to do; the first's answers."""
    server = Management(STORE)
    done(home, server, lambda client: client.register("m-1.mar"))
    first = Held("first", home, server, lambda client: rollout(client, "m-2.mar"))
    first.step()
    with pytest.raises(RolloutError, match=r"one rollout of m must .*after 0\.1 s\. Wait for it"):
        rollout(Client(home), "m-2.mar", timeout_s=0.1)
    waiting, errors = Waiting(), []

    def second() -> None:
        try:
            done(home, server, lambda client: rollout(client, "m-2.mar", watcher=waiting))
        except UsageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.event.wait(20)
    first.finish()
    thread.join(20)
    assert first.error is None
    assert "not registered, got m 2.0" in errors[0]
    assert list(server.models["m"].versions) == ["2.0"]
