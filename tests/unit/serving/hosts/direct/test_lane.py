"""Batches without a delay: what arrived while a call ran is the next one."""

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from directly import Place, request, service, until
from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct import lane
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.message import Reply, Request
from marship.serving.model.session import SessionSettings
from marship.serving.streaming import StreamHandler


class Held(OnnxHandler):
    """Answers when it is told to, and keeps how many requests came together."""

    def prepare(self) -> None:
        """Nothing came yet."""
        self.batches: list[int] = []
        self.goes = threading.Semaphore(0)

    def _reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        self.batches.append(len(requests))
        assert self.goes.acquire(timeout=20)
        return super()._reply(requests)

    def call_s(self, rows: int) -> float:  # noqa: ARG002
        """On a thread."""
        return 1.0


@pytest.fixture
def held(folder: Path, place: Place) -> Iterator[tuple[Place, Any]]:
    """A place whose model waits for a word."""
    loaded = service(folder, kind=Held)
    place.add(loaded, batch=4, queue=6)
    place.follow(m=("1.0",))
    yield place, loaded
    loaded.goes.release(100)


def test_requests_of_clients_that_are_gone_are_not_run(held: tuple[Place, Any]) -> None:
    """They keep nobody else waiting; a client that only ends its side may still read."""
    place, loaded = held
    (worker,) = place.workers
    with place.line() as first, place.line() as last:
        first.send(request())
        until(lambda: loaded.batches == [1])
        for _ in range(3):
            with place.line() as gone:
                gone.send(request())
                resets = struct.pack("ii", 1, 0)
                gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, resets)
        until(lambda: worker._lane.load == 4)
        until(lambda: len(worker._connections) == 1)
        last.send(request())
        until(lambda: worker._lane.load == 5)
        loaded.goes.release(2)
        assert first.read().status == last.read().status == 200
    assert loaded.batches == [1, 1]


def test_what_arrives_during_a_call_is_the_next_batch(held: tuple[Place, Any]) -> None:
    """Up to the batch's size; a lone request does not wait for company."""
    place, loaded = held
    lines = [place.line() for _ in range(7)]
    opened = [line.__enter__() for line in lines]
    opened[0].send(request())
    until(lambda: loaded.batches == [1])
    for line in opened[1:6]:
        line.send(request())
    (worker,) = place.workers
    until(lambda: worker._lane.load == 6)
    loaded.goes.release(3)
    for line in opened[:6]:
        assert line.read().status == 200
    assert loaded.batches == [1, 4, 1]
    for each in lines:
        each.__exit__(None, None, None)


def test_a_full_queue_is_503_and_others_go_on(held: tuple[Place, Any]) -> None:
    """With when to retry, on a connection that stays open."""
    place, loaded = held
    (worker,) = place.workers
    lines = [place.line() for _ in range(7)]
    opened = [line.__enter__() for line in lines]
    opened[0].send(request())
    until(lambda: loaded.batches == [1])
    for line in opened[1:]:
        line.send(request())
    until(lambda: worker._lane.load == 7)
    with place.line() as late:
        late.send(request())
        got = late.read()
        assert (got.status, got.json()["code"], got.headers["retry-after"]) == (503, "busy", "1")
        loaded.goes.release(10)
        for line in opened:
            assert line.read().status == 200
        late.send(request())
        assert late.read().status == 200
    for each in lines:
        each.__exit__(None, None, None)


