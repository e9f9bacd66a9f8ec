"""Trials step by step: promoted, ended, refused; nothing is left of one that was interrupted."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from marship import Client
from marship.client.clients import ModelStatus, Worker
from marship.engines.trials import LEASE_S, TrialFigures, TrialOrder, figures_of
from marship.errors import MarshipError, NotFoundError, RolloutError, ServerError, UsageError
from marship.operate.trial import run
from marship.operate.trial.run import TrialListener, TriedShare, canary, shadow
from marship.operate.trial.settings import CanarySettings, ShadowSettings
from marship.serving.hosts.direct.trial import RunningTrials

STORE = Path(__file__).parents[3] / "earlier"
CANARY = CanarySettings(minutes=1, steps="0.1,1")


class Server:
    """A server with two versions of `m`, as far as trials use it; each renewal brings requests.

    Args:
        brings: Called with the figures at each renewal, to count requests.
    """

    is_local, tls = True, None

    def __init__(self, brings: Callable[["Server", TrialFigures], None]) -> None:
        self.now, self.default, self.is_silent = 0.0, "1", False
        self.seen, self.lag = "1", 0
        self.registered = {"1": "r1", "2": "r2"}
        self.ready = 1
        self.trials = RunningTrials(lambda: None)
        self.orders: list[TrialOrder] = []
        self._brings = brings
        self.engine, self.model_store = self, STORE

    def check_peer(self, *_: object) -> None:
        """Nothing is sent."""

    def renew_trial(self, order: TrialOrder) -> Generator[Any, Any, list[TrialFigures]]:
        """As an engine does."""
        yield from ()
        if self.is_silent:
            return []
        self.orders.append(order)
        if self.seen != self.default:
            self.lag -= 1
            self.seen = self.seen if self.lag >= 0 else self.default
        versions = (self.seen, *(one for one in self.registered if one != self.seen))
        told = self.trials.reply(
            {name: getattr(order, name) for name in order.__slots__}, self.now, lambda _: versions
        )
        trial = self.trials.of("m")
        if trial is not None:
            self._brings(self, trial.figures)
            told["figures"] = trial.figures.to_json()
        return figures_of([told])

    def describe(self, name: str, version: str | None = None) -> list[ModelStatus]:
        """As a client does."""
        number = version or self.default
        if name != "m" or number not in self.registered:
            raise NotFoundError("none")
        workers = tuple(Worker(str(n), n, True) for n in range(self.ready))
        found = ModelStatus(name, number, "diabetes.mar", 1, 1, 1, 1, 60, False, workers)
        return [replace(found, registration=self.registered[number])]

    def set_default(self, _name: str, version: str) -> None:
        """As a client does."""
        self.default = version

    def check_name(self, name: str) -> str:
        """As an engine does."""
        return name

    def version_lock(self, *_: object, **__: object) -> Iterator[Any]:
        """There is none."""
        return iter(())


def good(_server: Server, figures: TrialFigures) -> None:
    """Ten requests that both versions serve alike."""
    figures.asked += 100
    figures.taken += 10
    figures.compared += 10
    for arm in (figures.default, figures.new):
        arm.requests += 10
        arm.took[50] += 10


def bad(server: Server, figures: TrialFigures) -> None:
    """The same, and the new version fails."""
    good(server, figures)
    figures.new.errors += 10


class Told(TrialListener):
    """Remembers the shares that were tried."""

    def __init__(self) -> None:
        self.shares: list[tuple[float, str]] = []

    def on_tried(self, step: TriedShare) -> None:
        """Remember it."""
        self.shares.append((step.share, step.judgement.outcome))


@contextmanager
def served(
    monkeypatch: pytest.MonkeyPatch, brings: Callable[[Server, TrialFigures], None] = good
) -> Iterator[tuple[Server, Client]]:
    """A server, and a client of it, in a time that passes at once."""
    server = Server(brings)

    def sleep(seconds: float) -> None:  # of the clock that the trial sees
        server.now += seconds

    clock = SimpleNamespace(monotonic=lambda: server.now, sleep=sleep)
    monkeypatch.setattr(run, "time", clock)
    yield server, cast("Client", server)
    assert server.trials.of("m") is None, "a trial is left"


def test_a_canary_grows_and_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each share for its time; the trial is over then."""
    told = Told()
    with served(monkeypatch) as (server, client):
        done = canary(client, "m", "2", replace(CANARY, sticky_header="X-User"), told)
        assert (done.is_promoted, done.default, server.default) == (True, "2", "2")
        assert told.shares == [(0.1, "fine"), (1.0, "fine")]
        assert 120 <= server.now < 125
        assert {order.gives_new for order in server.orders} == {True}
        assert {order.sticky_header for order in server.orders} == {"X-User"}
        assert [order.share for order in server.orders][-1] == 0
        assert done.steps[0].figures.new.requests == pytest.approx(610, abs=20)


