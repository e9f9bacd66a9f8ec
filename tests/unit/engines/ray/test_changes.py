"""Several clients change the versions of one cluster, in every order of their steps.

Serve is a stand-in here, which has applications, replicas and the front's table: steps of real
clients would take seconds each. tests/server/ray has a real one.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.engines.engine import Registration, Wait
from marship.engines.ray import changes, cluster, keeper, models, registration
from marship.engines.ray.plan import RunPlan
from marship.engines.ray.table import Table
from marship.errors import MarshipError, NotFoundError, ServerError
from marship.exchange.calls import Flow, Pause, Work
from marship.exchange.transports import Done, next_step

WAIT = Wait(timeout_s=30.0)
PLAN = RunPlan(batch_size=1, timeout_s=1.0, startup_s=1.0, minimum=1, maximum=3, cpus=0.5, gpus=0.0)
LOST = '<<marship {"code": "load", "message": "h.py must load, got no."}>>'


class Serve:
    """Applications with their plans, the table, and locks."""

    def __init__(self) -> None:
        self.apps: dict[str, RunPlan] = {}
        self.table, self.locks, self.fits = Table(), set[str](), 3
        self.archives, self.wanted = set[str](), list[str]()

    def details(self) -> dict[str, Any]:
        """As `cluster.details`; each application says what its replicas do."""
        return {app: self._status(plan) for app, plan in self.apps.items()}

    def _status(self, plan: RunPlan) -> dict[str, Any]:
        ready = min(plan.minimum, self.fits)
        replica = {"replica_id": "r", "state": "RUNNING"}
        message = "" if ready == plan.minimum else f"A replica failed to start. {LOST}."
        deployment = {"message": message, "replicas": [replica] * ready}
        return {
            "status": "RUNNING" if not message else "DEPLOYING",
            "deployments": {"d": deployment},
        }

    def write(self, table: Table) -> None:
        """As `cluster.write`."""
        self.table = table

    def deploy(self, app: str, _: object, plan: RunPlan) -> None:
        """As `cluster.deploy`."""
        self.apps[app] = plan

    def delete(self, app: str) -> None:
        """As `cluster.delete`."""
        self.apps.pop(app, None)

    def deployed(self, app: str) -> tuple[None, RunPlan]:
        """As `cluster.deployed`."""
        if app not in self.apps:
            raise NotFoundError(app)
        return None, self.apps[app]

    def admit(self, _: object, wanted: Registration, held: ExitStack) -> registration.Admission:
        """As `registration.admit`, of an archive that is called NAME-VERSION."""
        name, _, version = wanted.archive.partition("-")
        source: Any = SimpleNamespace(digest=wanted.archive)
        self.share(Path(wanted.archive), source, held)
        return registration.Admission(name, version, source, PLAN, None, 1)

    def share(self, place: Path, source: Any, held: ExitStack) -> None:
        """As `registration.share`."""
        assert place.name == source.digest
        self.wanted.append(source.digest)
        held.callback(lambda: source.digest in self.wanted and self.wanted.remove(source.digest))
        self.archives.add(source.digest)

    def sweep(self, listed: Collection[str]) -> None:
        """As `keeper.sweep`."""
        self.archives &= {*listed, *self.wanted}

    def take(self, lock: str, held: ExitStack, **_: object) -> Generator[Pause, None, None]:
        """As `keeper.take`."""
        while lock in self.locks:
            yield Pause(0)
        self.locks.add(lock)
        held.callback(self.locks.discard, lock)

    def check(self) -> None:
        """What must hold whenever nothing changes."""
        listed = {entry.app: entry for _, _, entry in self.table.entries()}
        assert set(listed) == set(self.apps)
        for app, entry in listed.items():
            bounds = self.apps[app].minimum, self.apps[app].maximum
            assert bounds == (entry.minimum, entry.maximum)
            assert entry.digest in self.archives
        for model in self.table.models.values():
            assert model.default in model.versions
        assert not self.locks


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """An empty one."""
    return installed(monkeypatch)


def installed(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """One in place of the cluster."""
    one = Serve()
    for name in ("details", "write", "deploy", "delete", "deployed"):
        monkeypatch.setattr(cluster, name, getattr(one, name))
    monkeypatch.setattr(cluster, "table", lambda: one.table)
    monkeypatch.setattr(cluster, "broadcast", lambda *_: [])
    monkeypatch.setattr(cluster, "check_resources", lambda *_: None)
    monkeypatch.setattr(keeper, "take", one.take)
    monkeypatch.setattr(keeper, "claim", lambda *_: None)
    monkeypatch.setattr(registration, "admit", one.admit)
    monkeypatch.setattr(registration, "share", one.share)
    monkeypatch.setattr(keeper, "sweep", one.sweep)
    monkeypatch.setattr(
        registration, "deploy", lambda app, admitted, _: one.deploy(app, None, admitted.plan)
    )
    return one


ACCESS: Any = SimpleNamespace(connect=lambda: None, record=None, model_store=Path("store"))


def step(flow: Flow[Any], result: object, error: BaseException | None) -> Any:
    """One step of a flow: (its result, its error), or Done."""
    todo = next_step(flow, result, error)
    if isinstance(todo, Done):
        return todo
    try:
        return (todo.run() if isinstance(todo, Work) else None), None
    except BaseException as problem:
        return None, problem


def run(flow: Flow[Any], *, interrupted_at: int = -1) -> Any:
    """A flow's result; Ctrl-C comes when the work of a step is done and has not returned."""
    found: Any = (None, None)
    count = 0
    while not isinstance(found := step(flow, *found), Done):
        if count == interrupted_at:
            found = (None, KeyboardInterrupt())
        count += 1
    return found.value


