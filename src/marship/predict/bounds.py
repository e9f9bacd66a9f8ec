"""Bounds of concurrent requests and of memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from marship.client import AsyncClient, Client
from marship.errors import TooLargeError, UsageError
from marship.predict.sources import may_be_sound

FEWEST_IN_FLIGHT = 8
ASSUMED_QUEUE = 100
"""Queued requests of a model on a remote server, whose settings are unknown."""
UNKNOWN_WAIT_S = 300.0
"""Timeout of a response, if the model's responseTimeout is unknown."""
LONGEST_STREAM_S = 6 * 3600.0
"""A recording waits for all before it, however long they are; TorchServe restarts dead workers."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The server's limits.

    Attributes:
        queue: The maximum number of queued requests of a model.
        request_bytes: The maximum size of a body; None if unknown.
        advice: What to do with a larger file; None is to raise TorchServe's limit.
    """

    queue: int
    request_bytes: int | None
    advice: str | None = None

    @classmethod
    def of(cls, client: Client | AsyncClient) -> Self:
        """The limits of a client's server; the maximum request of a remote server is unknown."""
        if not client.is_local:
            return cls(ASSUMED_QUEUE, request_bytes=None)
        client.home.require_running()
        config = client.engine.server_config(client.home.path)
        return cls(config.queue_size, config.max_request_bytes)

    def in_flight(self, wanted: int | None, at_once: int) -> int:
        """The number of concurrent requests: enough for two full batches for each idle worker.

        Args:
            wanted: What the user asked for.
            at_once: Requests in the batches of all workers.

        Raises:
            UsageError: More are wanted than the server's queue holds.
        """
        if wanted is None:
            return min(max(FEWEST_IN_FLIGHT, 2 * at_once), self.queue)
        if wanted > self.queue:
            raise UsageError(
                f"--in-flight must be at most the server's job_queue_size of {self.queue}, "
                f"got {wanted}."
            )
        return wanted

    def refusal(self, size_bytes: int, kind: str) -> TooLargeError | None:
        """The error for a file that exceeds the server's limit, without sending it."""
        if self.request_bytes is None or size_bytes <= self.request_bytes:
            return None
        advice = self.advice
        if advice is None:
            start = "Send sound as FLAC, Opus or MP3, or set" if may_be_sound(kind) else "Set"
            advice = f"{start} max_request_size in config.properties."
        return TooLargeError(
            f"a file must have at most {self.request_bytes} bytes, got {size_bytes}. {advice}"
        )


def longest_wait_s(timeout_s: float, in_flight: int, at_once: int) -> float:
    """The longest time of a response that waits for all others, by the number of batches."""
    return timeout_s * (in_flight / at_once + 2)


class ByteBudget:
    """Bounds the bytes in memory: large files wait for each other."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = self._free_bytes = size_bytes
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, size_bytes: int) -> AsyncIterator[None]:
        """Take that many bytes of the budget, or all of it, once they are free."""
        taken = min(size_bytes, self._size_bytes)
        async with self._changed:
            await self._changed.wait_for(lambda: taken <= self._free_bytes)
            self._free_bytes -= taken
        try:
            yield
        finally:
            self._free_bytes += taken
            async with self._changed:
                self._changed.notify_all()
