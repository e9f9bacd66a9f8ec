"""What calls share: places for those that need no token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from marship.engines.gateway.statuses import busy


class Newest:
    """Places that the oldest call leaves to a newer one, so that nobody is kept out.

    Args:
        most: The number of places.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[asyncio.Timeout, None] = {}  # the oldest first

    @asynccontextmanager
    async def place(self, limit_s: float | None = None) -> AsyncIterator[None]:
        """Hold a place.

        Args:
            limit_s: For how long at most.

        Raises:
            Refusal: A newer call needed it.
            TimeoutError: The time has passed.
        """
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                self._held[limit] = None
                if len(self._held) > self._most:
                    self._end_oldest()
                yield
        except TimeoutError as error:
            if limit in self._held:
                raise
            raise busy(f"at most {self._most} calls without a token may wait") from error
        finally:
            self._held.pop(limit, None)

    def _end_oldest(self) -> None:
        oldest = next(iter(self._held))
        del self._held[oldest]
        if not oldest.expired():
            oldest.reschedule(0)