def test_a_batch_that_takes_too_long_is_504_and_ends_the_worker(
    folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients are told before the process ends; the model's host starts another one."""
    ended = threading.Event()
    monkeypatch.setattr("os._exit", lambda _: ended.set())
    loaded = service(folder, kind=Held, timeout_s=0.3)
    place.add(loaded)
    place.follow(m=("1.0",))
    got = place.ask()
    assert (got.status, got.json()["code"]) == (504, "response_timeout")
    assert ended.wait(5)
    loaded.goes.release(10)


class Clock:
    """Time, of which some may have passed without this process."""

    def __init__(self) -> None:
        self.passed = self.worked = 0.0
        self.sleep, self.perf_counter, self.thread_time = (
            time.sleep, time.perf_counter, time.thread_time,
        )  # fmt: skip

    def monotonic(self) -> float:
        """Since some moment."""
        return time.monotonic() + self.passed

    def process_time(self) -> float:
        """Of the processor."""
        return time.process_time() + self.worked


@pytest.mark.parametrize("works", [False, True])
def test_a_batch_has_its_time_again_where_the_process_was_stopped(
    folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """But not where it worked for as long, and kept Python's lock."""
    clock, ended = Clock(), threading.Event()
    monkeypatch.setattr("os._exit", lambda _: ended.set())
    monkeypatch.setattr(lane, "time", clock)
    loaded = service(folder, kind=Held, timeout_s=30.0)
    place.add(loaded)
    place.follow(m=("1.0",))
    with place.line() as line:
        line.send(request())
        until(lambda: loaded.batches == [1])
        clock.worked += 100.0 * works  # before the other: they are looked at in this order
        clock.passed += 100.0
        if works:
            assert line.read().status == 504
            assert ended.wait(5)
        else:
            assert not ended.wait(3 * lane._LOOK_S)
            loaded.goes.release()
            assert line.read().status == 200
    loaded.goes.release(10)


@pytest.mark.parametrize(
    ("is_busy", "takes_s"), [(False, 1e-3), (False, 1e-2), (True, 1e-2), (True, 0.1)]
)
def test_calls_run_in_the_loop_where_no_core_is_left_for_it(
    folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch, is_busy: bool, takes_s: float
) -> None:
    """Up to a limit: a thread and the loop would take turns on one core."""

    class Named(OnnxHandler):
        def call_s(self, rows: int) -> float:  # noqa: ARG002
            return takes_s

        def _reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
            names.append(threading.current_thread().name)
            return super()._reply(requests)

    names: list[str] = []
    monkeypatch.setattr(SessionSettings, "uses_all_cores", is_busy)
    place.add(service(folder, kind=Named))
    place.follow(m=("1.0",))
    assert place.ask().status == 200
    assert len(names) == 1
    assert names[0].startswith("model-") == (takes_s > (0.05 if is_busy else 0.005))


def test_what_waits_for_a_worker_that_ends_is_told_at_once(
    folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch gets 504; what waits behind it, and what still comes, 503."""
    ended = threading.Event()
    monkeypatch.setattr("os._exit", lambda _: ended.set())
    loaded = service(folder, kind=Held, timeout_s=0.5)
    worker = place.add(loaded, batch=1)
    place.follow(m=("1.0",))
    with place.line() as runs, place.line() as waits:
        runs.send(request())
        until(lambda: loaded.batches == [1])
        waits.send(request())
        until(lambda: worker._lane.load == 2)
        assert runs.read().status == 504
        got = waits.read()
        assert (got.status, got.json()["code"]) == (503, "worker_died")
        waits.send(request())
        assert waits.read().status == 503
    assert ended.wait(5)
    loaded.goes.release(10)


@pytest.mark.parametrize("is_in_loop", [False, True])
@pytest.mark.parametrize("step", ["render", "send"])
def test_a_response_that_cannot_be_written_does_not_reach_its_neighbours(
    folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch, is_in_loop: bool, step: str
) -> None:
    """Its own connection ends; whoever shares the batch gets what it asked for."""
    loaded = service(folder, kind=Held)
    worker = place.add(loaded)
    place.follow(m=("1.0",))
    loaded.goes.release(10)
    worker._lane._in_loop = is_in_loop
    works = getattr(Exchange, step)

    def fails(self: Exchange, *args: Any) -> Any:
        if b"x-fails" in self.head.raw:
            raise IndexError("a fault of ours")
        return works(self, *args)

    monkeypatch.setattr(Exchange, step, fails)
    begun, goes = threading.Event(), threading.Event()
    with place.line() as one, place.line() as bad, place.line() as other:
        for line in (one, bad, other):
            line.send(request())
            assert line.read().status == 200
        worker._loop.call_soon_threadsafe(lambda: (begun.set(), goes.wait(10)))
        assert begun.wait(10)
        one.send(request())
        bad.send(request(headers={"X-Fails": "1"}))
        other.send(request())
        goes.set()
        assert one.read().status == other.read().status == 200
        assert bad.is_closed()
    assert place.ask().status == 200


class Counting(StreamHandler):
    """Streams as many lines as the body has bytes, when it is told to."""

    goes = threading.Semaphore(0)

    def answers(self, requests: Sequence[Request], clock: Any) -> Iterator[dict[int, Reply]]:  # noqa: ARG002
        """A line for each byte."""
        sizes = [len(one.body) for one in requests]
        for turn in range(max(sizes)):
            assert Counting.goes.acquire(timeout=20)
            yield {
                i: Reply(b"%d\n" % turn, "application/jsonl", more=turn + 1 < size)
                for i, size in enumerate(sizes)
                if turn < size
            }


@pytest.fixture
def streaming(folder: Path, place: Place) -> Place:
    """A place whose model streams."""
    place.add(service(folder, kind=Counting))
    place.follow(m=("1.0",))
    return place


def test_lines_are_sent_as_they_are_ready(streaming: Place) -> None:
    """In chunks, one behind the other, and the connection stays open."""
    with streaming.line() as line:
        line.send(request(body=b"abc"))
        Counting.goes.release()
        head = b""
        while not head.endswith(b"0\n\r\n"):
            head += line.socket.recv(1)
        assert b"transfer-encoding: chunked" in head
        Counting.goes.release(2)
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            rest += line.socket.recv(100)
        assert rest == b"2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n"
        Counting.goes.release(1)
        line.send(request(body=b"a"))
        assert line.read().body == b"0\n"


def test_a_short_stream_does_not_wait_for_a_long_one(streaming: Place) -> None:
    """They take turns."""
    with streaming.line() as long, streaming.line() as short:
        long.send(request(body=b"x" * 50))
        Counting.goes.release(3)
        until(lambda: Counting.goes._value == 0)
        short.send(request(body=b"x"))
        (worker,) = streaming.workers
        until(lambda: len(worker._service._calls._waiting) == 1)
        Counting.goes.release(4)
        assert short.read().body == b"0\n"
        Counting.goes.release(60)
        assert long.read().body.count(b"\n") == 50


def test_server_sent_events_and_clients_of_http_1_0(streaming: Place) -> None:
    """Events are data lines, also of one part; a client of HTTP/1.0 gets bytes until the end."""
    Counting.goes.release(20)
    with streaming.line() as line:
        line.send(request(body=b"a", headers={"Accept": "text/event-stream"}))
        got = line.read()
        assert got.headers["content-type"] == "text/event-stream"
        assert got.body == b"data: 0\n\n"
    with streaming.line() as line:
        line.send(request(body=b"ab", headers={"Accept": "text/event-stream"}))
        got = line.read()
        assert got.headers["content-type"] == "text/event-stream"
        assert got.body == b"data: 0\n\ndata: 1\n\n"
    with streaming.line() as line:
        line.send(b"POST /predictions/m HTTP/1.0\r\nContent-Length: 2\r\n\r\nab")
        got = line.read()
        assert (got.body, got.headers.get("transfer-encoding")) == (b"0\n1\n", None)


@pytest.mark.parametrize("has_core", [True, False])
def test_the_loop_looks_for_the_next_request_where_a_core_is_left(
    folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch, has_core: bool
) -> None:
    """After one that came soon, for a while; else it sleeps, as others need the core."""
    monkeypatch.setattr(lane, "SPIN_S", 0.05)  # so that a client of this process comes within it
    monkeypatch.setattr(SessionSettings, "has_spare_cores", property(lambda _: has_core))
    looks: list[float] = []
    spin = lane.Lane._spin

    def counted(self: lane.Lane, since: float) -> None:
        looks.append(time.perf_counter())
        spin(self, since)

    monkeypatch.setattr(lane.Lane, "_spin", counted)
    place.add(service(folder))
    place.follow(m=("1.0",))
    with place.line() as line:
        for _ in range(5):
            line.send(request())
            assert line.read().status == 200
        last = time.perf_counter()
        time.sleep(0.3)  # longer than it looks
        assert bool(looks) == has_core
        assert not looks or looks[-1] - last < 0.1
        seen = len(looks)
        line.send(request())  # after a pause: the next may take as long
        assert line.read().status == 200
        time.sleep(0.1)  # longer than it would look
        assert len(looks) == seen
