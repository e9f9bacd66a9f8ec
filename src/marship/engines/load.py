"""What the workers of a version did: the figures that autoscaling goes by."""

from dataclasses import dataclass
from typing import Literal

from marship.engines.engine import ModelStatus


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """The load of one version. Sums are since some moment; only their growth means anything.

    Attributes:
        status: Its workers.
        source: Who counted: the workers at once, or the engine's metrics, some seconds late. Sums
            of one source are not to be compared with the other's.
        ongoing: Requests that wait or run now at workers' own addresses.
        occupied: Workers that have some of them.
        requests: Sum of requests.
        calls: Sum of calls of the model.
        busy_s: Sum of seconds in calls.
        waited_s: Sum of seconds that requests waited in queues.
        took: Sums of requests by how long they took, in the classes `took_s`; empty if unknown.
        took_s: Upper bounds of these classes; the last class has none.
        own_s: Sum of seconds that requests through the engine's own address were in the server.
    """

    status: ModelStatus
    source: Literal["workers", "engine"]
    ongoing: int
    occupied: int
    requests: float
    calls: float
    busy_s: float
    waited_s: float
    took: tuple[float, ...]
    took_s: tuple[float, ...]
    own_s: float
