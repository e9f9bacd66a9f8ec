"""The acceptor's registry of workers: their load, and the models and versions that they serve."""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from marship.serving.hosts.direct.slots import BEGUN, HANDED, PARTLY, Slots
from marship.serving.hosts.direct.sockets import Channel, Packet
from marship.serving.hosts.direct.trial import RunningTrials
from marship.serving.metrics import TIMES_S

if TYPE_CHECKING:
    from marship.serving.hosts.direct.death import Death


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the engine says of a model now.

    Attributes:
        default: The version that is meant where none is named.
        versions: Those that are registered.
        wanted: How many workers each version should have.
        ready: How many the engine has.
    """

    default: str
    versions: tuple[str, ...]
    wanted: dict[str, int] = field(default_factory=dict)
    ready: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Staff:
    """The workers of a version.

    Attributes:
        model: The model.
        version: Its version.
        ready: How many serve, by the engine, which knows of a death later than the acceptor.
        wanted: How many there should be.
        ongoing: Requests that wait or run at them.
        here: How many the acceptor has.
    """

    model: str
    version: str
    ready: int
    wanted: int
    ongoing: int
    here: int = 0


class Seat:
    """A worker as the acceptor sees it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.slots: Slots | None = None
        self.pid = 0
        self.timeout_s: float | None = None  # of a batch; None: it is not watched
        self.heard_at = math.inf  # when it last said anything, while requests were under way
        self.is_stuck = False
        self.is_gone = self.is_leaving = False
        self.drained: list[Seat] = []  # by whoever is at the other end
        self.drainers: set[Seat] = set()
        self.ends: tuple[str, str] | None = (
            None  # a model and version: none of its workers will be left
        )
        self.model = self.version = ""
        self.connections = self.requests = 0
        self.done: list[float] = []  # as its metrics have it; nothing where it says nothing of it
        self.handed = self.adopted = 0  # connections: sent to it, and those it says it has got
        self.closing = 0  # connections that it was ordered to close, and may still have
        self.state_sent: tuple[bool, tuple[str, ...]] | None = None
        self.description = b""  # of its model, for the OpenAPI document

    @property
    def held(self) -> int:
        """Its connections, those on their way to it among them."""
        return self.connections + self.handed - self.adopted

    @property
    def open(self) -> int:
        """The same as the acceptor sees it, at once and not by the worker's last report."""
        return self.held if self.slots is None else len(self.slots)

    @property
    def ongoing(self) -> int:
        """Requests that wait or run at it; a moment old where it does not show its connections."""
        return self.requests if self.slots is None else self.slots.count(HANDED, BEGUN, PARTLY)

    @property
    def load(self) -> tuple[int, int, int]:
        """The less, the sooner it gets the next connection; workers that are idle take turns."""
        return (self.held, self.requests, self.handed)

    def hand(self, fd: int, unread: bytes, returns: int = 0, came_s: float | None = None) -> None:
        """Pass a connection on to the worker.

        Args:
            fd: Its descriptor, closed when it is sent.
            unread: What was read of it.
            returns: How often workers have given it back without a response.
            came_s: When that began to come, by `time.perf_counter`; None where the request has
                a span of its own here.

        Raises:
            OSError: The file table is full; the connection is closed.
        """
        slot = self.slots.hold(fd, unread, returns) if self.slots is not None else None
        try:
            packet = Packet.with_connection("connection", fd, unread, slot)
        except OSError:
            os.close(fd)
            if self.slots is not None and slot is not None:
                os.close(self.slots.take(slot).fd)
            raise
        if unread:  # else its next request comes whenever it likes
            packet.facts = {**packet.facts, "came": came_s, "at": time.perf_counter()}
        self.handed += 1
        self.channel.send(packet)


