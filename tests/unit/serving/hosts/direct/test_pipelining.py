"""Several requests on one connection, however they come, and what one client may do to others."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directly import BODY, JSON, ROW, Line, Place, request, service, until
from marship.serving.hosts.direct.connection import Connection
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.site import close_some
from marship.serving.hosts.direct.slots import IDLE, PARTLY
from marship.serving.message import Reply, Request
from marship.serving.streaming import StreamHandler

CLOSE = {**JSON, "Connection": "close"}


def hold(place: Place) -> threading.Event:
    """Keep the first worker's loop busy until the event is set: what comes is one batch."""
    begun, goes = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        goes.wait(10)

    place.workers[0]._loop.call_soon_threadsafe(wait)
    assert begun.wait(10)
    return goes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_request_that_closes_is_the_last_one_and_neighbours_get_theirs(
    one: Place, data: st.DataObject
) -> None:
    """Whatever stands behind it, known or not, in one write or several; nobody else notices."""
    kinds = {
        "known": request(),
        "unknown": request(headers={**JSON, "X-N": str(data.draw(st.integers(0, 10**9)))}),
        "invalid": request(body=b"{"),
        "model": request("/v2/models/m", b"", "GET"),
        "elsewhere": request("/v2", b"", "GET"),
        "half": request()[:-3],
    }
    before = data.draw(st.lists(st.sampled_from(["known", "invalid", "model"]), max_size=3))
    behind = data.draw(st.lists(st.sampled_from(sorted(kinds)), max_size=3))
    stream = b"".join(kinds[name] for name in before) + request(headers=CLOSE)
    rest = b"".join(kinds[name] for name in behind)
    with one.line() as first, one.line() as neighbour:
        for line in (first, neighbour):
            line.send(request())
            assert line.read().status == 200
        goes = hold(one)
        first.send(stream + rest)
        neighbour.send(request() + request())
        goes.set()
        assert [neighbour.read().status for _ in range(2)] == [200, 200]
        got = [first.read("GET" if name == "model" else "POST").status for name in before]
        assert got == [400 if name == "invalid" else 200 for name in before]
        last = first.read()
        assert (last.status, last.headers["connection"]) == (200, "close")
        assert first.is_closed()


@pytest.mark.parametrize(
    "sent", [request("/ping", b"", "GET"), request("/v2/models/m", b"", "GET"), request()]
)
@pytest.mark.parametrize("ends", [False, True])
def test_hundreds_of_requests_in_one_write_get_their_responses(
    one: Place, sent: bytes, ends: bool
) -> None:
    """Also where the client ends its side behind them: what was sent is answered."""
    with one.line() as line:
        threading.Thread(target=_send, args=(line, sent * 400, ends), daemon=True).start()
        assert {line.read("GET").status for _ in range(400)} == {200}
        if ends:
            assert line.is_closed()
        else:
            line.send(sent)
            assert line.read("GET").status == 200


def _send(line: Line, data: bytes, ends: bool) -> None:
    line.send(data)
    if ends:
        line.socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /ping HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (request()[:-1], 400),
        (b"POST /predictions/m HTTP/1.1\r\nHost:", 400),
        (b"Upgrade: GET /a\r\nGET /ping HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\nHost: a\r\nUpgrade : h2c\r\n\r\n", 400),
    ],
)
def test_a_client_that_ends_behind_a_request_that_cannot_be_read_gets_one_response(
    one: Place, sent: bytes, status: int
) -> None:
    """One refusal, then the end."""
    with one.line() as line:
        line.send(sent)
        line.socket.shutdown(socket.SHUT_WR)
        told = line._stream.read()
    assert told.count(b"HTTP/1.1 ") == told.count(b"HTTP/1.1 %d" % status) == 1, told


class Held(StreamHandler):
    """A line at once, and another one when it is told to."""

    goes = threading.Semaphore(0)

    def answers(self, requests: Sequence[Request], clock: Any) -> Iterator[dict[int, Reply]]:  # noqa: ARG002
        """Two turns."""
        rows = range(len(requests))
        yield {i: Reply(b"1\n", "application/jsonl", more=True) for i in rows}
        assert Held.goes.acquire(timeout=20)
        yield {i: Reply(b"2\n", "application/jsonl") for i in rows}


