"""Long work in turns: what is short does not wait, and what is long waits for its like."""

import asyncio
import time
from collections.abc import Iterator

from marship.engines.gateway.turns import Turns


class Work:
    """Parts without an end, until it is told to end."""

    def __init__(self) -> None:
        self.count, self.is_over = 0, False

    def parts(self) -> Iterator[bytes]:
        """One at a time."""
        end = time.monotonic() + 20
        while not self.is_over:
            assert time.monotonic() < end, "nobody else had a turn"
            self.count += 1
            yield b"x"


def test_others_have_turns_between_those_of_long_work() -> None:
    """Short work that begins later ends while long work goes on."""

    async def test() -> None:
        turns, long = Turns(), Work()
        joining = asyncio.create_task(turns.join(long.parts()))
        await asyncio.sleep(0)
        assert await turns.join(iter([b"ab", b"", b"c"])) == b"abc"
        before = long.count
        await asyncio.sleep(0)
        assert long.count > before
        long.is_over = True
        assert await joining == b"x" * long.count

    asyncio.run(test())


def test_long_work_waits_for_its_like() -> None:
    """After the first turn: a hundred at a time would be one long wait for all others."""

    async def test() -> None:
        turns, first, second = Turns(), Work(), Work()
        both = [asyncio.create_task(turns.join(each.parts())) for each in (first, second)]
        await asyncio.sleep(0)
        assert second.count
        counts = first.count, second.count
        for _ in range(5):
            await asyncio.sleep(0)
        assert first.count > counts[0]
        assert second.count == counts[1]
        first.is_over = True
        await both[0]
        while second.count == counts[1]:
            await asyncio.sleep(0)
        second.is_over = True
        assert [len(made) for made in await asyncio.gather(*both)] == [first.count, second.count]

    asyncio.run(test())
