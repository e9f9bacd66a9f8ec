"""Which peers are measured on which cases, where not all are."""

from dataclasses import dataclass

from peers import BARE, BEHIND, DIRECT, PING, TORCHSERVE


@dataclass(frozen=True, slots=True)
class Part:
    """A case with the servers to measure on it.

    Attributes:
        case: Its name.
        clients: Connections at the same time, smallest first; workers are chosen at the most.
        peers: Names of servers.
        title: What follows the case's name, where a case comes twice.
    """

    case: str
    clients: tuple[int, ...]
    peers: tuple[str, ...]
    title: str = ""

    @property
    def name(self) -> str:
        """As tables show it."""
        return self.case + self.title


_PLAIN = (DIRECT, "mosec", "FastAPI")
_PROXIED = (DIRECT + BEHIND, "mosec" + BEHIND)

SUITES = {
    "short": (
        Part("mlp", (1, 16, 64), (*_PLAIN, TORCHSERVE, PING)),
        Part("tensor-npy", (1, 8), _PLAIN),
        Part("resnet18-int8", (8,), (DIRECT, "mosec", BARE)),
        Part("recommender", (1, 8, 64), _PLAIN),
        Part("encoder", (1, 8, 64), _PLAIN),
        Part("tensor-json", (1, 8, 64), _PLAIN),
        Part("mlp", (16,), _PROXIED, BEHIND),
        Part("tensor-npy", (16,), _PROXIED, BEHIND),
    )
}
"""`short`: the direct address against the fastest peers, in under 40 minutes."""
