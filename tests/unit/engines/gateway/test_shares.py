"""What calls share: the newest get a place, and bytes come in order, none twice, none lost."""

import asyncio
import gc
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.engines.gateway import shares
from marship.engines.gateway.shares import Memory, MemoryShare, Newest, Unread
from marship.engines.gateway.statuses import Refusal

MOST = 100
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2 * MOST)),
        st.tuples(st.sampled_from(["end", "cancel", "both"]), st.integers(0, 20)),
    ),
    max_size=60,
)


async def settle() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Callers:
    """Calls of one memory, in the order in which they asked."""

    def __init__(self) -> None:
        self.memory = Memory(MOST)
        self.calls: list[tuple[int, MemoryShare, asyncio.Task[None]]] = []

    def step(self, what: str, number: int) -> None:
        """Ask for bytes, or end the first call, give one up, or both in the same turn."""
        if what == "ask":
            share = MemoryShare(self.memory)
            self.calls.append((number, share, asyncio.create_task(share.wait(number, 60))))
        if what in ("cancel", "both") and self.calls:
            self.calls[number % len(self.calls)][2].cancel()
        if what in ("end", "both") and self.calls:
            _, share, task = self.calls[0]
            if task.done() and not task.cancelled():
                share.end()
                del self.calls[0]

    def check(self) -> None:
        """Never more than there is, and nobody waits for what is there."""
        self.calls = [each for each in self.calls if not each[2].cancelled()]
        held = sum(min(size, MOST) for size, _, task in self.calls if task.done())
        waiting = [min(size, MOST) for size, _, task in self.calls if not task.done()]
        assert held <= MOST
        assert not waiting or waiting[0] > MOST - held

    async def close(self) -> None:
        """End all."""
        for _, share, task in self.calls:
            task.cancel()
            await settle()
            share.end()


@settings(deadline=None)
@given(STEPS)
def test_memory_is_given_in_order_and_comes_back_whole(steps: list[tuple[str, int]]) -> None:
    """Whatever calls ask for, end and give up: never too much, and the first is served first."""

    async def test() -> None:
        callers = Callers()
        for what, number in steps:
            callers.step(what, number)
            if what != "both":
                await settle()
                callers.check()
        await settle()
        await callers.close()
        assert await callers.memory.take(MOST, 0.01) == MOST

    asyncio.run(test())


