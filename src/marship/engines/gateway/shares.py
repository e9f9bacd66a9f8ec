"""What calls share: places for those that need no token, and memory for all others."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from marship.engines.gateway.statuses import busy
from marship.serving.model.heap import release_freed

_LARGE_BYTES = 1 << 20
"""From here on the allocator may keep what a call frees."""
_RELEASE_S = 1.0
_FREES_S = 0.2
"""How long it may take until the memory of a call that was ended is free."""


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


class Memory:
    """Bytes of messages or of responses, which calls get in the order in which they ask.

    Args:
        most: Of all calls together.
        lent_s: How long a call may keep what others wait for, where it can be ended.
    """

    def __init__(self, most: int, lent_s: float = math.inf) -> None:
        self._most = self._free = most
        self._lent_s, self._calls_in_at = lent_s, -math.inf
        self._lent: dict[MemoryShare, tuple[float, Callable[[], None]]] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._is_releasing = False

    async def take(self, size: int, limit_s: float | None, *, back: int = 0) -> int:
        """Wait for bytes, and return how many were taken: all there are for what is larger.

        Args:
            size: How many.
            limit_s: How long to wait; None is until the call is cancelled.
            back: How many are given back before.

        Raises:
            Refusal: There were not so many in time.
        """
        size = min(size, self._most)
        self._free += back
        turn = asyncio.get_running_loop().create_future()
        entry = (size, turn)
        self._waiting.append(entry)
        self.give(0)
        try:
            async with asyncio.timeout(limit_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give(size)
            elif entry in self._waiting:
                self._waiting.remove(entry)
                self.give(0)  # who is behind may need less
            if isinstance(error, TimeoutError):
                raise busy(f"messages under way may have {self._most} bytes") from error
            raise
        return size

    def give(self, size: int) -> None:
        """Give bytes back; less than none are bytes that are there already."""
        self._free += size
        while self._waiting:
            wanted, turn = self._waiting[0]
            if wanted > self._free and not turn.cancelled():
                break
            self._waiting.popleft()
            if not turn.cancelled():
                self._free -= wanted
                turn.set_result(None)
        self._call_in_later()

    def lend(self, share: "MemoryShare", end: Callable[[], None]) -> None:
        """Have a share's call ended where it keeps for too long what others wait for."""
        self._lent[share] = (asyncio.get_running_loop().time(), end)
        self._call_in_later()

    def settle(self, share: "MemoryShare") -> None:
        """A share that was perhaps lent is free."""
        self._lent.pop(share, None)

    def _call_in_later(self) -> None:
        """Look for the oldest when its time has passed; once, and while somebody waits."""
        if self._timer is None and self._lent and self._waiting:
            since, _ = next(iter(self._lent.values()))
            at = max(since + self._lent_s, self._calls_in_at + _FREES_S)
            self._timer = asyncio.get_running_loop().call_at(at, self._call_in)

    def _call_in(self) -> None:
        self._timer = None
        if not (self._lent and self._waiting):
            return
        now = asyncio.get_running_loop().time()
        oldest = next(iter(self._lent))
        since, end = self._lent[oldest]
        if now >= since + self._lent_s and now >= self._calls_in_at + _FREES_S:
            del self._lent[oldest]
            self._calls_in_at = now
            end()
        self._call_in_later()

    def release_soon(self) -> None:
        """Return freed memory to the system, once for all calls of a second."""
        if not self._is_releasing:
            self._is_releasing = True
            asyncio.get_running_loop().call_later(_RELEASE_S, self._release)

    def _release(self) -> None:
        self._is_releasing = False
        release_freed()


class MemoryShare:
    """The memory of one call, which has a message or a response at a time.

    Args:
        memory: Of all calls.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._held = self._largest = 0

    def __enter__(self) -> "MemoryShare":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    async def wait(self, size: int, limit_s: float | None) -> None:
        """Hold bytes in place of what was held.

        Fewer are there at once. For more all are given back first: nobody who waits holds any.

        Args:
            size: How many.
            limit_s: How long to wait; None is until the call is cancelled.

        Raises:
            Refusal: There were not so many in time.
        """
        if size <= self._held:
            self.hold(size)
            return
        back, self._held = self._held, 0
        self._held = await self._memory.take(size, limit_s, back=back)
        self._largest = max(self._largest, self._held)

    def hold(self, size: int) -> None:
        """Hold bytes that are there, in place of what was held."""
        self._memory.give(self._held - size)
        self._held = size
        self._largest = max(self._largest, size)

    def end(self) -> None:
        """Hold nothing any more."""
        self._memory.settle(self)
        self.hold(0)
        if self._largest >= _LARGE_BYTES:
            self._memory.release_soon()


class Unread:
    """What workers may hold of responses until they are read here, for each model.

    A worker closes connections where the responses that nobody reads take too much memory. So it is
    not asked for more than it may hold: a call counts as the largest of the last responses to
    requests of about its size, and as the largest possible one until there was one. Where that was
    too little, its response may be cut, and it waits for its turn as the largest.

    Args:
        most: Bytes for each model.
        largest: Bytes of a response.

    Attributes:
        largest: As given.
    """

    def __init__(self, most: int, largest: int) -> None:
        self._most, self.largest = most, largest
        self._memories: WeakValueDictionary[str, Memory] = WeakValueDictionary()  # of calls
        self._sizes: dict[tuple[str, int], int] = {}

    def share(self, model: str) -> MemoryShare:
        """What a call of a model holds of it, so far nothing."""
        found = self._memories.get(model)
        if found is None:
            found = self._memories[model] = Memory(self._most)
        return MemoryShare(found)

    def expected(self, where: str, sent: int) -> int:
        """How large the response may be to a request of a size."""
        return self._sizes.get((where, sent.bit_length()), self.largest)

    def note(self, where: str, sent: int, got: int) -> None:
        """A model's response had a size; a large one counts less with each that is smaller."""
        before = self._sizes.get((where, sent.bit_length()), 0)
        self._sizes[where, sent.bit_length()] = max(got, before - before // 8)
