"""Two clients change one model at the same time, in every order that matters.

Each is held before every step that it takes, so an order is exact and no test sleeps. They are on
two machines, with a home each: no lock keeps them apart, and the server's state decides. The
server is a model of TorchServe's management API, see `management`.

Whatever the order: a version that a client registered goes only if that client takes it back, or
somebody asks for it; a model that has a version which can answer keeps one; who reports success has
its version there; who fails has left nothing of its own.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from held import Held
from homes import of_a_server
from management import Management, Registered, Stored, Versions
from marship import Client
from marship.engines.torchserve import draining, registration, status
from marship.errors import NoAnswerError
from marship.exchange.calls import Call, HttpResponse
from marship.operate import state
from marship.operate.rollout import rollout
from marship.operate.statefile import Entry
from signed import write

pytestmark = pytest.mark.slow

STORE = {
    "m-1.mar": Stored("m", "1.0"),
    "m-2.mar": Stored("m", "2.0"),
    "m-3.mar": Stored("m", "3.0"),
    "bad-2.mar": Stored("m", "2.0", is_good=False),
    "bad-4.mar": Stored("m", "4.0", is_good=False),
}


def register(archive: str) -> Callable[[Client], Any]:
    """Register an archive."""
    return lambda client: client.register(archive)


def roll(archive: str, *, keep_old: bool = False) -> Callable[[Client], Any]:
    """Roll an archive out."""
    return lambda client: rollout(client, archive, keep_old=keep_old).new


def apply(*archives: str, prune: bool = False) -> Callable[[Client], Any]:
    """Declare these versions; the first one is the default."""
    entries = [Entry("state", a, default=n == 0) for n, a in enumerate(archives)]

    def act(client: Client) -> None:
        with state.planned(client, entries, prune=prune) as changes:
            state.carry_out(client, changes)

    return act


ACTS: dict[str, Callable[[Client], Any]] = {
    "register 2": register("m-2.mar"),
    "register 3": register("m-3.mar"),
    "register bad 2": register("bad-2.mar"),
    "register bad 4": register("bad-4.mar"),
    "rollout 2": roll("m-2.mar"),
    "rollout 3": roll("m-3.mar"),
    "rollout 3, old kept": roll("m-3.mar", keep_old=True),
    "rollout bad 4": roll("bad-4.mar"),
    "apply 2": apply("m-2.mar"),
    "apply 2 and 3, pruned": apply("m-2.mar", "m-3.mar", prune=True),
    "scale": lambda client: client.scale("m", 2),
    "unregister 1": lambda client: client.unregister("m", "1.0"),
    "unregister 2": lambda client: client.unregister("m", "2.0"),
}


@dataclass
class Watched(Management):
    """The server, which holds every change against what may be done.

    Attributes:
        acts: What each client does.
        answered: What was the default at some time.
        broken: The rules that were broken; an error would only reach the client.
    """

    acts: dict[str, str] = field(default_factory=dict)
    answered: list[Registered] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def answer(self, call: Call, by: str = "") -> HttpResponse:
        """The response; notes what breaks a rule."""
        model = self.models.get("m")
        if model:
            self.answered.append(model.versions[model.default])
        before = self.good()
        gone = self._target(call) if call.method == "DELETE" else None
        answer = super().answer(call, by)
        if answer.status < 400 and call.method in ("DELETE", "PUT"):
            self._check(by, before, gone)
        return answer

    def good(self) -> set[str]:
        """The versions that are ready."""
        model = self.models.get("m")
        return {v for v, r in model.versions.items() if r.is_good} if model else set()

    def of(self, who: str) -> list[str]:
        """The versions that a client registered."""
        model = self.models.get("m")
        return [v for v, r in model.versions.items() if r.by == who] if model else []

    def _target(self, call: Call) -> Registered | None:
        model = self.models.get("m")
        return model.versions.get(call.path.split("/")[-1]) if model else None

    def _check(self, by: str, before: set[str], gone: Registered | None) -> None:
        act, model = self.acts[by], self.models.get("m")
        if act.startswith("unregister"):
            return
        answering = model.versions.get(model.default) if model else None
        if before and not self.good():
            self.broken.append(f"{act} has left no version that can answer")
        elif before and not (answering and answering.is_good):
            self.broken.append(f"{act} lets a version answer that cannot")
        is_asked = act.startswith("rollout") and any(gone is one for one in self.answered)
        if gone is not None and gone.by != by and not is_asked and "pruned" not in act:
            self.broken.append(f"{act} has removed another client's version")


@dataclass
class Place:
    """Two machines' homes, and the server that both know."""

    homes: Sequence[Path]

    def start(self, *acts: str) -> tuple[Watched, list[Held]]:
        """A server where version 1.0 is the default, and a client for each of these."""
        server = Watched(STORE, acts={f"{n} {act}": act for n, act in enumerate(acts)})
        first = Registered("registration-0/m-1.mar", "the start", 1, 1, 100, is_good=True)
        server.models["m"] = Versions("1.0", {"1.0": first})
        clients = zip(server.acts, self.homes, strict=False)
        return server, [Held(who, home, server, ACTS[server.acts[who]]) for who, home in clients]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two homes with the same archives; draining and looking take no time."""
    homes = [tmp_path_factory.mktemp("home") for _ in range(2)]
    for folder in homes:
        of_a_server(folder)
        for file, stored in STORE.items():
            write(folder / file, model=stored.name, version=stored.version)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draining, "QUIET_S", 0.0)
        patch.setattr(registration, "_NO_RESPONSE_S", 0.0)
        patch.setattr(status, "_NEXT_WORKER_POLLS", 1)  # no log will have a cause
        yield Place(homes)


def check_report(server: Watched, client: Held) -> None:
    """What a client's end says is so."""
    act = server.acts[client.who]
    if client.error is None:
        if act.startswith(("register", "rollout")):
            assert client.result.version in server.of(client.who), f"{act} reports what is not so"
        return
    assert isinstance(client.error, Exception), client.error
    left = server.of(client.who)
    if act.startswith("apply"):  # what it did before the fault stays, and is good
        assert set(left) <= server.good()
    else:
        assert not left, f"{act} has left {left}: {client.error}"


