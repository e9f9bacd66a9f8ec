"""TorchServe 0.12.0 as an engine."""

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from marship.engines import locks
from marship.engines.engine import Note, ServerConfig
from marship.engines.home import Home, default_home
from marship.engines.names import checked_name
from marship.engines.torchserve import config as configs
from marship.engines.torchserve import draining, loads, status, store, trials, versions
from marship.engines.torchserve import models as registered
from marship.engines.torchserve.access import Access
from marship.exchange.calls import Pause

if TYPE_CHECKING:
    from marship.engines.home import ServerRecord
    from marship.engines.torchserve.server import Server
    from marship.engines.torchserve.settings import ServeSettings
    from marship.trust.policy import Trust


class TorchServe(Access):
    """A TorchServe server, by its addresses and tokens; see `engines.engine.Engine`."""

    models = registered.list_models
    describe = status.describe
    register = registered.register
    scale = registered.scale
    shrink = registered.shrink
    loads = loads.list_loads
    wait_ready = registered.wait_ready
    renew_trial = trials.renew_trial
    trials = trials.trials
    set_default = versions.set_default
    drain = draining.drain
    unregister = versions.unregister
    withdraw = versions.withdraw
    predict = registered.predict
    openapi = registered.openapi
    ping = registered.ping
    metrics = registered.metrics

    @staticmethod
    def start(
        settings: "ServeSettings", *, on_wait: Callable[[float], None] | None = None
    ) -> "Server":
        """Start a server, and return when it responds."""
        from marship.engines.torchserve import server

        return server.start(settings, on_wait=on_wait)

    @staticmethod
    def stop(home: Path | None = None) -> "ServerRecord":
        """Stop the server of a home folder with all its processes."""
        from marship.engines.torchserve import server

        return server.stop(home)

    @staticmethod
    def log_files(home: Path | None = None) -> list[Path]:
        """TorchServe's own log, the workers', and what Java printed."""
        from marship.engines.torchserve import server

        return server.log_files(home)

    @staticmethod
    def server_config(home: Path | None = None) -> ServerConfig:
        """The resolved settings of the last start, else the file that `start` would read."""
        resolved = Home((home or default_home()).absolute()).config
        return configs.server_config(resolved if resolved.is_file() else configs.locate(None))

    @staticmethod
    def check_name(name: str) -> str:
        """The name, if it is valid in a path and no name of TorchServe's token API."""
        return checked_name(name)

    def version_lock(
        self,
        name: str,
        held: ExitStack,
        *,
        timeout_s: float,
        on_wait: Callable[[str], None] | None = None,
    ) -> Generator[Pause, None, None]:
        """Take the lock of a model's versions in the home; a remote server has none."""
        if self.is_local and os.access(self.home.path, os.W_OK):
            lock, action = self.home.rollout_lock(name), f"exchanges versions of {name}"
            yield from locks.take(lock, held, timeout_s=timeout_s, action=action, on_wait=on_wait)

    def keys(self) -> "Trust | None":
        """The keys of the trust folder that the server was started with."""
        trust = self.home.require_running().trust if self.is_local else None
        return store.pinned(Path(trust) if trust else None)

    def note(self, name: str, version: str) -> Note | None:
        """Read from the home; None for a remote server."""
        return store.read_note(self.home, name, version) if self.is_local else None

    def has_other_files(self, name: str, version: str, archive: str) -> bool:
        """Compare with the note of the registration; False without a note."""
        return self.is_local and store.has_other_files(self.home, name, version, archive)
