"""How a cluster is started or joined: apart from its code, so that commands load at once."""

from dataclasses import dataclass
from pathlib import Path

from marship.settings import Settings, setting


@dataclass(frozen=True, slots=True)
class RaySettings(Settings):
    """How Ray Serve is started."""

    home: Path | None = setting(
        None, "the private folder of this access to the cluster; else MARSHIP_HOME, else .marship"
    )
    model_store: Path | None = setting(None, "the folder with the archives; else model_store here")
    trust: Path | None = setting(
        None, "folder of public keys that archives must be signed with; else the last start's"
    )
    no_trust: bool = setting(False, "serve unsigned archives, whatever the last start required")
    inference_port: int | None = setting(None, "of each node's proxy; 0 takes any; else 8000")
    address: str | None = setting(
        None, "HOST:PORT of a running cluster that this machine is a node of; else one is started"
    )
    archives: str | None = setting(
        None, "a folder or URL that all nodes read archives from; else the cluster keeps them"
    )
    seal_key: str | None = setting(None, "opens sealed models: file:PATH, env:NAME or command:...")
    free_ports: bool = setting(False, "take any free port for all that no flag names")
    start_timeout_s: float = setting(60.0, "how long the cluster may take to respond", minimum=1)