def register(archive: str) -> Flow[Any]:
    """As the command."""
    return changes.register(ACCESS, Registration(archive), WAIT)


def withdraw(name: str, version: str) -> Flow[None]:
    """As a rollout that is undone."""
    (status,) = yield from models.describe(ACCESS, name, version)
    yield from changes.withdraw(ACCESS, status, leaves_last=True)


COMMANDS: dict[str, Callable[[], Flow[Any]]] = {
    "register": lambda: register("m-2"),
    "scale": lambda: changes.scale(ACCESS, "m", 2, version=None, wait=WAIT),
    "scale 2": lambda: changes.scale(ACCESS, "m", 2, version="2", wait=WAIT),
    "scale further": lambda: changes.scale(ACCESS, "m", 3, version="1", wait=WAIT),
    "scale too far": lambda: changes.scale(ACCESS, "m", 9, version=None, wait=WAIT),
    "default": lambda: changes.set_default(ACCESS, "m", "2"),
    "default as before": lambda: changes.set_default(ACCESS, "m", "1"),
    "unregister": lambda: changes.unregister(ACCESS, "m"),
    "unregister 2": lambda: changes.unregister(ACCESS, "m", "2"),
    "unregister 1": lambda: changes.unregister(ACCESS, "m", "1"),
    "withdraw": lambda: withdraw("m", "2"),
}


class Client:
    """Runs a command step by step."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._flow, self._result = COMMANDS[command](), None
        self._error: BaseException | None = None

    def interrupt(self) -> None:
        """Ctrl-C as the step's work is done and has not returned."""
        self._result, self._error = None, KeyboardInterrupt()

    def is_done_after_a_step(self) -> bool:
        """Take a step; whether it was the last one, or ended in an error for the user."""
        try:
            found = step(self._flow, self._result, self._error)
        except (MarshipError, KeyboardInterrupt):
            return True
        if isinstance(found, Done):
            return True
        self._result, self._error = found
        return False


def overlap(names: Sequence[str], order: Sequence[int], interrupted_at: int) -> None:
    """Run commands in an order of their steps, then in turns, and check what is left.

    Each listed version has its application with its replicas, each default is there, and no
    application is left but one that was just being removed.
    """
    with pytest.MonkeyPatch.context() as patch:
        serve = installed(patch)
        for archive in ("m-1", "m-2"):
            run(register(archive))
        clients = [Client(name) for name in names]
        for count, place in enumerate([*order, *([0, 1, 2] * 100)]):
            if not clients:
                break
            client = clients[place % len(clients)]
            if client.is_done_after_a_step():
                clients.remove(client)
            elif count == interrupted_at and client.command != "scale too far":
                client.interrupt()  # that one is undone anyway; a second end would end its undoing
        assert not clients
        registration_leaves_no_more(serve)
        serve.check()


