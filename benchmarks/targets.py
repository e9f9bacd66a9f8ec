"""Target ratios, and which of them a run reached."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peers import BARE, BEHIND, DIRECT, LATENCY, MARSHIP, PING, THROUGHPUT, TORCHSERVE


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of one of marship's profiles divided by a peer's."""

    case: str
    clients: int
    profile: str
    peer: str
    figure: str
    limit: float
    ours: str = MARSHIP


_AHEAD = [
    (case, clients, "", peer, "rps", 1.0)
    for case in ("recommender", "encoder", "tensor-json")
    for clients in (1, 8, 64)
    for peer in ("mosec", "FastAPI")
]
_PROXIED = "mosec" + BEHIND
_DIRECTLY: list[tuple[str, int, str, str, str, float]] = [
    ("mlp", 1, "", "mosec", "rps", 1.3),
    ("mlp", 1, "", "FastAPI", "rps", 1.3),
    ("mlp", 1, "", "mosec", "p50_us", 0.75),
    ("mlp", 1, "", "FastAPI", "p50_us", 0.75),
    ("mlp", 16, "", "mosec", "rps", 4),
    ("mlp", 16, "", "mosec", "p99_us", 1),
    ("mlp", 64, "", "mosec", "rps", 1.8),
    ("mlp", 64, "", "mosec", "p99_us", 1),
    ("mlp", 64, "", PING, "rps", 1.3),
    ("mlp", 64, "", TORCHSERVE, "rps", 30),
    ("tensor-npy", 1, "", "mosec", "rps", 2),
    ("tensor-npy", 8, "", "mosec", "rps", 2.2),
    ("tensor-npy", 1, "", "FastAPI", "rps", 1.3),
    ("tensor-npy", 8, "", "FastAPI", "rps", 1.7),
    ("resnet18-int8", 8, "", BARE, "rps", 0.93),
    ("resnet18-int8", 8, "", "mosec", "rps", 1),
    ("resnet18-int8", 8, "", "mosec", "p99_us", 1),
    *_AHEAD,
    ("mlp" + BEHIND, 16, "", _PROXIED, "rps", 1.5),
    ("tensor-npy" + BEHIND, 16, "", _PROXIED, "rps", 1.5),
]
"""Of the direct address."""

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
    *(Target(*words, ours=DIRECT) for words in _DIRECTLY),
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
            e
            for e in entries
            if e["peer"] == target.ours and e["profile"].startswith(target.profile)
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
