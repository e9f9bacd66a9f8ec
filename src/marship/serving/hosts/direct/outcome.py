"""What came of a trial: how both versions responded, how fast, and how alike."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from http import HTTPStatus
from typing import Any, Self

TOOK_S = tuple(1e-4 * 1.1**step for step in range(150))
"""Upper bounds of times, 0.1 ms to 147 s, each a tenth above the one before; one more class has
what is longer."""
_MOST_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class VersionResponse:
    """A version's response to one request.

    Attributes:
        status: Of HTTP.
        took_s: Until it was there; a stream's first part.
        content_type: Of the body.
        body: None where it is not compared: of a stream, or too large.
        json_bytes: Of KServe's binary tensors: how many of the body's bytes are JSON, in digits.
    """

    status: int
    took_s: float
    content_type: str = ""
    body: bytes | None = None
    json_bytes: str = ""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a comparison of two responses found.

    Attributes:
        differs: None where they cannot be compared.
        gap: How far numbers that differ too much are apart, at most.
        place: Where the first difference is.
        is_other_form: Whether a program that reads one cannot read the other.
        is_keyless: Whether keys are missing, and nothing else of the form.
        keys: A digest of the default version's keys; empty where nobody looked.
        lengths: Of the default version's lists of numbers; None where nobody looked.
        new_lengths: Of the new version's.
        follows_rows: Whether the default version's response has as many rows as the request; None
            where nobody can tell.
        loses_rows: Whether it has, and the new version's has another number.
    """

    differs: bool | None
    gap: float = 0.0
    place: str = ""
    is_other_form: bool = False
    is_keyless: bool = False
    keys: str = ""
    lengths: tuple[int, ...] | None = None
    new_lengths: tuple[int, ...] | None = None
    follows_rows: bool | None = None
    loses_rows: bool = False


@dataclass(slots=True)
class Arm:
    """One version's part.

    Attributes:
        requests: Those that it got of the share.
        errors: Responses of 500 and above, and refusals of what the other version accepted.
        unjudged: Refusals of what the other version was not asked.
        took: Of accepted requests, how many took how long, by `TOOK_S`; where the client left
            before, how long it waited.
        waiting: Requests under way.
        silent_s: For how long none of them has had a response.
        oldest_s: For how long the first of them waits.
    """

    requests: int = 0
    errors: int = 0
    unjudged: int = 0
    took: list[int] = field(default_factory=lambda: [0] * (len(TOOK_S) + 1))
    waiting: int = 0
    silent_s: float = 0.0
    oldest_s: float = 0.0

    @property
    def judged(self) -> int:
        """The requests of which it is known whether they are errors."""
        return self.requests - self.unjudged

    def note(self, outcome: VersionResponse, other: VersionResponse | None) -> None:
        """Count a response."""
        self.requests += 1
        if outcome.status < HTTPStatus.BAD_REQUEST:
            self._time(outcome.took_s)
        elif outcome.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.errors += 1
        elif other is None:
            self.unjudged += 1
        else:
            self.errors += other.status < HTTPStatus.BAD_REQUEST

    def note_left(self, waited_s: float) -> None:
        """Count a request whose client left before its response."""
        self.requests += 1
        self._time(waited_s)

    def _time(self, seconds: float) -> None:
        self.took[bisect_left(TOOK_S, seconds)] += 1

    def add(self, other: "Arm") -> None:
        """Add another process's part."""
        self.requests += other.requests
        self.errors += other.errors
        self.unjudged += other.unjudged
        self.took = [a + b for a, b in zip(self.took, other.took, strict=True)]
        self.waiting += other.waiting
        self.silent_s = max(self.silent_s, other.silent_s)
        self.oldest_s = max(self.oldest_s, other.oldest_s)


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
        unreadable: Pairs of which a program that reads one response cannot read the other.
        keyless: Pairs of which the new version's response lacks keys.
        keys: A digest of the default version's keys, as far as all of its responses had the same;
            None before the first, empty where they vary.
        unlike: Pairs whose lists of numbers have other lengths.
        lengths: Those of the default version's lists, as far as all of its responses had the same;
            None before the first, empty where they vary.
        rowless: Pairs of which the new version's response has another number of rows than the
            request, and the default version's has not.
        follows_rows: Whether all of the default version's responses have as many rows as their
            requests; None before the first.
        incomparable: Pairs that were not compared: streams, large ones, pictures, sealed ones.
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
    unreadable: int = 0
    keyless: int = 0
    keys: str | None = None
    unlike: int = 0
    lengths: list[int] | None = None
    rowless: int = 0
    follows_rows: bool | None = None
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
        self.unreadable += found.is_other_form
        self.keyless += found.is_keyless
        if found.keys:
            self.keys = found.keys if self.keys in (None, found.keys) else ""
        if found.lengths is not None:
            self.unlike += found.new_lengths != found.lengths
            self.lengths = _same(self.lengths, list(found.lengths))
        self.rowless += found.loses_rows
        self.follows_rows = _all(self.follows_rows, found.follows_rows)
        if found.differs:
            self.differing += 1
            self.largest = max(self.largest, found.gap)
            if len(self.examples) < _MOST_EXAMPLES:
                self.examples.append(f"request {name}: {found.place}")


def _same(one: list[int] | None, other: list[int] | None) -> list[int] | None:
    """Lengths that both have; empty where they differ."""
    if one is None or other is None:
        return other if one is None else one
    return one if one == other else []


def _all(one: bool | None, other: bool | None) -> bool | None:
    """Whether both are so, as far as it is known."""
    if one is None or other is None:
        return other if one is None else one
    return one and other


def added(parts: Iterable[TrialFigures]) -> TrialFigures:
    """The sum of figures."""
    whole = TrialFigures()
    for part in parts:
        for one in fields(TrialFigures):
            mine, theirs = getattr(whole, one.name), getattr(part, one.name)
            if isinstance(mine, Arm):
                mine.add(theirs)
            elif one.name == "keys":
                parts_keys = {mine, theirs} - {None}
                whole.keys = "" if len(parts_keys) > 1 else next(iter(parts_keys), None)
            elif one.name == "lengths":
                whole.lengths = _same(mine, theirs)
            elif one.name == "follows_rows":
                whole.follows_rows = _all(mine, theirs)
            elif one.name == "largest":
                whole.largest = max(mine, theirs)
            elif one.name == "examples":
                whole.examples = (mine + theirs)[:_MOST_EXAMPLES]
            elif one.name != "source":
                setattr(whole, one.name, mine + theirs)
    return whole
