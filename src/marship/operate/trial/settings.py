"""How a new version is tried: apart from the trial, so that the command line loads at once."""

import re
from dataclasses import dataclass

from marship.errors import UsageError
from marship.settings import Settings, setting

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A name (RFC 9110, 5.6.2)."""


@dataclass(frozen=True)
class TrialLimits(Settings):
    """What a new version must keep to.

    Example:
        >>> from marship.operate.trial.settings import TrialLimits
        >>> TrialLimits(max_error_rate=0.001).max_latency_ratio
        1.5
    """

    max_error_rate: float = setting(
        0.01, "share of errors beyond the default version's", minimum=0, maximum=1
    )
    max_latency_ratio: float = setting(
        1.5, "p50 and p99 of the new version to the default one's", minimum=1
    )
    max_differing: float = setting(
        1.0,
        "share of responses that differ beyond the tolerance",
        minimum=0,
        maximum=1,
    )
    tolerance: float | None = setting(
        None, "what numbers may differ by; the contract's if left out", minimum=0
    )
    min_requests: int = setting(100, "requests to both versions that a judgement needs", minimum=1)
    minutes: float = setting(10.0, "how long each share is tried", minimum=0.05, maximum=1e6)


@dataclass(frozen=True)
class ShadowSettings(TrialLimits):
    """How a new version is tried without its responses being given to anybody."""

    share: float = setting(
        0.1, "requests that the new version gets a copy of, up to 1", minimum=1e-6, maximum=1
    )


@dataclass(frozen=True)
class CanarySettings(TrialLimits):
    """How a new version is tried with part of the clients, and then promoted.

    Raises:
        UsageError: The steps are no growing shares, or the header's name is none.
    """

    steps: str = setting("0.05,0.25,1", "shares of requests, one after the other")
    sticky_header: str | None = setting(None, "header by which a client stays with its version")

    def __post_init__(self) -> None:
        """Check the steps, and the header's name."""
        super().__post_init__()
        shares = self.shares
        if not shares or shares != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
            raise UsageError(
                f"steps must be growing shares up to 1, got {self.steps!r}. Such as: 0.05,0.25,1"
            )

        if self.sticky_header is not None and not _HEADER.fullmatch(self.sticky_header):
            raise UsageError(
                f"sticky_header must be the name of a header, got {self.sticky_header!r}. Such as: "
                "X-User"
            )

    @property
    def shares(self) -> list[float]:
        """The steps as numbers; none where one is no number."""
        try:
            return [float(part) for part in self.steps.split(",")]
        except ValueError:
            return []
