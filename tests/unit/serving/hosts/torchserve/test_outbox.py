"""What of a batch is sent when: TorchServe awaits more only beside a stream that goes on."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marship.serving.hosts.torchserve.outbox import STREAM_HEADER, Outbox
from marship.serving.message import Reply


def part(body: bytes) -> Reply:
    """A part that others follow."""
    return Reply(body, more=True)


def mark(reply: Reply) -> str | None:
    """What the response tells TorchServe of what follows."""
    return dict(reply.headers).get(STREAM_HEADER)


def shown(replies: dict[int, Reply]) -> dict[int, tuple[bytes, str | None]]:
    """Bodies and marks."""
    return {index: (reply.body, mark(reply)) for index, reply in replies.items()}


def test_without_a_stream_all_is_sent_at_once() -> None:
    """Early responses wait, in order, and nothing is marked."""
    outbox = Outbox(3)
    assert outbox.take({1: Reply(b"b")}) == {}
    assert outbox.take({2: Reply(b"c"), 0: Reply(b"a")}) == {}
    assert shown(outbox.rest()) == {0: (b"a", None), 1: (b"b", None), 2: (b"c", None)}


def test_an_early_response_goes_out_beside_a_stream() -> None:
    """What was ready before the stream began, too; it is not sent again."""
    outbox = Outbox(3)
    assert outbox.take({0: Reply(b"a")}) == {}
    assert shown(outbox.take({2: part(b"1")})) == {0: (b"a", None), 2: (b"1", "true")}
    assert shown(outbox.take({1: Reply(b"b"), 2: part(b"")})) == {
        1: (b"b", None),
        2: (b"", "true"),
    }
    assert outbox.take({2: Reply(b"2")}) == {}
    assert shown(outbox.rest()) == {2: (b"2", "false")}


def test_a_stream_that_ends_first_is_kept_open() -> None:
    """Its last bytes go out at once with early responses; its end comes with the last message."""
    outbox = Outbox(3)
    outbox.take({0: part(b"1")})
    assert shown(outbox.take({0: Reply(b"2")})) == {0: (b"2", "true")}
    assert shown(outbox.take({1: Reply(b"b")})) == {0: (b"", "true"), 1: (b"b", None)}
    assert outbox.take({2: Reply(b"c")}) == {}
    assert shown(outbox.rest()) == {0: (b"", "false"), 2: (b"c", None)}


def test_a_stream_with_no_news_is_sent_an_empty_part_where_others_wait() -> None:
    """It has begun and is not done, and another response is ready."""
    outbox = Outbox(3)
    outbox.take({0: part(b"1")})
    assert shown(outbox.take({1: Reply(b"b")})) == {0: (b"", "true"), 1: (b"b", None)}
    assert shown(outbox.take({0: part(b"2")})) == {0: (b"2", "true")}


def test_an_error_in_the_middle_is_a_line() -> None:
    """An error before anything was sent stays as it is."""
    outbox = Outbox(2)
    outbox.take({0: part(b"1\n")})
    outbox.take({0: Reply(b"{}", status=500), 1: Reply(b"{}", status=400)})
    assert shown(outbox.rest()) == {0: (b"{}\n", "false"), 1: (b"{}", None)}


BODIES = st.lists(st.sampled_from([b"", b"x", b"yz"]), max_size=4)


@given(st.lists(BODIES, min_size=1, max_size=5), st.integers(0, 2**32))
def test_whatever_comes_when_each_gets_all_and_torchserve_waits_to_the_end(
    bodies: Sequence[Sequence[bytes]], seed: int
) -> None:
    """Every message but the last has a stream that goes on; each request gets its bytes once.

    A request of n bodies has n - 1 parts and one last; none at all is one empty response.
    """
    left = {index: [*parts] or [b""] for index, parts in enumerate(bodies)}
    outbox, messages, generator = Outbox(len(bodies)), [], np.random.default_rng(seed)
    while left:
        ready = {}
        some = generator.permutation(sorted(left))[: generator.integers(len(left) + 1)]
        for index in some.tolist():
            body, *more = left[index]
            ready[index] = Reply(body, more=bool(more))
            left[index] = more
        left = {index: parts for index, parts in left.items() if parts}
        messages.append(outbox.take(ready))
    messages = [message for message in messages if message]
    last = outbox.rest()
    assert all("true" in map(mark, message.values()) for message in messages)
    assert "true" not in map(mark, last.values())
    got: dict[int, list[Reply]] = {}
    for message in [*messages, last]:
        for index, reply in message.items():
            got.setdefault(index, []).append(reply)
    for index, parts in enumerate(bodies):
        assert b"".join(reply.body for reply in got[index]) == b"".join(parts)
        marks = list(map(mark, got[index]))
        assert marks == [None] or marks == ["true"] * (len(marks) - 1) + ["false"]
