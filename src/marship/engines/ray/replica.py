"""A version's replica: what Serve asks of a version on a node."""

from collections.abc import AsyncIterator
from typing import Any

from marship.engines.ray import binding, node, problems
from marship.engines.ray.hosted import Hosted, HostedVersion
from marship.engines.ray.line import Answer, Asked, LinePool
from marship.errors import MarshipError


class Replica:
    """Serves one version of one model.

    Args:
        served: What it serves.

    Raises:
        ReplicaError: It cannot; the message carries the reason.
    """

    def __init__(self, served: HostedVersion) -> None:
        binding.keep_to(node.address())
        try:
            self._hosted = Hosted(served)
        except MarshipError as error:
            raise problems.ReplicaError(error) from None
        self._lines = LinePool(str(self._hosted.socket))

    async def check_health(self) -> None:
        """Called by Ray every second or so.

        Raises:
            ReplicaError: No worker can be started any more: another replica must be.
        """
        try:
            self._hosted.check()
        except MarshipError as error:
            raise problems.ReplicaError(error) from None
        self._hosted.listen()  # not `ready`: a worker that starts again may take longer than this

    async def ask(self, request: Asked) -> Answer:
        """The response to a request, whole."""
        await self._hosted.ready()
        return await self._lines.whole(request)

    async def stream(self, request: Asked) -> AsyncIterator[Answer]:
        """The response to a request in parts."""
        await self._hosted.ready()
        async for part in self._lines.send(request):
            yield part

    async def counts(self) -> dict[str, Any]:
        """What the workers counted so far, and where."""
        counts = self._hosted.counts
        pairs = [*counts.totals.items(), *counts.gauges.items()]
        return {"node": node.address(), "counts": [(*key, value) for key, value in pairs]}

    async def told(self) -> dict[str, Any]:
        """What the worker tells of itself."""
        return self._hosted.facts

    def __del__(self) -> None:
        """End the worker: Serve calls this at a replica's end."""
        if hosted := getattr(self, "_hosted", None):
            hosted.close()
