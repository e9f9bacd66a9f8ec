"""Batching profiles, chosen when a model is packaged or registered."""

from dataclasses import dataclass, replace

from marship.errors import UsageError


@dataclass(frozen=True, slots=True)
class Profile:
    """How many requests a worker batches, and how long a batch waits.

    Attributes:
        batch_size: Maximum requests in one batch.
        max_batch_delay_ms: How long a batch waits to fill. With 0 TorchServe batches at most
            two requests, and 0 in a model-config.yaml means 100.
    """

    batch_size: int
    max_batch_delay_ms: int


PROFILES = {"latency": Profile(1, 1), "throughput": Profile(32, 1)}


def find(
    name: str, batch_size: int | None = None, max_batch_delay_ms: int | None = None
) -> Profile:
    """The profile of that name, with the values that are given in place of its own.

    Raises:
        UsageError: There is no such profile.
    """
    if name not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}.")
    given = {"batch_size": batch_size, "max_batch_delay_ms": max_batch_delay_ms}
    return replace(PROFILES[name], **{key: v for key, v in given.items() if v is not None})
