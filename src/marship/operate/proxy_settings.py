"""How the proxy is set: apart from its code, so that the command line loads at once."""

from dataclasses import dataclass
from pathlib import Path

from marship.settings import Settings, setting

_PORT = "8443"


@dataclass(frozen=True, slots=True)
class ProxySettings(Settings):
    """How TorchServe is offered to other machines."""

    home: Path | None = setting(
        None, "the server's private folder; else MARSHIP_HOME, else .marship here"
    )
    out: Path = setting(Path("proxy"), "the folder that nginx runs in; a new one is its owner's")
    listen: str | None = setting(
        None, "port, or address:port, for HTTPS; else 8443, self-signed on 127.0.0.1 alone"
    )
    certificate: Path | None = setting(None, "PEM file with the certificate and those above it")
    certificate_key: Path | None = setting(None, "PEM file with its private key")
    self_signed: bool = setting(False, "make a certificate for this machine alone, for trials")
    page: bool = setting(
        False, "pass on the page for trying models, Swagger UI, and the document of these models"
    )
    rate: int = setting(100, "requests per second of one address", minimum=1)
    burst: int = setting(200, "requests of one address that may come at once", minimum=1)
    connections: int = setting(32, "requests of one address at a time", minimum=1)
    client_timeout_s: int = setting(
        15, "close a client that is silent for this many seconds", minimum=1
    )
    answer_timeout_s: int = setting(
        130, "wait for the server this many seconds: more than any responseTimeout", minimum=1
    )

    traces: bool = setting(
        False, "send spans of traced requests by the server, which is started with --traces-url"
    )

    @property
    def address(self) -> str:
        """Where nginx listens: a trial is for this machine alone unless more is configured."""
        return self.listen or (f"127.0.0.1:{_PORT}" if self.self_signed else _PORT)