def test_continue_stands_in_no_other_response(folder: Path, place: Place) -> None:
    """The next request's word comes behind the stream that is under way."""
    place.add(service(folder, kind=Held))
    place.follow(m=("1.0",))
    with place.line() as line:
        line.send(request())
        while line._stream.readline() != b"1\n":
            pass
        assert line._stream.readline() == b"\r\n"
        waits = request(headers={**JSON, "Expect": "100-continue"})
        line.send(waits[: -len(BODY)])
        until(lambda: any(each._reader.is_in_body for each in place.workers[0]._connections))
        Held.goes.release(2)
        rest = b"2\r\n2\n\r\n0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        assert line._stream.read(len(rest)) == rest
        line.send(BODY)
        assert line.read().body == b"1\n2\n"


class Large(StreamHandler):
    """Forty parts of a megabyte."""

    def answers(self, requests: Sequence[Request], clock: Any) -> Iterator[dict[int, Reply]]:  # noqa: ARG002
        """As fast as they are taken."""
        for number in range(40):
            yield {
                i: Reply(bytes(1 << 20), "application/jsonl", more=number < 39)
                for i in range(len(requests))
            }


def test_a_steady_reader_gets_the_whole_of_a_long_stream(folder: Path) -> None:
    """However much waits for it: what counts is what it has taken since it was last looked at."""
    made = Place(limits=Limits(stalled_s=0.5))
    try:
        made.add(service(folder, kind=Large))
        made.follow(m=("1.0",))
        with made.line() as line:
            line.send(request())
            end = b""
            while not end.endswith(b"0\r\n\r\n"):
                end = line.socket.recv(1 << 19)
                assert end, "the stream was cut"
                time.sleep(0.03)  # a reader of some 15 MB/s
    finally:
        made.close()


@pytest.fixture
def hasty(loaded: Any) -> Iterator[Place]:
    """A place that waits for nobody."""
    limits = Limits(
        head_s=0.4, body_s=0.4, body_rate=1 << 30, idle_s=0.5, stalled_s=0.5, linger_s=0.3
    )
    made = Place(limits=limits)
    made.add(loaded)
    made.follow(m=("1.0",))
    yield made
    made.close()


def test_each_request_of_a_steady_client_has_all_its_time(hasty: Place) -> None:
    """Where the next one's first bytes always come with the last one's last bytes."""
    sent = request()
    with hasty.line() as line:
        line.send(sent[:20])
        for _ in range(30):
            line.send(sent[20:] + sent[:20])
            assert line.read().status == 200
            time.sleep(0.03)  # three times as long in all as a head may take


def test_a_body_may_come_while_its_connection_is_to_move(hasty: Place) -> None:
    """It is read to its end, answered, and then the connection moves."""
    (worker,) = hasty.workers
    sent = request()
    with hasty.line() as line:
        for cut in (5, len(BODY) - 1):
            line.send(sent[:-cut])
            until(lambda: any(each._reader.is_in_body for each in worker._connections))
            worker._loop.call_soon_threadsafe(worker._give_back, 1)
            line.send(sent[-cut:])
            assert line.read().status == 200


def reads_nothing(place: Place) -> tuple[socket.socket, Connection]:
    """A client that asks on and on, until responses wait in the worker's own memory."""
    (worker,) = place.workers
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect(place.address)
    line.sendall(request())
    until(lambda: bool(worker._connections))
    (connection,) = worker._connections
    asked = request(body=json.dumps([ROW] * 1500).encode())
    for _ in range(1000):
        if connection.writer.buffered:
            return line, connection
        line.sendall(asked)
        time.sleep(0.01)  # until it has been answered
    raise AssertionError("all of it was taken")


