"""Which server is meant: its addresses and tokens, and the environment variables with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOKEN_VARIABLES: Mapping[str, str] = {
    "inference": "MARSHIP_INFERENCE_TOKEN",
    "management": "MARSHIP_MANAGEMENT_TOKEN",
}
URL_VARIABLES: Mapping[str, str] = {
    "inference": "MARSHIP_INFERENCE_URL",
    "management": "MARSHIP_MANAGEMENT_URL",
    "metrics": "MARSHIP_METRICS_URL",
}

SPANS_SOCKET = "spans.sock"
"""In a home: where a proxy in front of the server tells of traced requests."""
MODEL_STORE = Path("model_store")


@dataclass(frozen=True, slots=True)
class Target:
    """A server that may be called, and how calls to it are retried.

    Attributes:
        home: The server's home folder; None is MARSHIP_HOME or `.marship`.
        urls: Given addresses by API. Without a home, those of the environment count as given, and
            any of them means a remote server: APIs without an address are not called then. With a
            home, missing addresses are read from it.
        tokens: Given tokens by API; else those of the environment, else those of the home.
        retry_s: How long calls that may be retried are retried.
        on_retry: Called before each retry.
        ca: A PEM file with the trusted CA certificates, in place of the default ones.
        copies: The local folder with copies of a remote server's archives.
        engine: The engine that the server must be of; None is whichever the home has.
    """

    home: str | Path | None = None
    urls: Mapping[str, str | None] = field(default_factory=dict)
    tokens: Mapping[str, str | None] = field(default_factory=dict)
    retry_s: float = 0.0
    on_retry: Callable[[], None] | None = None
    ca: str | Path | None = None
    copies: Path = MODEL_STORE
    engine: str | None = None
