"""Batching profiles, chosen when a model is packaged or registered."""

from dataclasses import dataclass

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


def find(name: str) -> Profile:
    """The profile of that name.

    Raises:
        UsageError: There is no such profile.
    """
    if name not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}.")
    return PROFILES[name]
