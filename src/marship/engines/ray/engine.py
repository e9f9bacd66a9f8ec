"""Ray Serve as an engine."""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship.engines import store
from marship.engines.engine import Note, ServerConfig
from marship.engines.home import Home, default_home
from marship.engines.names import checked_name
from marship.engines.ray import changes, cluster, keeper, loads, plan, trials
from marship.engines.ray import models as registered
from marship.engines.ray.access import ClusterAccess
from marship.exchange.calls import Pause

if TYPE_CHECKING:
    from marship.engines.home import ServerRecord
    from marship.trust.policy import Trust


class RayServe(ClusterAccess):
    """A cluster of Ray, by a home folder; see `engines.engine.Engine`."""

    models = registered.list_models
    describe = registered.describe
    register = changes.register
    scale = changes.scale
    shrink = loads.shrink
    loads = loads.loads
    wait_ready = registered.wait_ready
    renew_trial = trials.renew_trial
    trials = trials.trials
    set_default = changes.set_default
    drain = registered.drain
    unregister = changes.unregister
    withdraw = changes.withdraw
    predict = registered.predict
    openapi = registered.openapi
    ping = registered.ping
    metrics = registered.metrics

    @staticmethod
    def start(settings: Any, *, on_wait: Callable[[float], None] | None = None) -> Any:  # noqa: ANN401
        """Start or join a cluster, and return when its front answers."""
        from marship.engines.ray import head

        return head.start(settings, on_wait=on_wait)

    @staticmethod
    def stop(home: Path | None = None) -> "ServerRecord":
        """Stop the cluster that the home started."""
        from marship.engines.ray import head

        return head.stop(home)

    @staticmethod
    def log_files(home: Path | None = None) -> list[Path]:
        """What Ray printed, and the logs of workers on this machine."""
        place = Home((home or default_home()).absolute())
        record = place.record()
        logs = Path(record.tmp) / "session_latest" / "logs" if record else place.logs
        return [*place.log_files(), *sorted(logs.glob("marship-*.log"))]

    @staticmethod
    def server_config(home: Path | None = None) -> ServerConfig:
        """What clients and a proxy need to know."""
        record = Home((home or default_home()).absolute()).record()
        return ServerConfig(
            inference_address=record.inference_url if record else "",
            direct_address=None,
            queue_size=plan.QUEUE,
            max_request_bytes=plan.MOST_BYTES,
            checks_tokens=True,
            model_store=record.model_store if record else None,
        )

    @staticmethod
    def check_name(name: str) -> str:
        """The name, if it is valid in a path."""
        return checked_name(name)

    def version_lock(
        self,
        name: str,
        held: ExitStack,
        *,
        timeout_s: float,
        on_wait: Callable[[str], None] | None = None,
    ) -> Generator[Pause, None, None]:
        """Take the lock of a model's versions on the cluster, which several homes may change."""
        self.connect()
        action = f"exchanges versions of {name}"
        lock = f"versions of {name}"
        yield from keeper.take(lock, held, timeout_s=timeout_s, action=action, on_wait=on_wait)

    def keys(self) -> "Trust | None":
        """The keys of the trust folder that the home was started with."""
        trust = self.record.trust
        return store.pinned(Path(trust) if trust else None)

    def note(self, name: str, version: str) -> Note | None:
        """Read from the front's table."""
        self.connect()
        found = cluster.table().entry(name, version)
        if found is None:
            return None
        entry = found[1]
        return Note(entry.registration, entry.files, entry.given_batch_size, entry.given_delay_ms)

    def has_other_files(self, name: str, version: str, archive: str) -> bool:
        """Compare with the table."""
        note = self.note(name, version)
        return note is not None and note.files not in (
            None,
            store.files_of(self.model_store / archive),
        )