@pytest.mark.parametrize("first", sorted(COMMANDS))
def test_a_command_within_another_leaves_a_whole_cluster(first: str) -> None:
    """After each of the first one's steps."""
    for second in COMMANDS:
        for steps in range(9):
            overlap((first, second), [0] * steps + [1] * 20, -1)


@settings(max_examples=200, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(COMMANDS)), min_size=2, max_size=3),
    order=st.lists(st.integers(0, 2), max_size=60),
    interrupted_at=st.integers(0, 60),
)
def test_whatever_overlaps_leaves_a_whole_cluster(
    names: list[str], order: list[int], interrupted_at: int
) -> None:
    """In any order, whoever is interrupted where."""
    overlap(names, order, interrupted_at)


def registration_leaves_no_more(serve: Serve) -> None:
    """What the next registration removes: see `registration.remove_abandoned`."""
    for app in set(serve.apps) - {entry.app for _, _, entry in serve.table.entries()}:
        serve.delete(app)


@pytest.mark.parametrize(
    ("command", "at"),
    [("register", at) for at in range(6)] + [("scale", at) for at in range(4)],
)
def test_an_interrupted_command_leaves_all_as_before(serve: Serve, command: str, at: int) -> None:
    """Even if Serve has the table already: in each step but the last, which only looks."""
    run(register("m-1"))
    before = serve.table, dict(serve.apps)
    with pytest.raises(KeyboardInterrupt):
        run(COMMANDS[command](), interrupted_at=at)
    assert (serve.table, serve.apps) == before
    serve.check()


@pytest.mark.parametrize("steps", range(12))
def test_a_killed_scale_leaves_no_number_that_nothing_tells(serve: Serve, steps: int) -> None:
    """The table has the new one before replicas change, and the same command goes on from there."""
    run(register("m-1"))
    flow, found = COMMANDS["scale"](), (None, None)
    for _ in range(steps):
        taken = step(flow, *found)
        if isinstance(taken, Done):
            break
        found = taken
    flow.close()  # a killed process undoes nothing
    ((_, _, entry),) = serve.table.entries()
    plan = serve.apps[entry.app]
    assert (plan.minimum, plan.maximum) in ((1, 3), (entry.minimum, entry.maximum))
    serve.locks.clear()  # ends with its process
    run(COMMANDS["scale"]())
    assert serve.apps[entry.app].maximum == 2
    serve.check()


def test_replicas_that_cannot_load_are_taken_back(serve: Serve) -> None:
    """At once, with their own error: Serve would try for ever."""
    run(register("m-1"))
    before = serve.table, dict(serve.apps)
    with pytest.raises(ServerError) as caught:
        run(COMMANDS["scale too far"]())
    assert str(caught.value) == (
        "m 1 must have 9 replicas ready, got: h.py must load, got no. It has 1 to 3 as before."
    )
    assert (serve.table, serve.apps) == before


def test_archives_go_with_their_versions(serve: Serve) -> None:
    """Nodes' disks would fill; one that another client is about to register stays."""
    run(register("m-1"))
    run(register("m-2"))
    run(COMMANDS["unregister 2"]())
    assert serve.archives == {"m-1"}
    again = register("m-2")
    step(again, None, None)  # it has put the archive in place, which no version needs yet
    run(COMMANDS["default as before"]())
    run(register("m-3"))
    assert serve.archives == {"m-1", "m-2", "m-3"}
    again.close()
    run(changes.unregister(ACCESS, "m", "3"))
    assert serve.archives == {"m-1"}


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_keeper_that_restarts_loses_no_archive(serve: Serve, steps: int) -> None:
    """It forgets who is registering; the sweep of another client then removes the archive."""
    run(register("m-1"))
    first, found = register("m-2"), (None, None)
    for _ in range(steps):
        found = step(first, *found)
    serve.wanted.clear()
    run(register("m-3"))
    while not isinstance(found, Done):
        found = step(first, *found)
    serve.check()
    assert "m-2" in serve.archives


def test_a_version_without_an_application_can_be_removed(serve: Serve) -> None:
    """A cluster that an earlier marship left so is mended by the words for it."""
    run(register("m-1"))
    serve.apps.clear()
    assert [status.ready for status in run(models.describe(ACCESS, "m"))] == [0]
    run(changes.unregister(ACCESS, "m"))
    serve.check()