def walk(server: Watched, clients: Sequence[Held], order: Iterator[int]) -> None:
    """Take steps in this order, then what is left; check each client's report as it comes."""
    for turn in itertools.chain(order, itertools.repeat(0), ()):
        if all(client.is_done for client in clients):
            break
        client = clients[turn]
        if client.is_done:
            client = next(c for c in clients if not c.is_done)
        client.step()
        assert not server.broken
        if client.is_done:
            check_report(server, client)


def length(place: Place, act: str) -> int:
    """How many steps it takes alone."""
    server, (client,) = place.start(act)
    steps = 0
    while not client.is_done:
        client.step()
        steps += 1
    check_report(server, client)
    return steps


THOSE_THAT_REGISTER = [act for act in ACTS if act.startswith(("register", "rollout"))]


def stops(place: Place, act: str) -> list[int]:
    """After how many of its steps it has just changed something, or is about to."""
    _, (client,) = place.start(act)
    found, steps, has_changed = [], 0, False
    while not client.is_done:
        is_change = isinstance(client.at, Call) and client.at.method != "GET"
        if steps and (is_change or has_changed):
            found.append(steps)
        client.step()
        steps, has_changed = steps + 1, is_change
    return found


CORE = [act for act in THOSE_THAT_REGISTER if act not in ("register 3", "rollout 3, old kept")]


@pytest.mark.parametrize("act", ACTS)
def test_alone(place: Place, act: str) -> None:
    """Each does what it says where nobody else is."""
    assert length(place, act) > 0


@pytest.mark.parametrize("other", CORE)
@pytest.mark.parametrize("act", CORE)
def test_every_order_with_three_changes_of_turn(place: Place, act: str, other: str) -> None:
    """The first goes so far, the second so far, the first to its end, and the second.

    The first stops on either side of each change; `test_any_order` stops anywhere.
    """
    most = length(place, other)
    for first, second in itertools.product(stops(place, act), range(1, most + 1)):
        server, clients = place.start(act, other)
        walk(server, clients, iter([0] * first + [1] * second))


@settings(max_examples=200, deadline=None)
@given(
    acts=st.tuples(*[st.sampled_from(list(ACTS))] * 2),
    order=st.lists(st.sampled_from([0, 1]), max_size=40),
)
def test_any_order(place: Place, acts: tuple[str, str], order: list[int]) -> None:
    """Of any two, apply, scale and unregister among them."""
    server, clients = place.start(*acts)
    walk(server, clients, iter(order))


FAULTS: dict[str, Callable[[Held], None]] = {
    "Ctrl-C": lambda client: client.step(KeyboardInterrupt()),
    "cancelled": lambda client: client.step(asyncio.CancelledError()),
    "request lost": lambda client: client.step(NoAnswerError("the connection was closed")),
    "response lost": lambda client: client.step(loses=True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("act", THOSE_THAT_REGISTER)
def test_a_fault_at_any_step_beside_another_client(place: Place, act: str, fault: str) -> None:
    """Before that step, or after it, the other client registers the same version, or another."""
    for other in ("register 2", "register 3", "rollout 3"):
        for at, is_before in itertools.product(range(length(place, act)), (True, False)):
            server, (client, second) = place.start(act, other)
            for _ in range(at):
                client.step()
            if is_before:
                second.finish()
            if not client.is_done:
                FAULTS[fault](client)
            second.finish()
            client.finish()
            assert not server.broken
            check_report(server, second)
            check_left(server, client)


def check_left(server: Watched, client: Held) -> None:
    """Of a client that failed nothing is left but a version that has taken over already."""
    left = server.of(client.who)
    if client.error is not None and left:
        assert server.acts[client.who].startswith("rollout"), left
        assert server.models["m"].default in left