def test_who_waits_too_long_for_memory_is_told_to_come_back() -> None:
    """What is larger than all gets all; who is behind one that gave up goes on."""

    async def test() -> None:
        memory = Memory(MOST)
        first, large, small = (MemoryShare(memory) for _ in range(3))
        await first.wait(10 * MOST, 1)
        first.hold(MOST // 2)
        behind = asyncio.create_task(large.wait(MOST, 0.01))
        last = asyncio.create_task(small.wait(MOST // 2, 60))
        with pytest.raises(Refusal) as caught:
            await behind
        assert (caught.value.status.name, caught.value.code) == ("RESOURCE_EXHAUSTED", "busy")
        assert dict(caught.value.trailing)["retry-after"] == "1"
        await last

    asyncio.run(test())


def test_who_waits_holds_nothing() -> None:
    """Else calls that wait for their responses' memory could wait for each other for ever."""

    async def test() -> None:
        memory = Memory(MOST)
        calls = [MemoryShare(memory) for _ in range(2)]
        for each in calls:
            await each.wait(MOST // 2, 1)

        async def respond(share: MemoryShare) -> None:
            await share.wait(MOST, 60)
            share.end()

        async with asyncio.timeout(10):
            await asyncio.gather(*map(respond, calls))

    asyncio.run(test())


def test_what_is_there_counts_even_beyond_the_limit() -> None:
    """Values that took more than was asked for: others wait until they are gone."""

    async def test() -> None:
        memory = Memory(MOST)
        call, other = MemoryShare(memory), MemoryShare(memory)
        call.hold(3 * MOST)
        with pytest.raises(Refusal):
            await other.wait(1, 0.01)
        call.end()
        await other.wait(MOST, 0.01)

    asyncio.run(test())


def test_freed_memory_is_released_once_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for calls that are small: it takes milliseconds."""
    monkeypatch.setattr(shares, "_RELEASE_S", 0.05)
    released = []

    async def test() -> None:
        done = asyncio.Event()
        monkeypatch.setattr(shares, "release_freed", lambda: (released.append(1), done.set()))
        memory = Memory(1 << 30)

        def call(size: int) -> None:
            with MemoryShare(memory) as share:
                share.hold(size)
                share.hold(1)

        call(1000)
        await asyncio.sleep(0.1)  # longer than one that is wrong would take
        assert not released
        for _ in range(10):
            call(2 << 20)
        async with asyncio.timeout(10):
            await done.wait()
        assert len(released) == 1
        done.clear()
        call(2 << 20)
        async with asyncio.timeout(10):
            await done.wait()

    asyncio.run(test())


@settings(deadline=None)
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


def test_a_response_no_larger_than_its_message_waits_for_nobody() -> None:
    """Whoever else waits, and holds all the rest: the model has worked for it."""

    async def test() -> None:
        memory = Memory(100)
        one, others, waits = (MemoryShare(memory) for _ in range(3))
        with one, others, waits:
            await one.wait(40, 0.0)
            await others.wait(60, 0.0)
            task = asyncio.create_task(waits.wait(50, 10.0))
            await settle()
            await one.wait(30, 0.0)
            assert not task.done()
            others.end()
            await task

    asyncio.run(test())


def test_who_keeps_what_others_wait_for_is_called_in() -> None:
    """The oldest first, when its time has passed, and nobody while there is enough for all."""

    async def test() -> None:
        memory = Memory(100, 0.05)
        kept = [MemoryShare(memory) for _ in range(4)]
        ended: list[MemoryShare] = []
        for share in kept:
            share.hold(25)
            memory.lend(share, partial(ended.append, share))
        await asyncio.sleep(0.1)  # longer than any may be lent
        assert not ended
        kept[1].end()
        waits = MemoryShare(memory)
        await waits.wait(20, 0.0)
        waits.end()
        await asyncio.sleep(0)
        assert not ended
        task = asyncio.create_task(waits.wait(60, None))
        while len(ended) < 1:
            await asyncio.sleep(0.001)  # by the clock alone
        assert ended == [kept[0]]
        kept[0].end()
        while len(ended) < 2:
            await asyncio.sleep(0.001)  # by the clock alone
        assert ended == [kept[0], kept[2]]
        kept[2].end()
        await task
        await asyncio.sleep(2 * shares._FREES_S)  # the last one stays: nobody waits
        assert ended == [kept[0], kept[2]]

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


def test_a_model_counts_as_its_last_responses_to_requests_of_a_size() -> None:
    """As the largest possible first; a large one is forgotten behind many that are small."""
    unread = Unread(100, 60)
    assert unread.expected("m", 9) == 60
    unread.note("m", 9, 40)
    assert [unread.expected(*each) for each in (("m", 9), ("m", 15), ("m", 16), ("n", 9))] == [
        40, 40, 60, 60,
    ]  # fmt: skip
    unread.note("m", 12, 1)
    assert 30 < unread.expected("m", 9) < 40
    for _ in range(50):
        unread.note("m", 9, 1)
    assert unread.expected("m", 9) < 10
    unread.note("m", 9, 50)
    assert unread.expected("m", 9) == 50


def test_models_do_not_wait_for_each_other() -> None:
    """Calls of one share its bytes, and of a model without calls nothing is kept."""

    async def test() -> None:
        unread = Unread(100, 60)
        with unread.share("m") as one, unread.share("m") as two, unread.share("n") as three:
            await one.wait(60, 0.0)
            waits = asyncio.create_task(two.wait(60, 60.0))
            await three.wait(60, 0.0)
            assert not waits.done()
            one.end()
            await waits
        del one, two, three, waits
        gc.collect()
        assert not len(unread._memories)

    asyncio.run(test())
