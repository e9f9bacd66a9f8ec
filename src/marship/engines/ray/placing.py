"""Waiting for a replica: Serve waits without a bound where a version has none.

Looks at parts of Ray Serve 2.60 that are not public (`ray/serve/_private/router.py`): its handles
do not say whether there is a replica.
"""

import asyncio
from typing import Any

_LOOK_S, _TOLD_S = 1.0, 5.0
"""How often a request that waits looks, and how long Serve may take to tell of replicas at all."""


class NoReplicaError(Exception):
    """A version has no replica that could take a request."""


async def placed(handle: Any, response: Any) -> None:  # noqa: ANN401  Ray's
    """Wait until a replica has taken a request, or has refused it.

    Args:
        handle: The version's `DeploymentHandle`.
        response: What its method returned of the request; cancelled if no replica takes it.

    Raises:
        NoReplicaError: There is none. Requests that replicas have taken are not affected by that.
    """
    taken = response._replica_result_future
    if not asyncio.isfuture(taken):  # the router runs in a thread of its own
        taken = asyncio.wrap_future(taken)
    loop = asyncio.get_running_loop()
    told_by = loop.time() + _TOLD_S
    try:
        while not taken.done():
            count = replicas(handle)
            if count == 0 or (count is None and loop.time() > told_by):
                raise NoReplicaError
            await asyncio.wait([taken], timeout=_LOOK_S)
    finally:
        if not taken.done():
            taken.cancel()


def replicas(handle: Any) -> int | None:  # noqa: ANN401  Ray's
    """How many replicas a handle may ask; None before Serve has told it of any."""
    if not handle.running_replicas_populated():
        return None
    return len(handle._router._asyncio_router.request_router.curr_replicas)
