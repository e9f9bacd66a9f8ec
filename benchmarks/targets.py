"""Target ratios, and which of them a run reached."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peers import BARE, LATENCY, MARSHIP, PING, THROUGHPUT, TORCHSERVE


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of one of marship's profiles divided by a peer's."""

    case: str
    clients: int
    profile: str
    peer: str
    figure: str
    limit: float


TARGETS = (
    Target("mlp", 64, THROUGHPUT, TORCHSERVE, "rps", 20),
    Target("mlp", 64, THROUGHPUT, "mosec", "rps", 1.0),
    Target("mlp", 64, THROUGHPUT, "mosec", "p99_us", 2),
    Target("mlp", 64, THROUGHPUT, PING, "rps", 0.55),
    Target("mlp", 16, THROUGHPUT, "mosec", "rps", 1.4),
    Target("mlp", 1, LATENCY, TORCHSERVE, "p50_us", 0.4),
    Target("mlp", 1, LATENCY, "FastAPI", "p50_us", 1.15),
    Target("resnet18-int8", 8, "", BARE, "rps", 0.93),
    Target("tensor-npy", 8, "", "mosec", "rps", 1.2),
    Target("tensor-npy", 8, "", "LitServe", "rps", 1.2),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target with the ratio that was measured."""

    target: Target
    against: str
    ratio: float

    @property
    def reached(self) -> bool:
        """Whether the ratio is on the right side of the limit."""
        if self.target.figure == "rps":
            return self.ratio >= self.target.limit
        return self.ratio <= self.target.limit


def outcomes(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Outcome]:
    """Yield the measured ratio of each target whose figures this run has.

    A peer with two profiles is listed twice: with the profile that is faster at this number of
    clients, and, where that is another one, with the same profile as marship's.
    """
    for target in TARGETS:
        entries = [e for e in cases.get(target.case, ()) if str(target.clients) in e["clients"]]
        ours = [
            e for e in entries if e["peer"] == MARSHIP and e["profile"].startswith(target.profile)
        ]
        theirs = [e for e in entries if e["peer"] == target.peer]
        if not ours or not theirs:
            continue
        mine = _best(ours, target)
        best = _best(theirs, target)
        alike = [e for e in theirs if e["profile"] == target.profile and e is not best]
        for peer in (best, *alike):
            ratio = _figure(mine, target) / _figure(peer, target)
            yield Outcome(target, f"{peer['peer']} {peer['profile']}".strip(), ratio)


def _best(entries: Sequence[Mapping[str, Any]], target: Target) -> Mapping[str, Any]:
    """The fastest entry: by the lowest p50 if that is the target's figure, else by throughput."""
    if target.figure == "p50_us":
        return min(entries, key=lambda e: e["clients"][str(target.clients)]["p50_us"])
    return max(entries, key=lambda e: e["clients"][str(target.clients)]["rps"])


def _figure(entry: Mapping[str, Any], target: Target) -> float:
    found: float = entry["clients"][str(target.clients)][target.figure]
    return found
