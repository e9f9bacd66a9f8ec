"""What TorchServe's worker sends for a batch, whatever a service has ready when."""

import io
import struct
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from marship.serving.handler import Clock
from marship.serving.hosts.torchserve import entry
from marship.serving.hosts.torchserve.wire import STREAM_HEADER
from marship.serving.message import Reply, Request
from marship.serving.metrics import Metrics
from marship.serving.streaming import StreamHandler

Turn = dict[int, bool]
"""For each place of a batch that is ready: whether more follows."""


class Planned(StreamHandler):
    """Has ready in each turn what a test says."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns, self.metrics, self._max_response_bytes = turns, Metrics(), 1 << 20

    def answers(self, requests: Sequence[Request], clock: Clock) -> Iterator[dict[int, Reply]]:
        """Parts that name their turn and their place."""
        del requests, clock
        for number, turn in enumerate(self.turns):
            yield {i: Reply(b"%d.%d;" % (i, number), more=more) for i, more in turn.items()}


@st.composite
def plans(draw: st.DrawFn) -> list[Turn]:
    """Turns of up to four requests, each with any number of parts and one last."""
    left = {place: draw(st.integers(0, 3)) for place in range(draw(st.integers(1, 4)))}
    turns = []
    while left:
        ready = draw(st.sets(st.sampled_from(sorted(left)), min_size=1))
        turns.append({place: left[place] > 0 for place in ready})
        left = {p: n - (p in ready) for p, n in left.items() if p not in ready or n > 0}
    return turns


def sent(message: bytes) -> dict[int, tuple[bytes, str | None]]:
    """A message's bodies and stream marks, by the number in the request's id."""
    reader = io.BytesIO(message)

    def number() -> int:
        return int(struct.unpack("!i", reader.read(4))[0])

    def text() -> bytes:
        return reader.read(number())

    number()  # the status
    text()
    found = {}
    while (size := number()) != -1:
        place = int(reader.read(size))
        text()  # content type
        number()  # status
        text()
        headers = {text(): text() for _ in range(number())}
        mark = headers.get(STREAM_HEADER.encode())
        found[place] = (text(), mark.decode() if mark else None)
    return found


@given(plans())
def test_every_stream_is_ended_and_every_request_served_once(turns: list[Turn]) -> None:
    """TorchServe takes messages as long as one holds a part that others follow.

    Whatever is ready when: bodies arrive whole and in order, the messages before the last each hold
    an open stream, the last holds none, and a stream that was begun is ended by its mark.
    """
    count = 1 + max(place for turn in turns for place in turn)
    requests = [Request(b"", id=b"%d" % place, headers={"h": ""}) for place in range(count)]
    early: list[bytes] = []
    last = entry.answer(Planned(turns), requests, early.append)
    messages = [sent(message) for message in [*early, last]]
    for message in messages[:-1]:
        assert "true" in {mark for _, mark in message.values()}
    assert "true" not in {mark for _, mark in messages[-1].values()}
    for place in range(count):
        parts = [message[place] for message in messages if place in message]
        wanted = b"".join(b"%d.%d;" % (place, n) for n, turn in enumerate(turns) if place in turn)
        assert b"".join(body for body, _ in parts) == wanted
        marks = [mark for _, mark in parts]
        assert marks == [None] or marks == ["true"] * (len(parts) - 1) + ["false"]


def test_a_service_that_does_not_stream_sends_one_message() -> None:
    """Without the outbox."""

    class Plain(Planned):
        streams = False

        def reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
            """All at once."""
            return [Reply(b"x") for _ in requests], ""

    early: list[bytes] = []
    last = entry.answer(Plain([]), [Request(b"", id=b"0", headers={"h": ""})], early.append)
    assert early == []
    assert sent(last) == {0: (b"x", None)}


def test_explanations_are_known_by_torchserves_mark() -> None:
    """From its own reader, too."""
    for mark in ("True", "False", None):
        headers = {"body": {"content-type": "a/b"}} | ({"explain": mark} if mark else {})
        assert entry.to_request({"body": b"x"}, headers).explains is (mark == "True")
