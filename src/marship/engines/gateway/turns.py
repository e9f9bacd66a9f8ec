"""Long work in the event loop, in turns, between which it serves others."""

import asyncio
import time
from collections.abc import Iterator

_TURN_S = 0.005


class Turns:
    """Work that is done in short steps.

    What takes more than one turn takes them one after another, so that many long ones do not add
    up to one long wait; what is short does not wait for what is long.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def join(self, parts: Iterator[bytes]) -> bytearray:
        """Parts that are made one by one, each in much less than a turn, joined."""
        made = bytearray()
        if _is_done(parts, made):
            return made
        async with self._lock:
            while not _is_done(parts, made):
                await asyncio.sleep(0)
        return made


def _is_done(parts: Iterator[bytes], made: bytearray) -> bool:
    """Take parts for one turn."""
    end = time.perf_counter() + _TURN_S
    for part in parts:
        made += part
        if time.perf_counter() > end:
            return False
    return True
