"""Two named ways to batch; chosen when a model is packed or registered."""

from dataclasses import dataclass

from marship.errors import UsageError


@dataclass(frozen=True, slots=True)
class Profile:
    """How many requests a worker answers together.

    Attributes:
        batch_size: Requests in one batch at most.
        max_batch_delay_ms: How long a batch waits to fill. TorchServe batches only two
            requests with 0, and takes 0 in a model-config.yaml for 100.
    """

    batch_size: int
    max_batch_delay_ms: int


PROFILES = {"latency": Profile(1, 1), "throughput": Profile(32, 1)}


def find(name: str) -> Profile:
    """The profile of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}.")
    return PROFILES[name]
