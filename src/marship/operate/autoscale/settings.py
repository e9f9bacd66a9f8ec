"""How workers are scaled: apart from the loop, so that the command line loads at once."""

from dataclasses import dataclass

from marship.settings import Settings, setting


@dataclass(frozen=True)
class ScalingSettings(Settings):
    """The targets of autoscaling, and how soon it acts.

    Example:
        >>> from marship.operate.autoscale.settings import ScalingSettings
        >>> ScalingSettings(target_p99_ms=200).panic_s
        6.0
    """

    min_workers: int | None = setting(None, "fewest workers; else the archive's", minimum=1)
    max_workers: int | None = setting(None, "most workers; else the archive's", minimum=1)
    target_busy: float = setting(
        0.7, "part of the time that workers run calls", minimum=0.05, maximum=1
    )
    target_ongoing: float = setting(
        2.0, "batches for each worker, those that wait and the one that runs", minimum=0.1
    )
    target_wait_ms: float | None = setting(
        None, "mean time in the queue; as long as two calls if left out", minimum=0
    )
    target_p99_ms: float | None = setting(
        None, "time of 99 of 100 requests in the server; none if left out", minimum=0
    )
    window_s: float = setting(60.0, "what is averaged; a tenth of it in a panic", minimum=5)
    cool_down_s: float = setting(60.0, "from any change until workers may be ended", minimum=1)

    @property
    def panic_s(self) -> float:
        """The short window, whose load may call for workers at once."""
        return self.window_s / 10