def test_nobody_gets_the_old_version_between_trial_and_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trial goes on until whoever serves has seen the new default, and ends it."""
    with served(monkeypatch) as (server, client):
        server.lag = 3
        assert canary(client, "m", "2", replace(CANARY, steps="1")).is_promoted
        assert server.seen == "2"
        assert [order.share for order in server.orders[-5:]] == [1, 1, 1, 1, 0]


def test_a_shadow_gives_nobody_the_new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """And changes nothing."""
    with served(monkeypatch) as (server, client):
        done = shadow(client, "m", "2", ShadowSettings(minutes=1, share=0.3))
        assert (done.judgement.outcome, done.default, server.default) == ("fine", "1", "1")
        assert {order.gives_new for order in server.orders} == {False}
        contract = STORE / "diabetes.mar"
        assert contract.is_file()
        assert server.orders[0].absolute > 0


def test_a_canary_that_fails_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the end of its step."""
    told = Told()
    with served(monkeypatch, bad) as (server, client):
        done = canary(client, "m", "2", CANARY, told)
        assert (done.is_promoted, server.default, told.shares) == (False, "1", [(0.1, "worse")])
        assert "errors must be" in done.judgement.reason
        assert server.now < 10


def test_a_canary_without_requests_is_not_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of it."""
    with served(monkeypatch, lambda _server, _figures: None) as (server, client):
        done = canary(client, "m", "2", CANARY)
        assert (done.judgement.outcome, server.default) == ("too few", "1")


def taken_over(server: Server, _figures: TrialFigures) -> None:
    """Somebody makes it the default."""
    server.default = "2"


def removed(server: Server, _figures: TrialFigures) -> None:
    """Somebody unregisters it."""
    server.registered.pop("2", None)


def registered_anew(server: Server, figures: TrialFigures) -> None:
    """Somebody puts another archive in its place, too fast to be seen between."""
    good(server, figures)
    server.registered["2"] = "r3"


@pytest.mark.parametrize(
    ("brings", "kind", "message"),
    [
        (taken_over, ServerError, "m 1 must stay the default while 2 is tried, got 2"),
        (removed, ServerError, "m 2 must be registered beside the default"),
        (registered_anew, RolloutError, "another client has registered anew"),
    ],
)
def test_what_others_do_meanwhile_ends_a_trial(
    monkeypatch: pytest.MonkeyPatch,
    brings: Callable[[Server, TrialFigures], None],
    kind: type[MarshipError],
    message: str,
) -> None:
    """And nothing of theirs is undone."""
    with served(monkeypatch, brings) as (server, client):
        with pytest.raises(kind, match=message):
            canary(client, "m", "2", CANARY)
        assert server.default == ("2" if brings is taken_over else "1")


def test_ctrl_c_ends_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients get the default version again."""

    def interrupt(server: Server, _figures: TrialFigures) -> None:
        if server.now > 5:
            raise KeyboardInterrupt

    with served(monkeypatch, interrupt) as (server, client):
        with pytest.raises(KeyboardInterrupt):
            canary(client, "m", "2", CANARY)
        assert server.default == "1"


def test_a_server_that_is_away_for_a_moment_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of both of its acceptors count; one that stays away ends the trial."""
    lost: list[float] = []

    def restarts(server: Server, figures: TrialFigures) -> None:
        good(server, figures)
        if server.now > 20 and not lost:
            lost.append(server.now)
            server.trials = RunningTrials(lambda: None)

    with served(monkeypatch, restarts) as (_, client):
        done = shadow(client, "m", "2", ShadowSettings(minutes=1, min_requests=550))
        assert done.judgement.outcome == "fine"

    def goes(server: Server, _figures: TrialFigures) -> None:
        server.is_silent = server.now > 20

    with served(monkeypatch, goes) as (server, client):
        with pytest.raises(ServerError, match="as the server does not answer"):
            shadow(client, "m", "2", ShadowSettings(minutes=1))
        assert server.now > 20 + LEASE_S
        server.trials.expire(server.now)


def test_a_command_that_stood_still_promotes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a laptop that sleeps does: the trial has ended meanwhile, and clients had the old one."""

    class Sleeps(TrialListener):
        def on_figures(self, *_: Any) -> None:
            server.now += LEASE_S + 1 if server.now > 20 else 0

    with served(monkeypatch) as (server, client):
        with pytest.raises(ServerError, match="stood still"):
            canary(client, "m", "2", CANARY, Sleeps())
        assert server.default == "1"
        server.trials.expire(server.now)


@pytest.mark.parametrize(
    ("version", "ready", "kind", "message"),
    [
        ("1", 1, UsageError, "must not be the default version"),
        ("3", 1, NotFoundError, "m 3 must be registered beside 1 to be tried"),
        ("2", 0, UsageError, "marship scale m 1 --version 2"),
    ],
)
def test_a_version_that_cannot_be_tried_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, ready: int, kind: type[Exception], message: str
) -> None:
    """Before anything begins."""
    with served(monkeypatch) as (server, client):
        server.ready = ready
        with pytest.raises(kind, match=message):
            canary(client, "m", version, CANARY)
        assert not server.orders


@pytest.mark.parametrize("steps", ["", "0.5,0.1", "0.1,0.1", "0,1", "0.5,2", "half", "nan", "-1"])
def test_steps_are_growing_shares(steps: str) -> None:
    """Or refused by what was given."""
    with pytest.raises(UsageError, match="steps must be growing shares"):
        CanarySettings(steps=steps)


@pytest.mark.parametrize("name", ["", "X User", "X-User:", "Größe", "a\nb"])
def test_a_sticky_header_has_a_name(name: str) -> None:
    """Else no request would have it, or every one would fail."""
    with pytest.raises(UsageError, match="sticky_header must be the name of a header"):
        CanarySettings(sticky_header=name)
