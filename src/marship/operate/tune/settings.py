"""What tuning is asked for: apart from its code, so that the command line loads at once."""

from dataclasses import dataclass
from pathlib import Path

from marship.errors import UsageError
from marship.settings import Settings, setting

HOSTS = ("direct", "torchserve")
DEFAULT_CLIENTS = 16


@dataclass(frozen=True)
class TuneSettings(Settings):
    """The load, the limits and the time.

    Example:
        >>> from marship.operate.tune.settings import TuneSettings
        >>> TuneSettings(p99_ms=20).load
        '16 clients'
    """

    p99_ms: float = setting(100.0, "what 99 of 100 requests may take", minimum=0.001)
    rate: float | None = setting(
        None, "requests a second, whether or not earlier ones are answered", minimum=0.1
    )
    clients: int | None = setting(
        None, f"clients that each wait for their response; {DEFAULT_CLIENTS} without --rate",
        minimum=1,
    )  # fmt: skip
    min_quality: float = setting(
        0.99, "share of the requests whose response must stay that of the shipped settings",
        minimum=0, maximum=1,
    )  # fmt: skip
    memory_mb: float | None = setting(
        None, "memory of the server's processes, shared pages counted once", minimum=1
    )
    minutes: float = setting(
        10.0, "time for all; at least about half a minute, more where servers start slowly",
        minimum=0.1,
    )  # fmt: skip
    run: Path | None = setting(
        None, "the run folder of the archive: its other variants are tried, too"
    )
    host: tuple[str, ...] = setting(
        ("direct",),
        "direct: workers respond themselves; torchserve: through its frontend; may be repeated",
        usual=HOSTS,
    )
    results: Path | None = setting(
        None, "folder of the measurements, with which a run is resumed; else NAME-tune here"
    )
    out: Path | None = setting(None, "write a new archive, and leave the given one as it is")

    def check(self) -> None:
        """Check what belongs together.

        Raises:
            UsageError: Both kinds of load are asked for, or a host is unknown.
        """
        if self.rate is not None and self.clients is not None:
            raise UsageError(
                "one of --rate and --clients must be given, got both. Leave one of them out."
            )
        for name in self.host:
            if name not in HOSTS:
                raise UsageError(f"host must be one of {', '.join(HOSTS)}, got {name!r}.")

    @property
    def waiting_clients(self) -> int:
        """How many clients wait for their responses, where requests do not come at a rate."""
        return self.clients or DEFAULT_CLIENTS

    @property
    def load(self) -> str:
        """The load in words."""
        if self.rate is None:
            return f"{self.waiting_clients} clients"
        return f"{self.rate:g} requests a second"
