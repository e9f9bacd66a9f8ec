"""How a server is started: apart from its code, so that the command line loads at once."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from marship.engines.torchserve import config as configs
from marship.errors import UsageError
from marship.settings import Settings, setting

_OF_RAY = (
    *("home", "model_store", "trust", "no_trust", "inference_port", "address", "archives"),
    *("seal_key", "free_ports", "start_timeout_s"),
)
"""Settings that both engines have, and those of Ray's own."""


@dataclass(frozen=True, slots=True)
class ServeSettings(Settings):
    """How a server is started."""

    engine: str = setting("torchserve", "torchserve, or ray for many machines")
    address: str | None = setting(
        None, "with --engine ray: HOST:PORT of a cluster that this machine is a node of"
    )
    archives: str | None = setting(
        None, "with --engine ray: a folder or URL that all nodes read archives from"
    )
    home: Path | None = setting(
        None, "the server's private folder; else MARSHIP_HOME, else .marship here"
    )
    model_store: Path | None = setting(None, "the folder with the archives; else the config's")
    config: Path | None = setting(
        None, "TorchServe's settings; else ./config.properties, else the packaged ones"
    )
    models: tuple[str, ...] = setting((), "archives to load at the start, or all")
    trust: Path | None = setting(
        None, "folder of public keys that archives must be signed with; else the last start's"
    )
    no_trust: bool = setting(False, "serve unsigned archives, whatever the last start required")
    inference_port: int | None = setting(None, "0 takes any free port; else the config's")
    management_port: int | None = setting(None, "0 takes any free port; else the config's")
    metrics_port: int | None = setting(None, "0 takes any free port; else the config's")
    direct_port: int | None = setting(
        None,
        "where workers respond themselves; 0 takes any free port; else the config's, or 8079",
    )
    prometheus_port: int | None = setting(
        None,
        "where Prometheus reads; 0 takes any free port; else the config's, or 8083",
    )
    no_direct: bool = setting(False, "let all requests go through TorchServe's frontend")
    grpc_port: int | None = setting(
        None, "where KServe v2 is served over gRPC; 0 takes any free port; else the config's"
    )
    grpc_inference_port: int | None = setting(
        None, "TorchServe's own gRPC; 0 takes any free port; else the config's"
    )
    grpc_management_port: int | None = setting(
        None, "TorchServe's own gRPC; 0 takes any free port; else the config's"
    )
    seal_key: str | None = setting(None, "opens sealed models: file:PATH, env:NAME or command:...")
    request_log: str = setting(
        "off", "a line of JSON for each request in logs/requests.jsonl: access, or bodies, too"
    )
    traces_url: str | None = setting(None, "a collector's address for OTLP over HTTP")
    trace_share: float = setting(
        0.0, "of requests whose clients send no trace id, so many are traced", minimum=0, maximum=1
    )
    free_ports: bool = setting(False, "take any free port for all that no flag names")
    profile: str | None = setting(None, "production: refuse to start with insecure settings")
    keep_env: tuple[str, ...] = setting((), "a variable that workers see in production, too")
    start_timeout_s: float = setting(60.0, "how long the server may take to respond", minimum=1)

    def of_ray(self) -> dict[str, Any]:
        """The settings that Ray has, too.

        Raises:
            UsageError: Another one is given.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        given = [
            field.name
            for field in fields(self)
            if field.name not in (*_OF_RAY, "engine") and own[field.name] != field.default
        ]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"--engine ray must come without {flags}: they are TorchServe's.")
        return {name: own[name] for name in _OF_RAY}

    def check_engine(self) -> None:
        """Check that no setting is another engine's.

        Raises:
            UsageError: One is.
        """
        if self.engine != "torchserve":
            raise UsageError(f"--engine must be torchserve or ray, got {self.engine!r}.")
        if self.address is not None or self.archives is not None:
            raise UsageError("--address and --archives must come with --engine ray, got none.")

    @property
    def direct(self) -> bool | None:
        """Whether workers respond themselves; None where no flag says so.

        Raises:
            UsageError: The flags contradict each other.
        """
        if self.no_direct:
            if self.direct_port is not None:
                raise UsageError(
                    "--no-direct must come without --direct-port, got both. Leave out one."
                )
            for name in ("prometheus_port", "request_log", "traces_url"):
                if getattr(self, name) not in (None, "off"):
                    raise UsageError(
                        f"--no-direct must come without --{name.replace('_', '-')}, got both. "
                        "Leave out one."
                    )
            return False
        return None if self.direct_port is None else True

    @property
    def written(self) -> tuple[str, str | None, float]:
        """What is written down of requests: as `requests.variables` takes it."""
        return self.request_log, self.traces_url, self.trace_share

    def ports(self) -> dict[str, int | None]:
        """The port of each listener: None is the config's, 0 is any free port."""
        named = (
            self.inference_port,
            self.management_port,
            self.metrics_port,
            self.direct_port,
            self.prometheus_port,
            self.grpc_port,
            self.grpc_inference_port,
            self.grpc_management_port,
        )
        unnamed = 0 if self.free_ports else None
        return {
            name: unnamed if port is None and name != configs.GRPC_ADDRESS else port
            for name, port in zip(configs.LISTENERS, named, strict=True)
        }
