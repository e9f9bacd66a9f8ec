"""Between which numbers of workers a version is scaled: as given, else as its archive says."""

from marship.engines.engine import Engine, ModelStatus
from marship.errors import MarshipError, UsageError
from marship.operate.autoscale.policy import Scale
from marship.operate.autoscale.settings import ScalingSettings
from marship.trust.archive import read_settings


def bounds_of(engine: Engine, status: ModelStatus, settings: ScalingSettings) -> Scale:
    """The bounds of a version.

    The server's own are those of the last scaling, so they are not asked.

    Raises:
        UsageError: The fewest are more than the most.
    """
    least, most = settings.min_workers, settings.max_workers
    if least is None or most is None:
        own_least, own_most = _of_archive(engine, status)
        least = least or min(own_least, most or own_least)
        most = most or max(own_most, least)
    if least > most:
        raise UsageError(
            f"min_workers must be at most max_workers, got {least} and {most} for {status.name}. "
            "Change --min-workers or --max-workers."
        )
    return Scale(least, most, status.batch_size)


def _of_archive(engine: Engine, status: ModelStatus) -> tuple[int, int]:
    """MinWorkers and maxWorkers of model-config.yaml; of an archive without them, as it runs."""
    try:
        _, config = read_settings(engine.model_store / status.archive)
    except (MarshipError, OSError):
        config = {}
    least = _count(config.get("minWorkers")) or max(1, status.min_workers)
    return least, _count(config.get("maxWorkers")) or max(least, status.max_workers)


def _count(value: object) -> int | None:
    """A number of workers; None of what is none, which TorchServe takes where a client gives it."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
