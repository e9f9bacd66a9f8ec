"""How a server is started: apart from its code, so that the command line loads at once."""

from dataclasses import dataclass
from pathlib import Path

from marship.engines.torchserve import config as configs
from marship.errors import UsageError
from marship.settings import Settings, setting


@dataclass(frozen=True, slots=True)
class ServeSettings(Settings):
    """How a server is started."""

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
    free_ports: bool = setting(False, "take any free port for all that no flag names")
    profile: str | None = setting(None, "production: refuse to start with insecure settings")
    keep_env: tuple[str, ...] = setting((), "a variable that workers see in production, too")
    start_timeout_s: float = setting(60.0, "how long the server may take to respond", minimum=1)

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
            return False
        return None if self.direct_port is None else True

    def ports(self) -> dict[str, int | None]:
        """The port of each listener: None is the config's, 0 is any free port."""
        named = (
            self.inference_port,
            self.management_port,
            self.metrics_port,
            self.direct_port,
            self.grpc_port,
            self.grpc_inference_port,
            self.grpc_management_port,
        )
        unnamed = 0 if self.free_ports else None
        return {
            name: unnamed if port is None and name != configs.GRPC_ADDRESS else port
            for name, port in zip(configs.LISTENERS, named, strict=True)
        }