@pytest.mark.parametrize("behind", [b"", b"POST /predic", request(headers=CLOSE)])
def test_a_client_that_reads_nothing_is_let_go(hasty: Place, behind: bytes) -> None:
    """Whatever it has sent behind; until then nobody may take its responses for complete."""
    (worker,) = hasty.workers
    line, connection = reads_nothing(hasty)
    with line:
        line.sendall(behind)
        state = connection.writer._state
        for _ in range(20):
            if connection.writer.buffered:
                assert state[0] == PARTLY
            time.sleep(0.01)  # the state holds all the time
        until(lambda: not worker._connections, 5)
    assert hasty.ask().status == 200


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *[(path, "GET") for path in ("/ping", "/v2", "/v2/models/m", "/v2/models/m/ready")],
        *[("/predictions/m", "OPTIONS"), ("/v2/health/live", "HEAD"), ("/ping", "OPTIONS")],
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_bodies_that_nobody_reads_are_not_kept(
    one: Place, path: str, method: str, is_chunked: bool
) -> None:
    """413, and what comes is dropped."""
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\n".encode()
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 1000000"
    part = (b"1000\r\n%b\r\n" % bytes(4096)) if is_chunked else bytes(4096)
    with ExitStack() as stack:
        lines = [stack.enter_context(one.line()) for _ in range(3)]
        for line in lines:
            line.send(head + framing + b"\r\n\r\n" + part * (10 if is_chunked else 100))
        sites = (one.acceptor._own, one.workers[0]._connections)
        until(lambda: sum(each.is_receiving for site in sites for each in list(site)) == 3)
        kept = sum(len(p) for site in sites for each in list(site) for p in each._reader._body)
        assert kept == 0
        for line in lines:
            line.send(b"0\r\n\r\n" if is_chunked else bytes(1_000_000 - 409_600))
            got = line.read("HEAD" if method == "HEAD" else "GET")
            assert got.status == 413


def test_a_response_without_content_has_no_length(one: Place) -> None:
    """204 must not have one (RFC 9110, 8.6)."""
    with one.line() as line:
        line.send(request("/predictions/m", b"", "OPTIONS"))
        got = line.read("OPTIONS")
        assert (got.status, got.headers.get("content-length")) == (204, None)
        line.send(request())
        assert line.read().status == 200


def test_a_sweep_that_fails_for_one_connection_goes_on(
    hasty: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed, and the others' times go on being held."""
    expire = Connection.expire
    failed: list[Connection] = []

    def fails(self: Connection, now: float) -> None:
        if not failed or self in failed:
            failed.append(self)
            raise OSError(24, "Too many open files")
        expire(self, now)

    monkeypatch.setattr(Connection, "expire", fails)
    for path in ("/predictions/m", "/ping"):
        failed.clear()
        with hasty.line() as first:
            first.send(request(path, b"" if path == "/ping" else BODY, "GET"))
            first.read("GET")
            assert first.is_closed()
        assert failed
        with hasty.line() as second:
            second.send(request(path, b"" if path == "/ping" else BODY, "GET"))
            second.read("GET")
            assert second.is_closed()  # at the end of idle_s


def test_what_is_refused_before_the_model_is_counted(place: Place, folder: Path) -> None:
    """By its code, as the model's own errors are."""
    loaded = service(folder)
    place.add(loaded)
    place.follow(m=("1.0",))
    loaded.metrics.take()
    with place.line() as line:
        for sent, status in (
            (request(method="PATCH"), 405),
            (request("/v2/models/m", method="GET"), 413),
            (request(headers={"Content-Encoding": "br"}), 415),
            (request(body=b"{"), 400),
            (request(headers={"Host": "another"}), 400),
        ):
            line.send(sent)
            assert line.read().status == status
    counts, _ = loaded.metrics.take()
    codes = {each.code: each.value for each in counts if each.name == "marship_errors_total"}
    assert codes == {"method": 1, "too_large": 1, "unsupported_media": 1, "malformed": 2}


@pytest.mark.parametrize("begun", [b"", b"POST /predic"])
def test_room_is_made_by_none_that_has_something_under_way(
    place: Place, loaded: Any, begun: bytes
) -> None:
    """Neither a response that its client has not taken whole, nor a request that began to come."""
    place.add(loaded)
    place.follow(m=("1.0",))
    (worker,) = place.workers
    if begun:
        line = socket.create_connection(place.address)
        line.sendall(request())
        assert line.recv(1000)
        line.sendall(begun)
        until(lambda: any(each._unread for each in list(worker._connections)))
    else:
        line, _ = reads_nothing(place)
        until(lambda: all(not each._waiting for each in list(worker._connections)))
    with line:
        assert not close_some(list(worker._connections), IDLE, 1)
        assert len(worker._connections) == 1
