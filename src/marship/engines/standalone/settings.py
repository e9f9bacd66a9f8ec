"""How a host without an engine is started: apart from its code, so that commands load at once."""

import re
from dataclasses import dataclass
from pathlib import Path

from marship.errors import UsageError
from marship.settings import Settings, setting

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+)):(\d{1,5})")
_MOST_PORT = 65535


@dataclass(frozen=True, slots=True)
class HostSettings(Settings):
    """How archives are served without TorchServe."""

    home: Path | None = setting(
        None,
        "the only folder that is written to but --samples; else MARSHIP_HOME, else .marship here",
    )
    address: str = setting("127.0.0.1:8080", "where clients connect; port 0 takes any free one")
    metrics_address: str = setting("127.0.0.1:8082", "where Prometheus finds /metrics")
    workers: int | None = setting(
        None, "of each model; else minWorkers of its archive, or 1", minimum=1
    )
    trust: Path | None = setting(None, "folder of public keys that archives must be signed with")
    require_token: Path | None = setting(
        None, "holds the token that requests must carry; it is read again when it changes"
    )
    no_tokens: bool = setting(False, "answer whoever can connect")
    seal_key: str | None = setting(None, "opens sealed models: file:PATH, env:NAME or command:...")
    request_log: str = setting(
        "off", "a line of JSON for each request in logs/requests.jsonl: access, or bodies, too"
    )
    traces_url: str | None = setting(None, "a collector's address for OTLP over HTTP")
    trace_share: float = setting(
        0.0, "of requests whose clients send no trace id, so many are traced", minimum=0, maximum=1
    )
    samples: Path | None = setting(
        None, "folder for encrypted samples of requests; needs a seal key. See docs/sealing.md"
    )
    sample_share: float = setting(
        0.0, "of requests that are answered with 200, so many are kept", minimum=0, maximum=1
    )
    max_request_size: int = setting(1 << 24, "bytes of the largest request", minimum=1)
    max_response_size: int = setting(1 << 24, "bytes of the largest response", minimum=1)
    queue: int = setting(1000, "requests that may wait for a worker", minimum=1)
    grace_s: float = setting(
        25.0, "after SIGTERM, requests that came before are given so long", minimum=0
    )

    def check(self) -> None:
        """Check what belongs together.

        Raises:
            UsageError: An address is written otherwise, or it is not clear whether to ask for
                tokens.
        """
        for name, address in self.addresses.items():
            split(name, address)
        if (self.require_token is None) != self.no_tokens:
            raise UsageError(
                "one of --require-token and --no-tokens must be given, got "
                f"{'both' if self.no_tokens else 'neither'}. Make a token with: openssl rand "
                "-hex 32"
            )

    @property
    def addresses(self) -> dict[str, str]:
        """The addresses, by the setting's name."""
        return {"address": self.address, "metrics_address": self.metrics_address}


def split(name: str, address: str) -> tuple[str, int]:
    """Host and port of an address such as `0.0.0.0:8080` or `[::]:8080`.

    Raises:
        UsageError: It is written otherwise.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > _MOST_PORT:
        raise UsageError(
            f"{name} must be HOST:PORT such as 0.0.0.0:8080 or [::]:8080, got {address!r}."
        )
    return match[1] or match[2], int(match[3])
