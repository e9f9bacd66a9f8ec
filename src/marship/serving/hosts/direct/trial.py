"""A new version on trial: which requests it takes part in, and how both versions did.

Nothing here knows connections: the acceptor and Ray's front ask which way a request goes, and tell
what came of it. A trial lasts as long as whoever ordered it renews it.
"""

import random
import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, Self

from marship.errors import MarshipError, ServerError

LEASE_S = 10.0
"""A trial that nobody has renewed for so long is over."""
TOOK_S = tuple(1e-4 * 1.1**step for step in range(150))
"""Upper bounds of times, 0.1 ms to 147 s, each a tenth above the one before; one more class has
what is longer."""
_POINTS = 1 << 64
_MOST_EXAMPLES = 5


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
class VersionResponse:
    """A version's response to one request.

    Attributes:
        status: Of HTTP.
        took_s: Until it was there; a stream's first part.
        content_type: Of the body.
        body: None where it is not compared: of a stream, or too large.
    """

    status: int
    took_s: float
    content_type: str = ""
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a comparison of two responses found.

    Attributes:
        differs: None where they cannot be compared.
        gap: How far numbers that differ too much are apart, at most.
        place: Where the first difference is.
    """

    differs: bool | None
    gap: float = 0.0
    place: str = ""


@dataclass(slots=True)
class Arm:
    """One version's part.

    Attributes:
        requests: Those that it got of the share.
        errors: Responses of 500 and above, and refusals of what the other version accepted.
        took: Of all others, how many took how long, by `TOOK_S`.
    """

    requests: int = 0
    errors: int = 0
    took: list[int] = field(default_factory=lambda: [0] * (len(TOOK_S) + 1))

    def note(self, outcome: VersionResponse, other: VersionResponse | None) -> None:
        """Count a response."""
        self.requests += 1
        is_accepted = other is not None and other.status < HTTPStatus.BAD_REQUEST
        least = HTTPStatus.BAD_REQUEST if is_accepted else HTTPStatus.INTERNAL_SERVER_ERROR
        if outcome.status >= least:
            self.errors += 1
        else:
            self.took[bisect_left(TOOK_S, outcome.took_s)] += 1


@dataclass(slots=True)
class TrialFigures:
    """What came of a trial, since one process takes part in it.

    Attributes:
        source: An id of the process's part.
        asked: Predictions for the model without a version.
        taken: Those in the share.
        absent: Those in the share that the default version served, as the new one had no worker.
        dropped: Second requests that were not sent, as too many were under way.
        compared: Pairs of responses that were compared.
        differing: Those that differ by more than the tolerance.
        incomparable: Pairs that were not compared: streams, large ones, other types of media.
        largest: How far numbers in those that differ are apart, at most.
        default: The default version's part.
        new: The new version's.
        examples: Where some of the differences are.
    """

    source: str = ""
    asked: int = 0
    taken: int = 0
    absent: int = 0
    dropped: int = 0
    compared: int = 0
    differing: int = 0
    incomparable: int = 0
    largest: float = 0.0
    default: Arm = field(default_factory=Arm)
    new: Arm = field(default_factory=Arm)
    examples: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        arms = {name: Arm(**value[name]) for name in ("default", "new")}
        return cls(**{**value, **arms})

    def note(self, default: VersionResponse | None, new: VersionResponse | None) -> None:
        """Count what came back of a request in the share; None came from a version not asked."""
        for arm, outcome, other in ((self.default, default, new), (self.new, new, default)):
            if outcome is not None:
                arm.note(outcome, other)

    def note_likeness(self, name: str, found: Likeness) -> None:
        """Count a comparison.

        Args:
            name: The request's id.
            found: Its result.
        """
        if found.differs is None:
            self.incomparable += 1
            return
        self.compared += 1
        if found.differs:
            self.differing += 1
            self.largest = max(self.largest, found.gap)
            if len(self.examples) < _MOST_EXAMPLES:
                self.examples.append(f"request {name}: {found.place}")


def added(parts: Iterable[TrialFigures]) -> TrialFigures:
    """The sum of figures."""
    whole = TrialFigures()
    for part in parts:
        for one in fields(TrialFigures):
            mine, theirs = getattr(whole, one.name), getattr(part, one.name)
            if isinstance(mine, Arm):
                mine.requests += theirs.requests
                mine.errors += theirs.errors
                mine.took = [a + b for a, b in zip(mine.took, theirs.took, strict=True)]
            elif one.name == "largest":
                whole.largest = max(mine, theirs)
            elif one.name == "examples":
                whole.examples = (mine + theirs)[:_MOST_EXAMPLES]
            elif one.name != "source":
                setattr(whole, one.name, mine + theirs)
    return whole


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
        return [TrialState(trial.order, trial.figures) for trial in self._all.values()]

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
        return trial.figures

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
        except (
            MarshipError,
            TypeError,
            ValueError,
        ) as error:  # of a command of another version of marship
            return {"refused": str(error)}

    def _end(self, trial: RunningTrial | None) -> TrialFigures:
        if trial is None:
            return TrialFigures()
        del self._all[trial.order.model]
        self._on_change()
        return trial.figures

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
