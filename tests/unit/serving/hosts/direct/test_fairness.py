"""What one client may take of the time and memory that all share."""

import contextlib
import gc
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from directly import BODY, JSON, Line, Place, request, service, until
from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct import exchange, lane, site
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.writer import Writer
from marship.serving.message import Reply, Request
from marship.serving.streaming import StreamHandler


def longest_wait_s(place: Place, path: str, count: int = 5) -> float:
    """How long the slowest of some requests takes, each on a new connection."""
    longest = 0.0
    for _ in range(count):
        began = time.monotonic()
        place.ask(path, BODY if path.startswith("/predictions") else b"", "GET")
        longest = max(longest, time.monotonic() - began)
    return longest


@pytest.mark.parametrize("before", [b"", request()])
def test_empty_lines_are_few(one: Place, before: bytes) -> None:
    """Megabytes of them are one refusal, and take nobody's time."""
    with one.line() as line:
        if before:
            line.send(before)
            assert line.read().status == 200
        threading.Thread(target=_send_all, args=(line, b"\r\n" * 2_000_000), daemon=True).start()
        assert longest_wait_s(one, "/ping") < 1
        assert longest_wait_s(one, "/predictions/m") < 1
        assert line.read().status == 400


def _send_all(line: Line, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it is refused before the end
        line.send(data)


@pytest.mark.parametrize("path", ["/ping", "/v2/models/m/ready", "/predictions/m"])
def test_a_client_that_never_stops_asking_leaves_others_their_turn(one: Place, path: str) -> None:
    """Pipelined, and reading all that comes."""
    is_done = threading.Event()
    sent = request(path, BODY if path.startswith("/predictions") else b"", "GET")
    with one.line() as line:

        def send() -> None:
            while not is_done.is_set():
                _send_all(line, sent * 500)

        def read() -> None:
            with contextlib.suppress(OSError):  # the end of the test
                while line.socket.recv(1 << 20):
                    pass

        for run in (send, read):
            threading.Thread(target=run, daemon=True).start()
        time.sleep(0.3)  # until it is at full speed
        waits = [longest_wait_s(one, each) for each in ("/ping", "/v2/models/m", "/predictions/m")]
        is_done.set()
    assert max(waits) < 2, waits


@pytest.fixture
def hasty(folder: Path) -> Iterator[Place]:
    """A place that waits for nobody."""
    made = Place(limits=Limits(head_s=0.5, body_s=0.5, body_rate=1 << 30, idle_s=0.6))
    made.add(service(folder, kind=Slow), batch=1)
    made.follow(m=("1.0",))
    yield made
    made.close()


class Slow(OnnxHandler):
    """Takes as long as a request says."""

    def decode(self, request: Request) -> Any:
        """Wait, and decode."""
        time.sleep(float(request.header("x-takes") or 0))  # a model that is slow
        return super().decode(request)

    def call_s(self, rows: int) -> float:  # noqa: ARG002
        """On a thread."""
        return 1.0


@pytest.mark.parametrize("before", [b"", request()])
def test_empty_lines_keep_no_connection_open(hasty: Place, before: bytes) -> None:
    """However slowly they come."""
    with hasty.line() as line:
        if before:
            line.send(before)
            assert line.read().status == 200
        began = time.monotonic()
        with contextlib.suppress(OSError):  # reset, or a broken pipe
            while time.monotonic() - began < 10:
                line.send(b"\r\n")
                time.sleep(0.2)  # as slowly as a client can
        assert time.monotonic() - began < 4


def test_the_time_of_a_body_is_not_that_of_requests_before_it(hasty: Place) -> None:
    """All its bytes were sent at once, behind a slow request, on a connection that was full."""
    slow = request(headers={**JSON, "X-Takes": "1.5"})
    last = request(body=BODY + b" " * 1000)
    with hasty.line() as line:
        line.send(slow + request() * 6 + last[:-500])
        time.sleep(0.05)  # so that its head is read before its end comes
        line.send(last[-500:])
        assert [line.read().status for _ in range(8)] == [200] * 8


@pytest.fixture
def slow(loaded: Any) -> Iterator[Place]:
    """A place that waits half a second for a body, and one more for each thousand bytes."""
    made = Place(limits=Limits(body_s=0.5, body_rate=1000))
    made.add(loaded)
    made.follow(m=("1.0",))
    yield made
    made.close()


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(("part_bytes", "status"), [(400, 200), (2, 408)])
def test_a_body_that_keeps_coming_may_take_its_time(
    slow: Place, part_bytes: int, status: int, is_chunked: bool
) -> None:
    """In chunks or not; one that trickles in may not, and its client learns why."""
    size = 4000 if part_bytes > 100 else 40
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
    head = b"POST /predictions/m HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    body = BODY.ljust(size) if size > len(BODY) else b" " * size
    with slow.line() as line:
        line.send(head + framing + b"\r\n\r\n")
        for start in range(0, size, part_bytes):
            part = body[start : start + part_bytes]
            line.send(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
            time.sleep(0.12)  # as a client does that has no more yet
        line.send(b"0\r\n\r\n" if is_chunked else b"")
        assert line.read().status == status


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_the_body_of_a_refused_request_is_not_waited_for_as_long(slow: Place, framing: str) -> None:
    """However large it is said to be; its client learns why it is refused."""
    with slow.line() as line:
        line.send(f"DELETE /predictions/m HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
        line.socket.settimeout(5)
        assert line.read("DELETE").status == 405


def test_a_client_that_waits_for_continue_is_waited_for(hasty: Place) -> None:
    """Behind a slow request it cannot know that its body is wanted."""
    waits = request(headers={**JSON, "Expect": "100-continue"})
    with hasty.line() as line:
        line.send(request(headers={**JSON, "X-Takes": "1.5"}) + waits[: -len(BODY)])
        assert line.read().status == 200
        assert line._stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert line._stream.readline() == b"\r\n"
        line.send(BODY)
        assert line.read().status == 200


def test_a_body_in_tiny_chunks_takes_its_own_size(one: Place) -> None:
    """A bytes object for each would take twenty times as much."""
    with one.line() as line:
        line.send(
            b"POST /predictions/m HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/json\r\n\r\n"
        )
        line.send(b"2\r\n  \r\n" * 100_000)
        (worker,) = one.workers
        until(lambda: any(each._reader._size == 200_000 for each in list(worker._connections)))
        (parts,) = [each._reader._body for each in worker._connections if each._reader._body]
        assert len(parts) < 10
        line.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        assert line.read().status == 200


class Endless(StreamHandler):
    """Parts without an end, or as the body says."""

    parts = 0

    def answers(self, requests: Sequence[Request], clock: Any) -> Iterator[dict[int, Reply]]:  # noqa: ARG002
        """As many parts, of as many bytes, and perhaps without a last one."""
        told = json.loads(requests[0].body)
        for number in range(told["parts"]):
            Endless.parts += 1
            is_last = number + 1 == told["parts"] and told.get("ends", True)
            yield {0: Reply(b"x" * told["size"], "application/jsonl", more=not is_last)}


@pytest.fixture
def streaming(folder: Path, place: Place) -> Place:
    """A place whose model streams."""
    place.add(service(folder, kind=Endless), batch=1)
    place.follow(m=("1.0",))
    Endless.parts = 0
    return place


def asked(parts: int, size: int, **more: object) -> bytes:
    """A request for a stream."""
    return request(body=json.dumps({"parts": parts, "size": size, **more}).encode())


def test_streams_whose_clients_are_gone_end(streaming: Place) -> None:
    """They would hold the places of others."""
    for _ in range(4):
        with streaming.line() as line:
            line.send(asked(10**9, 10))
            assert line._stream.readline() == b"HTTP/1.1 200 OK\r\n"
    with streaming.line() as line:
        line.send(asked(1, 10))
        assert line.read().status == 200
    count = -1

    def rests() -> bool:
        nonlocal count
        count, before = Endless.parts, count
        time.sleep(0.05)  # a running stream makes hundreds of parts meanwhile
        return count == before

    until(rests)


def test_a_stream_that_nobody_reads_ends(streaming: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for its client is bounded, and so is the work."""
    monkeypatch.setattr(exchange, "MOST_BEHIND", 1 << 22)
    with streaming.line() as line, streaming.line() as behind:
        line.send(asked(10**9, 10_000))
        behind.send(asked(10, 10) + asked(10**9, 10_000))  # behind another one, too
        until(lambda: len(streaming.workers[0]._connections) == 0, 20)
    assert Endless.parts < 20_000


def test_a_stream_waits_for_a_loop_that_is_busy(streaming: Place) -> None:
    """What the loop has not sent yet counts to no client: a fast model would fill the memory."""
    goes = threading.Event()
    with streaming.line() as line:
        line.send(asked(10**9, 10))
        assert line._stream.readline() == b"HTTP/1.1 200 OK\r\n"
        loop = streaming.workers[0]._loop
        held = threading.Event()
        loop.call_soon_threadsafe(lambda: (held.set(), goes.wait(10)))
        assert held.wait(10)
        before = Endless.parts
        time.sleep(0.5)  # a stream that does not wait makes thousands of parts meanwhile
        made = Endless.parts - before
        goes.set()
    assert made <= lane.MOST_AHEAD + 1


@pytest.mark.parametrize("parts", [0, 3])
def test_a_stream_without_a_last_part_is_an_error(streaming: Place, parts: int) -> None:
    """A handler's mistake: the client is told, and does not wait for ever."""
    with streaming.line() as line:
        line.send(asked(parts, 5, ends=False))
        got = line.read()
        assert (got.status, b'"code"' in got.body) == (200 if parts else 500, True)
        line.send(asked(1, 5))
        assert line.read().body == b"xxxxx"


def test_ping_is_healthy_at_once_where_an_acceptor_starts_again(place: Place) -> None:
    """A probe must not end the server for it; at the very start nothing is known yet."""
    assert place.ask("/ping", b"", "GET").status == 503
    place.is_restart = True
    place.stop_acceptor()
    place.start_acceptor()
    assert place.ask("/ping", b"", "GET").status == 200


class Large(OnnxHandler):
    """Responds with 4 MB."""

    def encode(self, outputs: Any, state: Any) -> Reply:  # noqa: ARG002
        """Zeros."""
        return Reply(bytes(4 << 20), "application/octet-stream")


def test_responses_that_nobody_reads_are_not_kept_beyond_a_limit(folder: Path) -> None:
    """Of all connections together; a client that reads keeps its connection."""
    made = Place(limits=Limits(unsent_bytes=24 << 20))
    made.add(service(folder, kind=Large))
    made.follow(m=("1.0",))
    try:
        with contextlib.ExitStack() as opened:
            lines = [opened.enter_context(made.line()) for _ in range(12)]
            for line in lines:
                line.send(request("/v2/models/m", b"", "GET"))
                assert line.read("GET").status == 200
            for line in lines:
                line.send(request() * 4)
            until(lambda: len(made.workers[0]._connections) < len(lines))
            until(lambda: _unsent(made) <= 24 << 20)
            left = len(made.workers[0]._connections)
            assert left >= 1
            with made.line() as reading:
                reading.send(request())
                assert len(reading.read().body) == 4 << 20
    finally:
        made.close()


@pytest.mark.parametrize(("piece", "pause_s"), [(1 << 16, 0.01), (1 << 20, 0.6)])
def test_who_reads_steadily_is_not_closed_for_those_who_have_stopped(
    folder: Path, piece: int, pause_s: float
) -> None:
    """However much they took before, and with longer pauses than the server looks."""
    made = Place(limits=Limits(unsent_bytes=24 << 20))
    made.add(service(folder, kind=Large))
    made.follow(m=("1.0",))
    try:
        with contextlib.ExitStack() as opened:
            stopped = [opened.enter_context(made.line()) for _ in range(4)]
            steady, idle = (opened.enter_context(made.line()) for _ in range(2))
            idle.send(request("/v2/models/m", b"", "GET"))
            assert idle.read("GET").status == 200
            for line in stopped:
                for _ in range(3):
                    line.send(request())
                    assert len(line.read().body) == 4 << 20
            for line in stopped:
                line.send(request() * 5)
            steady.send(request() * 3)
            left = 12 << 20
            while left > 0:
                data = steady.socket.recv(min(piece, left), socket.MSG_WAITALL)
                assert data, f"closed with {left} bytes to come"
                left -= len(data)
                time.sleep(pause_s)  # as a slow network
            until(lambda: _unsent(made) <= 24 << 20)
            idle.send(request("/v2/models/m", b"", "GET"))  # closing it would free nothing
            assert idle.read("GET").status == 200
    finally:
        made.close()


@dataclass
class _Waiting:
    """A connection for which a response waits."""

    unsent: int
    buffered: int = 0
    is_open: bool = True

    def __post_init__(self) -> None:
        self.writer = Writer(None, None)
        self.writer.open(self, is_begun=True)  # type: ignore[arg-type]
        self.writer._written = self.unsent
        self.buffered = self.unsent

    def get_extra_info(self, _: str) -> Any:
        return socket.socket()

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def take(self, size: int) -> None:
        self.buffered -= size
        self.unsent -= size

    def abandon(self) -> None:
        self.is_open = False
        self.unsent = 0


@pytest.mark.parametrize("gap_s", [0.3, 1.0, 4.0])
def test_who_has_taken_something_last_is_closed_last(gap_s: float) -> None:
    """Though most waits for it, and it has taken nothing since the last look."""
    steady, *stopped = (_Waiting(size << 20) for size in (40, 5, 5, 5))
    now = time.monotonic()
    for step in range(int(20 / gap_s)):
        now += gap_s
        site._drop_unread([steady, *stopped], 64 << 20, now)  # type: ignore[list-item]
        steady.take(1 << 18)
        site._drop_unread([steady, *stopped], 64 << 20, now)  # type: ignore[list-item]
        assert steady.is_open, step
        assert all(each.is_open for each in stopped), step
    now += gap_s / 2
    waiting = sum(each.unsent for each in (steady, *stopped))
    site._drop_unread([steady, *stopped], waiting - (6 << 20), now)  # type: ignore[list-item]
    assert steady.is_open
    assert sum(each.is_open for each in stopped) == 1


class Gated(StreamHandler):
    """A line, and the last one when it is told to; or four parts of 4 MB each."""

    goes = threading.Event()

    def answers(self, requests: Sequence[Request], clock: Any) -> Iterator[dict[int, Reply]]:  # noqa: ARG002
        """By its body."""
        if requests[0].body == b"large":
            for number in range(4):
                yield {0: Reply(bytes(4 << 20), "application/jsonl", more=number < 3)}
            return
        yield {0: Reply(b"1\n", "application/jsonl", more=True)}
        while not Gated.goes.wait(0.01):
            yield {}  # others have their turns
        yield {0: Reply(b"2\n", "application/jsonl")}


@pytest.fixture
def gated(folder: Path) -> Iterator[Place]:
    """A place whose model streams, and keeps 24 MB of responses."""
    made = Place(limits=Limits(unsent_bytes=24 << 20))
    made.add(service(folder, kind=Gated), batch=1)
    made.follow(m=("1.0",))
    Gated.goes.clear()
    yield made
    Gated.goes.set()
    made.close()


def begin(line: Line) -> None:
    """Have the first line of a stream."""
    line.send(request(body=b"small"))
    while line._stream.readline() != b"1\n":
        pass


def early(place: Place) -> int:
    """Bytes that wait for their turn."""
    connections = list(place.workers[0]._connections)
    return sum(len(each.early) for one in connections for each in list(one._waiting))


def test_one_request_runs_behind_a_stream(gated: Place) -> None:
    """What is ready of more would wait in memory; each is answered when it is its turn."""
    with gated.line() as line:
        begin(line)
        line.send(request(body=b"large"))
        until(lambda: early(gated) > 16 << 20)
        line.send(request(body=b"large") * 6)
        time.sleep(0.2)  # more would come meanwhile
        assert early(gated) < 17 << 20
        Gated.goes.set()
        assert line._stream.readline() == b"\r\n"
        assert line._stream.readline() == b"2\r\n"
        assert line._stream.read(9) == b"2\n\r\n0\r\n\r\n"
        for _ in range(7):
            assert len(line.read().body) == 16 << 20


def test_responses_that_wait_for_their_turn_count_as_those_that_nobody_reads(gated: Place) -> None:
    """They take the same memory; a client that waits for nothing keeps its connection."""
    with contextlib.ExitStack() as opened:
        lines = [opened.enter_context(gated.line()) for _ in range(3)]
        idle = opened.enter_context(gated.line())
        idle.send(request("/v2/models/m", b"", "GET"))
        assert idle.read("GET").status == 200
        for line in lines:
            begin(line)
        for line in lines:
            line.send(request(body=b"large"))
        until(lambda: len(gated.workers[0]._connections) == 2)
        assert early(gated) <= 24 << 20
        idle.send(request("/v2/models/m", b"", "GET"))
        assert idle.read("GET").status == 200


@pytest.mark.parametrize("body", [b"large", b"half"])
def test_requests_of_a_client_that_left_are_freed_at_once(gated: Place, body: bytes) -> None:
    """Not when Python looks for cycles: a few objects with many bytes do not make it do so."""
    sent = request(body=body)
    gc.collect()
    old = exchanges()  # of other tests, which others may still hold
    gc.disable()
    try:
        with gated.line() as line:
            if body == b"large":
                begin(line)
                line.send(sent)
                until(lambda: early(gated) > 16 << 20)
            else:
                line.send(sent[:-1])
                until(lambda: len(exchanges(old)) == 1)
            # a reset: one that only sends no more may still read
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: not gated.workers[0]._connections)
        Gated.goes.set()
        until(lambda: gated.workers[0]._lane.load == 0)
        until(lambda: not exchanges(old))
    finally:
        gc.enable()


def exchanges(old: Sequence[exchange.Exchange] = ()) -> list[exchange.Exchange]:
    """All that there are but old ones."""
    known = set(map(id, old))
    return [
        each
        for each in gc.get_objects()
        if type(each) is exchange.Exchange and id(each) not in known
    ]


def _unsent(place: Place) -> int:
    return sum(each.writer.buffered for each in list(place.workers[0]._connections))
