"""How optimizing is set: apart from the step, so that the command line loads at once."""

from dataclasses import dataclass

from marship.settings import Settings, setting

PASSES = ("float32", "int8_dynamic", "int8_static", "int8_blocks", "float16")


@dataclass(frozen=True, slots=True)
class OptimizeSettings(Settings):
    """How variants are measured and chosen.

    Example:
        >>> marship.OptimizeSettings(variant="int8_dynamic").threads
        1
    """

    variant: str | None = setting(
        None, "choose this variant whatever the measurements say: exported, " + ", ".join(PASSES)
    )
    threads: int = setting(1, "threads within one call while measuring", minimum=1)
    batch: int = setting(16, "rows of the larger of the two calls that are timed", minimum=2)
    least_gain: float = setting(
        0.05, "speed gain over float32 that is worth a change, as a share", minimum=0
    )
    search_s: float = setting(
        180.0, "seconds to find the layers that must stay float in int8", minimum=0
    )
    measure_s: float = setting(8.0, "seconds of timing, for both batch sizes together", minimum=0)
    again: bool = setting(False, "optimize anew where nothing has changed, too")
