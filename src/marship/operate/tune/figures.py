"""What was measured of a candidate, and which of two is better."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from marship.operate.tune.candidate import Candidate

_FAILED_SHARE = 0.001
_FEW = 100
_WHOLE_MS = 999.5
NEVER_MS = 1e9
"""The p99 where no request came, or none was answered."""
_FAR = 5.0
"""Times of the limit that a first look, which warms up, does not excuse."""


@dataclass(frozen=True, slots=True)
class LoadSlice:
    """One stretch of load.

    Attributes:
        seconds: Its length.
        answered: Requests that were answered in it with status 200.
        failed: Requests that were refused or lost.
        p50_ms: The median of their times; from when they were due, where they come at a rate.
        p99_ms: What 99 of 100 took.
        generator: The share of one core that making the load took.
    """

    seconds: float
    answered: int
    failed: int
    p50_ms: float
    p99_ms: float
    generator: float = 0.0

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.answered + self.failed

    @property
    def rps(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured of a candidate.

    Attributes:
        candidate: The candidate.
        slices: Stretches of load; empty where it does not serve.
        memory_mb: Of the server's processes, shared pages counted once.
        quality: The share of requests answered as by the shipped settings.
        fault: Why it does not serve; empty if it does.
        is_hopeless: Whether it was stopped at the first look.
    """

    candidate: Candidate
    slices: tuple[LoadSlice, ...] = ()
    memory_mb: float = 0.0
    quality: float = 1.0
    fault: str = ""
    is_hopeless: bool = False

    def and_then(self, later: "Measured") -> "Measured":
        """Both measurements of one candidate."""
        return Measured(
            self.candidate,
            self.slices + later.slices,
            max(self.memory_mb, later.memory_mb),
            min(self.quality, later.quality),
            later.fault or self.fault,
            self.is_hopeless or later.is_hopeless,
        )

    @property
    def rps(self) -> float:
        """Answers a second: the median of the slices."""
        return statistics.median(one.rps for one in self.slices) if self.slices else 0.0

    @property
    def p99_ms(self) -> float:
        """The median of the slices' 99th percentiles."""
        if not self.slices:
            return math.inf
        return statistics.median(one.p99_ms for one in self.slices)

    @property
    def requests(self) -> int:
        """The fewest of a slice: so many its p99 is of."""
        return min((one.requests for one in self.slices), default=0)

    @property
    def failed_share(self) -> float:
        """The share of requests that failed."""
        failed = sum(one.failed for one in self.slices)
        sent = failed + sum(one.answered for one in self.slices)
        return failed / sent if sent else 1.0


@dataclass(frozen=True, slots=True)
class Demands:
    """What a candidate must keep, and what is wanted.

    Attributes:
        p99_ms: What 99 of 100 requests may take.
        min_quality: The least share of unchanged responses.
        memory_mb: The most memory; None without a limit.
        is_open: Whether requests come at a rate: then a smaller p99 is better, else more answers.
    """

    p99_ms: float
    min_quality: float = 0.99
    memory_mb: float | None = None
    is_open: bool = False

    def score(self, found: Measured | LoadSlice) -> float:
        """What is wanted, the larger the better: answers a second, or 1 / p99."""
        return 1000.0 / found.p99_ms if self.is_open else found.rps

    def objection(self, found: Measured) -> str:
        """Why a candidate cannot be chosen; empty if it can."""
        if found.fault:
            return found.fault
        if found.quality < self.min_quality:
            return f"{found.quality:.1%} of the responses are those of the shipped settings"
        if self.memory_mb is not None and found.memory_mb > self.memory_mb:
            return f"{found.memory_mb:.0f} MB of memory"
        if self.failed_share_is_high(found):
            return f"{found.failed_share:.1%} of the requests failed"
        if found.p99_ms > self.p99_ms:
            return f"p99 of {in_ms(found.p99_ms)} ms"
        return ""

    def failed_share_is_high(self, found: Measured) -> bool:
        """Whether more than one request of a thousand failed."""
        return found.failed_share > _FAILED_SHARE

    def is_hopeless(self, first: LoadSlice, least_score: float) -> bool:
        """Whether the first look at a candidate is enough: at a rate, p99 alone tells."""
        return first.p99_ms > _FAR * self.p99_ms or (not self.is_open and first.rps < least_score)

    def ranked(self, found: Sequence[Measured]) -> list[Measured]:
        """Best first: those within the limits, then by p99."""
        return sorted(found, key=self._rank)

    def _rank(self, found: Measured) -> tuple[bool, float]:
        is_out = bool(self.objection(found))
        return is_out, found.p99_ms if is_out else -self.score(found)


def in_ms(value: float) -> str:
    """Milliseconds with three digits, or all before the point; - without an answer.

    Example:
        >>> in_ms(12.345), in_ms(5461.8)
        ('12.3', '5,462')
    """
    if value >= NEVER_MS:
        return "-"
    return f"{value:.3g}" if value < _WHOLE_MS else f"{value:,.0f}"


def of_few(requests: int) -> str:
    """What is said beside a p99 of fewer than 100 requests, which is the slowest of them.

    Example:
        >>> of_few(10), of_few(100)
        (' (of 10)', '')
    """
    return f" (of {requests})" if requests < _FEW else ""


def front(found: Sequence[Measured]) -> list[Measured]:
    """Those that none beats in both answers a second and p99, by answers a second."""
    best, kept = math.inf, []
    for one in sorted(found, key=lambda each: (-each.rps, each.p99_ms)):
        if one.p99_ms < best:
            best = one.p99_ms
            kept.append(one)
    return kept[::-1]
