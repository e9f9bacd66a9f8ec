"""What a rollout keeps of the old version's registration, and how it waits for another one."""

import functools
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from held import Held
from homes import of_a_server
from management import Management, Stored
from marship import Client
from marship.engines.engine import Note
from marship.engines.torchserve import draining
from marship.engines.torchserve.store import write_note
from marship.errors import RolloutError, UsageError
from marship.exchange.calls import Call
from marship.operate.rollout import RolloutListener, rollout
from signed import write

STORE = {f"m-{n}.mar": Stored("m", f"{n}.0") for n in (1, 2, 3)}


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
        ({"profile": "throughput", "max_batch_delay_ms": 0}, {}, (1, 32, 0)),
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


@pytest.mark.parametrize("make", [str, Path])
def test_an_archive_may_be_registered_by_its_path(
    home: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `package` returns it, if it lies in the store; a file elsewhere is not its namesake."""
    (home / "link").symlink_to(home)
    monkeypatch.chdir(home.parent)
    relative = Path(home.name) / "m-2.mar"
    for path in (Path("m-1.mar"), home / "m-1.mar", home / "link" / "m-1.mar", relative):
        done(home, Management(STORE), lambda client, path=path: client.register(make(path)))
    (home / "other").mkdir()
    for path in (home / "other" / "m-1.mar", Path("other/m-1.mar"), home):
        with pytest.raises(UsageError, match="must be the name of a file in the model store, or"):
            done(home, Management(STORE), lambda client, path=path: client.register(make(path)))


@pytest.mark.parametrize("named", [(1, 1), (1, 2), (1, 3), (2, 2), (3, 3), (2, 4)])
def test_requested_workers_win_over_the_archives(home: Path, named: tuple[int, int]) -> None:
    """Also where the archive's most are as many, at a registration and at a rollout."""
    store = {file: replace(stored, workers=named) for file, stored in STORE.items()}
    server = Management(store)
    first = done(home, server, lambda client: client.register("m-1.mar", workers=3))
    second = done(home, server, lambda client: rollout(client, "m-2.mar")).new
    for status in (first, second):
        assert (status.ready, status.min_workers, status.max_workers) == (3, 3, 3)


@pytest.mark.parametrize("named", [(1, 2), (1, 3), (2, 4)])
def test_bounds_stay_bounds(home: Path, named: tuple[int, int]) -> None:
    """A rollout does not fix the number of a version that is scaled between bounds."""
    server = Management({file: replace(one, workers=named) for file, one in STORE.items()})
    done(home, server, lambda client: client.register("m-1.mar"))
    new = done(home, server, lambda client: rollout(client, "m-2.mar")).new
    assert (new.min_workers, new.max_workers) == named


def test_what_the_old_archive_said_is_not_kept(home: Path) -> None:
    """Without options at registration the archive's batch settings apply, else the running ones."""
    server = Management(STORE)
    old = done(home, server, lambda client: client.register("m-1.mar"))
    registered = server.models["m"].versions["1.0"]
    registered.batch_size = 16  # as its model-config.yaml would have it
    assert done(home, server, lambda client: rollout(client, "m-2.mar")).new.batch_size == 1
    registered = server.models["m"].versions["2.0"]
    registered.batch_size = 16
    write_note(Client(home).home, "m", "2.0", Note(old.registration))  # of another version
    assert done(home, server, lambda client: rollout(client, "m-1.mar")).new.batch_size == 16


class Waiting(RolloutListener):
    """Tells when a rollout waits for another one."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def on_lock_wait(self, said: str) -> None:
        """It does."""
        assert said.endswith("which exchanges versions of m")
        self.event.set()


def at_call(client: Held, method: str) -> bool:
    """Whether a client is about to make such a call."""
    return isinstance(client.at, Call) and client.at.method == method


def test_two_rollouts_of_one_home_take_turns(home: Path) -> None:
    """Both load; the second says that it waits, and replaces what the first put in place."""
    server = Management(STORE)
    done(home, server, lambda client: client.register("m-1.mar"))
    first = Held("first", home, server, lambda client: rollout(client, "m-2.mar"))
    while not at_call(first, "DELETE"):  # it holds the lock
        first.step()
    with pytest.raises(
        RolloutError,
        match=r"m\.lock must be free within 0\.1 s, got it held by process .*, which exchanges "
        r"versions of m\. .*2\.0 is the default",
    ):
        done(home, server, lambda client: rollout(client, "m-3.mar", timeout_s=0.1))
    assert list(server.models["m"].versions) == ["1.0", "2.0"]
    waiting, found = Waiting(), []

    def second() -> None:
        roll = functools.partial(rollout, archive="m-3.mar", watcher=waiting)
        found.append(done(home, server, roll))

    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.event.wait(20)
    first.finish()
    thread.join(20)
    assert first.error is None
    assert found[0].old.version == "2.0"
    assert list(server.models["m"].versions) == ["3.0"]


def test_of_two_rollouts_of_one_archive_one_fails(home: Path) -> None:
    """Whichever registers later is refused, leaves the other's alone, and says what there is."""
    server = Management(STORE)
    done(home, server, lambda client: client.register("m-1.mar"))
    first, second = (
        Held(who, home, server, lambda client: rollout(client, "m-2.mar")) for who in "ab"
    )
    while not at_call(second, "POST"):
        second.step()
    while not at_call(first, "DELETE"):
        first.step()
    second.finish()
    assert re.search(
        r"at step register: .*registered.*2\.0 is the default, 1\.0 is", str(second.error)
    )
    first.finish()
    assert first.error is None
    assert list(server.models["m"].versions) == ["2.0"]


def test_a_version_that_another_client_made_the_default_already_stays(home: Path) -> None:
    """It answers when its rollout comes to that; the one before it goes, and not itself."""
    server = Management(STORE)
    done(home, server, lambda client: client.register("m-1.mar"))
    one = Held("one", home, server, lambda client: rollout(client, "m-2.mar"))
    while "m" not in server.models or "2.0" not in server.models["m"].versions:
        one.step()
    done(home, server, lambda client: client.set_default("m", "2.0"))
    one.finish()
    assert one.error is None
    assert list(server.models["m"].versions) == ["2.0"]
