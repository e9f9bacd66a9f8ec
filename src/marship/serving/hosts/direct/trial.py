"""A new version on trial: which requests it takes part in, and how both versions did.

Nothing here knows connections: the acceptor and Ray's front ask which way a request goes, and tell
what came of it. A trial lasts as long as whoever ordered it renews it.
"""

import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Self

from marship.errors import MarshipError, ServerError
from marship.serving.hosts.direct.outcome import Arm, TrialFigures

LEASE_S = 10.0
"""A trial that nobody has renewed for so long is over."""
_POINTS = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOrder:
    """What a trial is to be.

    Attributes:
        owner: Who orders it: an id of one run of a command.
        model: The model.
        default: The version that serves requests without a version.
        version: The new version.
        share: Of these requests, those that both versions get, 0 to 1; 0 ends the trial.
        gives_new: Whether clients get the new version's responses to them (a canary), or the
            default one's (a shadow).
        sticky_header: The header whose value decides; empty: chance does.
        absolute: What numbers in the responses may differ by, and
        relative: as a share of the default version's.

    Raises:
        ValueError: The share is none, or the header's name.
    """

    owner: str
    model: str
    default: str
    version: str
    share: float
    gives_new: bool
    sticky_header: str = ""
    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        """Check what requests are held against."""
        if not (0 <= self.share <= 1 and self.sticky_header.isascii()):
            raise ValueError(f"share {self.share}, header {self.sticky_header!r}")

    def takes(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request is in the share.

        A header's value is a point in [0, 1) that is the same in every process: a larger share
        takes in more clients, and lets none go.

        Args:
            headers: Names in lower case, and values.
        """
        value = headers.get(self.sticky_header.lower().encode()) or b""
        if not (self.sticky_header and value):
            return random.random() < self.share  # noqa: S311  it decides about nothing secret
        named = b"\0".join((self.model.encode(), self.version.encode(), value))
        point = int.from_bytes(blake2b(named, digest_size=8).digest())
        return point < self.share * _POINTS


@dataclass(frozen=True, slots=True)
class TrialState:
    """A trial that runs: what it is to be, and what came of it."""

    order: TrialOrder
    figures: TrialFigures

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(TrialOrder(**value["order"]), TrialFigures.from_json(value["figures"]))


class TrialWaits:
    """The requests that wait for a version.

    Args:
        arm: The version's part in the figures.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.open: dict[TrialWait, float] = {}  # the oldest first
        self.answered_at = 0.0

    def look(self, now: float) -> None:
        """Note how many wait, and for how long none of them has had a response."""
        oldest = next(iter(self.open.values()), now)
        self.arm.waiting, self.arm.oldest_s = len(self.open), now - oldest
        self.arm.silent_s = now - max(self.answered_at, oldest)


class TrialWait:
    """A request that waits for a version.

    Args:
        waits: All that wait for it.
    """

    def __init__(self, waits: TrialWaits) -> None:
        self._waits = waits
        waits.open[self] = time.monotonic()

    def end(self) -> None:
        """Note that the response, or its first part, is there."""
        if self._waits.open.pop(self, None) is not None:
            self._waits.answered_at = time.monotonic()

    def drop(self) -> None:
        """Note that the version is gone: another one responds."""
        self._waits.open.pop(self, None)

    def leave(self) -> None:
        """Note that the client has left; it is nothing where the response was there before."""
        began = self._waits.open.pop(self, None)
        if began is not None:
            self._waits.arm.note_left(time.monotonic() - began)


class RunningTrial:
    """One trial as a process takes part in it.

    Attributes:
        order: What it is to be, as last renewed.
        figures: What came of it here.
        renewed_at: When it was renewed.
    """

    def __init__(self, order: TrialOrder, now: float) -> None:
        self.order, self.renewed_at = order, now
        self.figures = TrialFigures(source=secrets.token_hex(8))
        self._waits = {
            order.default: TrialWaits(self.figures.default),
            order.version: TrialWaits(self.figures.new),
        }

    def begin(self, version: str) -> "TrialWait":
        """Note that a version gets a request of the share."""
        return TrialWait(self._waits[version])

    def is_level(self, given: str, other: str) -> bool:
        """Whether the version that gets a copy has no more under way than the one that gives.

        Clients wait for the latter: a version that is slow for a moment would get ever more copies
        meanwhile, and be measured with a queue that the other one never has.
        """
        return len(self._waits[other].open) <= len(self._waits[given].open)

    def seen(self) -> TrialFigures:
        """The figures, with what is under way now."""
        now = time.monotonic()
        for waits in self._waits.values():
            waits.look(now)
        return self.figures

    def way(self, headers: Mapping[bytes, bytes]) -> tuple[str, str | None]:
        """The version whose response a client gets, and the one that gets a copy of its request.

        Args:
            headers: Of the request, names in lower case.
        """
        order, figures = self.order, self.figures
        figures.asked += 1
        if not order.takes(headers):
            return order.default, None
        figures.taken += 1
        versions = (order.version, order.default)
        return versions if order.gives_new else versions[::-1]


class RunningTrials:
    """The trials of all models, one of each at most.

    Args:
        on_change: Called when one begins or ends.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._all: dict[str, RunningTrial] = {}
        self._on_change = on_change

    def of(self, model: str) -> RunningTrial | None:
        """A model's trial."""
        return self._all.get(model)

    def states(self) -> list[TrialState]:
        """Those that run."""
        return [TrialState(trial.order, trial.seen()) for trial in self._all.values()]

    def renew(self, order: TrialOrder, now: float, serving: tuple[str, ...]) -> TrialFigures:
        """Begin a trial, let it go on, change its share, or end it.

        With another share figures begin anew.

        Args:
            order: Of the same owner as before.
            now: By a monotonic clock.
            serving: The model's versions now, the default one first.

        Raises:
            ServerError: The versions are others now, or a trial of another owner runs.
        """
        found = self._all.get(order.model)
        if found is not None and found.order.owner != order.owner:
            raise ServerError(
                f"{order.model} must have one trial at a time, got one of "
                f"{found.order.version} that runs. Wait for it, or end its command."
            )
        if not order.share:
            return self._end(found)
        try:
            _check(order, serving)
        except ServerError:
            self._end(found)
            raise
        if found is None or found.order != order:
            self._all[order.model] = RunningTrial(order, now)
            self._on_change()
        trial = self._all[order.model]
        trial.renewed_at = now
        return trial.seen()

    def reply(
        self, facts: Mapping[str, Any], now: float, serving: Callable[[str], tuple[str, ...]]
    ) -> dict[str, Any]:
        """What a command is told: figures, or why its trial is refused.

        Args:
            facts: Of a `TrialOrder`.
            now: By a monotonic clock.
            serving: A model's versions now, the default one first.
        """
        try:  # the command may be of another version of marship
            order = TrialOrder(**facts)
            return {"figures": self.renew(order, now, serving(order.model)).to_json()}
        except (MarshipError, TypeError, ValueError) as error:
            return {"refused": str(error)}

    def _end(self, trial: RunningTrial | None) -> TrialFigures:
        if trial is None:
            return TrialFigures()
        del self._all[trial.order.model]
        self._on_change()
        return trial.seen()

    def expire(self, now: float) -> None:
        """End those that nobody renews."""
        for trial in list(self._all.values()):
            if now - trial.renewed_at > LEASE_S:
                self._end(trial)

    def follow(self, serving: Callable[[str], tuple[str, ...]]) -> None:
        """End those whose versions have changed.

        Args:
            serving: A model's versions now, the default one first.
        """
        for trial in list(self._all.values()):
            try:
                _check(trial.order, serving(trial.order.model))
            except ServerError:
                self._end(trial)


def _check(order: TrialOrder, serving: tuple[str, ...]) -> None:
    """Check that the versions are still what the trial was ordered for.

    Raises:
        ServerError: They are not.
    """
    named = f"{order.model} {order.default} must stay the default while {order.version} is tried"
    if not serving:
        raise ServerError(f"{named}, got no such model.")
    if serving[0] != order.default:
        raise ServerError(f"{named}, got {serving[0]} as the default.")
    if order.version not in serving or order.version == order.default:
        raise ServerError(
            f"{order.model} {order.version} must be registered beside the default while it is "
            f"tried, got {', '.join(serving)}."
        )
