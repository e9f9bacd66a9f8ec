"""What calls share: the newest get a place."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.engines.gateway.shares import Newest
from marship.engines.gateway.statuses import Refusal


async def settle() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


@given(st.integers(1, 5), st.lists(st.integers(0, 9), max_size=40))
def test_the_newest_have_the_places(most: int, steps: list[int]) -> None:
    """Whichever end by themselves: of all others exactly the oldest that are too many are told."""

    async def test() -> None:
        places = Newest(most)
        holding: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

        async def hold(ends: asyncio.Event) -> None:
            async with places.place():
                await ends.wait()

        for step in steps:
            if step < len(holding):
                ends, task = holding.pop(step)
                ends.set()
                await task
                continue
            ends = asyncio.Event()
            holding.append((ends, asyncio.create_task(hold(ends))))
            await settle()
            assert not holding[-1][1].done()
            if len(holding) > most:
                _, oldest = holding.pop(0)
                with pytest.raises(Refusal, match="calls without a token"):
                    await oldest
        for ends, task in holding:
            ends.set()
            await task

    asyncio.run(test())


def test_a_place_has_its_time() -> None:
    """An end by the clock is no end by a newer call, even if one comes in that moment."""

    async def test() -> None:
        places = Newest(1)

        async def hold(seconds: float) -> None:
            async with places.place(seconds):
                await asyncio.Event().wait()

        first = asyncio.create_task(hold(0.0))
        await asyncio.sleep(0)  # it has begun, and its time is up
        await asyncio.sleep(0)  # its end is under way
        second = asyncio.create_task(hold(0.01))
        for each in (first, second):
            with pytest.raises((TimeoutError, Refusal)):
                await each
        assert isinstance(second.exception(), TimeoutError)

    asyncio.run(test())