class Seats:
    """All workers that there are, and what the engine says of their models.

    Attributes:
        knows_models: Whether the engine has said anything yet.
        ending: Versions that are about to have no workers, or to be unregistered.
        on_death: Called when a worker has ended that said nothing of it.
        trials: While one runs no worker takes what names no version: see `split`.
    """

    def __init__(self) -> None:
        self._seats: dict[tuple[str, str], list[Seat]] = {}
        self._models: dict[str, ModelState] = {}
        self.knows_models = False
        self.ending: list[tuple[str, str]] = []
        self.on_death: Callable[[Death], None] = lambda _death: None
        self._done: dict[tuple[str, str], list[float]] = {}
        self.trials = RunningTrials(self._send_state)

    def did(self, seat: Seat, done: list[float]) -> None:
        """Add what a worker did since its last report to what those of its version did."""
        before, seat.done = seat.done, done
        named = (seat.model, seat.version)
        sums = self._done.setdefault(named, [0.0] * len(done))
        if len(before) == len(sums) == len(done):
            more = (new - old for new, old in zip(done, before, strict=True))
            self._done[named] = [whole + part for whole, part in zip(sums, more, strict=True)]

    def load_of(self, model: str, version: str | None) -> dict[str, Any]:
        """What the workers of a version have in hand, and did since this acceptor started."""
        named = self.named(model, version)
        seats = self._seats.get(named, [])
        return {
            "ongoing": sum(seat.ongoing for seat in seats),
            "occupied": sum(seat.requests > 0 for seat in seats),  # no client that reads slowly
            "done": self._done.get(named, []),
            "took_s": TIMES_S,
        }

    def follow(self, models: dict[str, ModelState]) -> None:
        """Take the state of all models, and tell workers what changed for them."""
        self._models, self.knows_models = models, True
        self.trials.follow(self.serving)
        self._send_state()

    def serving(self, model: str) -> tuple[str, ...]:
        """A model's versions as the engine has them, the default one first."""
        state = self._models.get(model)
        if state is None:
            return ()
        return (state.default, *(one for one in state.versions if one != state.default))

    def add(self, seat: Seat) -> None:
        """A worker is ready; one that is gone, leaving, or here already changes nothing."""
        if (
            seat.is_gone
            or seat.is_leaving
            or seat in self._seats.get((seat.model, seat.version), [])
        ):
            return
        self._seats.setdefault((seat.model, seat.version), []).append(seat)
        self._send_state()
        self.level()

    def remove(self, seat: Seat) -> None:
        """A worker is gone, or about to end."""
        seats = self._seats.get((seat.model, seat.version), [])
        if seat in seats:
            seats.remove(seat)
        if not seats:
            self._seats.pop((seat.model, seat.version), None)
        self._send_state()

    def _send_state(self) -> None:
        for (model, version), seats in list(self._seats.items()):  # a send may find one gone
            state = self._models.get(model)
            if self.knows_models and (state is None or version not in state.versions):
                continue  # it was registered after the engine's state was read, or is about to end
            is_default = self._default(model) == version and self.trials.of(model) is None
            state_sent = (is_default, state.versions if state else (version,))
            for seat in list(seats):
                if seat.state_sent != state_sent:
                    seat.state_sent = state_sent
                    seat.channel.send(
                        Packet("state", {"default": state_sent[0], "versions": list(state_sent[1])})
                    )

    def is_ending(self, model: str, version: str | None) -> bool:
        """Whether a version, or the default one, is about to have no workers."""
        return self.named(model, version) in self.ending

    def named(self, model: str, version: str | None) -> tuple[str, str]:
        """A model with the version that is meant."""
        return model, version or self._default(model) or ""

    def of(self, model: str, version: str | None) -> list[Seat]:
        """The workers of a version, or of the default one."""
        return list(self._seats.get(self.named(model, version), []))

    def _default(self, model: str) -> str | None:
        """The version for requests without one: the only one, until the engine names one."""
        if state := self._models.get(model):
            return state.default
        versions = {version for name, version in self._seats if name == model}
        return versions.pop() if len(versions) == 1 else None

    def least_busy(self, model: str, version: str | None) -> Seat | None:
        """The worker to give a connection to; None where there is none for the version.

        A version that the engine has unregistered is not to be seen, even while its worker lives.
        A worker that does not know yet that its version is the default one gives requests
        without a version back: it gets none.
        """
        seats = self._seats.get(self.named(model, version), [])
        if version is None:
            version = self._default(model)
            seats = [seat for seat in seats if seat.state_sent is not None and seat.state_sent[0]]
        if not seats:
            return None
        if self.knows_models and not self.is_registered(model, version):
            is_older = any(seat.state_sent is not None for seat in seats)
            if is_older:  # than what the engine says
                return None
        return min(seats, key=_load)

    def staff(self) -> list["Staff"]:
        """The workers of every version that the engine knows, or that has any."""
        named = {(m, v) for m, state in self._models.items() for v in state.versions}
        return [
            Staff(model, version, self._ready(model, version), self._wanted(model, version),
                  sum(seat.ongoing for seat in self._seats.get((model, version), [])),
                  self.count(model, version))
            for model, version in sorted(named | set(self._seats))
        ]  # fmt: skip

    def _ready(self, model: str, version: str) -> int:
        here, state = len(self._seats.get((model, version), [])), self._models.get(model)
        return max(here, state.ready.get(version, 0) if state else 0)

    def _wanted(self, model: str, version: str) -> int:
        state = self._models.get(model)
        return state.wanted.get(version, 0) if state else 0

    def is_registered(self, model: str, version: str | None) -> bool:
        """Whether the engine knows a version of a model, or any where none is named."""
        state = self._models.get(model)
        return state is not None and (version is None or version in state.versions)

    def is_staffed(self, model: str, version: str | None) -> bool:
        """Whether the engine has a worker of a version, or of the default one, that is ready."""
        state = self._models.get(model)
        return state is not None and state.ready.get(version or state.default, 0) > 0

    def is_served(self, model: str, version: str) -> bool:
        """Whether a version has a worker, here or the engine's alone, and is to keep it."""
        if self.is_ending(model, version):
            return False
        has_one = self.least_busy(model, version) is not None
        return has_one or self.is_staffed(model, version)

    def is_closed(self, model: str, version: str | None) -> bool:
        """Whether the engine has no worker of a version, or of the default one, and wants none."""
        if not self.knows_models:
            return False
        if not self.is_registered(model, version):
            return True
        state = self._models[model]
        version = version or state.default
        return not (state.wanted.get(version) or state.ready.get(version))

    def served(self) -> Iterator[tuple[str, str, bool, bool, bytes]]:
        """Each version with whether it is the default one, and ready, and what it is."""
        named = {(name, v) for name, state in self._models.items() for v in state.versions}
        for name, version in sorted(named if self.knows_models else self._seats):
            seats = self._seats.get((name, version), [])
            about = next((seat.description for seat in seats if seat.description), b"")
            is_ready = bool(seats) or self.is_staffed(name, version)
            yield name, version, self._default(name) == version, is_ready, about

    @property
    def is_complete(self) -> bool:
        """Whether every model has the workers that are wanted."""
        return self.knows_models and all(has >= wanted for has, wanted in self._staffed())

    def _staffed(self) -> Iterator[tuple[int, int]]:
        """How many workers each version has, and should have."""
        for model, state in self._models.items():
            for version, wanted in state.wanted.items():
                yield self._ready(model, version), wanted

    @property
    def held(self) -> int:
        """How many connections all workers have."""
        return sum(seat.open for seats in self._seats.values() for seat in seats)

    @property
    def closing(self) -> int:
        """How many connections workers are about to close."""
        return sum(seat.closing for seats in self._seats.values() for seat in seats)

    def make_room(self, state: int, most: int) -> bool:
        """Have the worker with most connections close some in a state; whether any has one."""
        seats = (seat for seats in self._seats.values() for seat in seats)
        for seat in sorted(seats, key=_load, reverse=True):
            has = seat.slots.count(state) if seat.slots is not None else 0
            if (count := min(most, has - seat.closing)) > 0:
                seat.closing += count
                seat.channel.send(Packet("make room", {"state": state, "count": count}))
                return True
        return False

    def count(self, model: str, version: str) -> int:
        """How many workers a version has."""
        return len(self._seats.get((model, version), []))

    def level(self) -> None:
        """Let workers that have more connections than others of their version give some back."""
        for seats in filter(None, list(self._seats.values())):  # a send may find one gone
            least, most = min(seats, key=_load), max(seats, key=_load)
            if (count := (most.connections - least.held) // 2) > 0:
                most.channel.send(Packet("give back", {"count": count}))


def _load(seat: Seat) -> tuple[int, int, int]:
    return seat.load
