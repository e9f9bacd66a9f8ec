"""What `marship autoscale` asks an engine; Ray scales replicas itself."""

from typing import Any

from marship.engines.engine import ModelStatus
from marship.engines.load import ModelLoad
from marship.engines.ray.access import ClusterAccess
from marship.errors import UsageError
from marship.exchange.calls import Flow


def shrink(access: ClusterAccess, *_: Any, **__: Any) -> Flow[ModelStatus | None]:  # noqa: ANN401
    """Ray ends replicas that have nothing to do itself.

    Raises:
        UsageError: Always; see `loads`.
    """
    yield from loads(access)
    return None


def loads(_: ClusterAccess) -> Flow[list[ModelLoad]]:
    """Ray measures loads, and scales by them, itself.

    Raises:
        UsageError: Always.
    """
    yield from ()  # a flow, which calls nothing
    raise UsageError(
        "marship autoscale must scale workers of TorchServe, got a cluster: Ray scales replicas "
        "itself. Package the model with --min-workers and --max-workers."
    )
