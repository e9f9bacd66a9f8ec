"""Which process answers: a connection is handed over once for a request, not in circles."""

import asyncio
import json
import os
import resource
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directly import Place, request, service, until
from marship.engines.home import WORKERS_SOCKET
from marship.engines.torchserve import draining
from marship.serving.hosts.direct import relays
from marship.serving.hosts.direct.workers import Workers
from worker_process import Process

if TYPE_CHECKING:
    from marship.engines.torchserve.access import Access
    from marship.exchange.calls import Work

PATHS = [
    "/predictions/m",
    "/predictions/m/1.0",
    "/predictions/m/2",
    "/predictions/%6d",
    "/v2/models/m",
    "/ping",
    "/x",
    "//",
    "/v2/models/m/ready",
    "/predictions/m?a=/predictions/n",
    "/v2",
    "*",
]
STARTS = [
    "http://h",
    "HTTP://h:80",
    "https://h",
    "foo://x",
    "foo://x/y",
    "http:/",
    "://",
    "a",
    "http://",
    "ws://h",
    "h:80",
    "http://h?x=",
    "/http://h",
    "http://u@h",
    "HtTpS://[::1]:1",
]


def handed(place: Place) -> int:
    """How many connections the first worker was given."""
    return place.acceptor.seats._seats["m", "1.0"][0].handed


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from(STARTS),
    path=st.sampled_from(PATHS),
    spaces=st.sampled_from([" ", " ", " ", "  "]),
)
def test_a_target_is_read_in_one_way(one: Place, start: str, path: str, spaces: str) -> None:
    """Whatever it is, there is one response, and the connection is handed over once at most."""
    before = handed(one)
    with one.line() as line:
        line.send(f"GET{spaces}{start}{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        line.socket.settimeout(5)
        assert line.read("GET").status >= 200
    assert handed(one) - before <= 1


def test_a_version_that_the_engine_has_not_named_yet_gets_none_that_name_no_version(
    folder: Path, place: Place
) -> None:
    """Its worker does not know yet that it is the default one; asked by its version, it answers."""
    place.follow(other=("1.0",))
    place.add(service(folder))
    assert place.ask().status == 404
    assert handed(place) == 0
    assert place.ask("/predictions/m/1.0").status == 200
    place.follow(m=("1.0",))
    assert place.ask().status == 200


def drain(
    place: Place, pids: list[int] | None = None, version: str | None = "1.0"
) -> socket.socket:
    """Ask for a drain, as whoever scales down does; it ends with the connection."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.settimeout(10)
    line.connect(str(place.path))
    told = {"kind": "drain", "model": "m", "version": version, "pids": pids}
    line.send(json.dumps(told).encode() + b"\n")
    return line


def drained(line: socket.socket) -> bool:
    """Whether the word came that nothing is left."""
    return bool(json.loads(line.recv(1000))["kind"] == "drained")


def test_a_drained_worker_serves_the_next_acceptor(
    loaded: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the acceptor dies, nobody says that the drain is over."""
    place.add(loaded)
    place.follow(m=("1.0",))
    with drain(place, [os.getpid()]) as line:
        assert drained(line)
        with monkeypatch.context() as patched:
            patched.setattr(Workers, "_resume_drained", lambda *_: None)
            place.stop_acceptor()
    place.start_acceptor()
    until(lambda: place.seats() == 1)
    place.follow(m=("1.0",))
    with place.line() as line:
        line.send(request())
        line.socket.settimeout(5)
        assert line.read().status == 200
    assert handed(place) == 1


def test_a_drain_waits_for_a_connection_that_the_worker_has_not_opened_yet(
    loaded: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has left the channel, and is none of the worker's connections."""
    worker = place.add(loaded)
    place.follow(m=("1.0",))
    opens, gate, held = worker._loop.connect_accepted_socket, asyncio.Event(), []

    async def open_later(*arguments: Any) -> Any:
        held.append(arguments)
        await gate.wait()
        return await opens(*arguments)

    monkeypatch.setattr(worker._loop, "connect_accepted_socket", open_later)
    with place.line() as line:
        line.send(request())
        until(lambda: bool(held))
        with drain(place, [os.getpid()]) as caller:
            caller.settimeout(1.5)  # the worker reports once a second
            with pytest.raises(TimeoutError):
                caller.recv(1000)
            worker._loop.call_soon_threadsafe(gate.set)
            assert drained(caller)
            assert line.read().status == 503  # given back, and there is no other worker


def test_a_worker_that_died_while_it_was_drained_does_not_come_back(
    loaded: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of whoever drained it may be read before the worker's own."""
    place.add(loaded)
    place.follow(m=("1.0",))
    worker = place.acceptor.seats.of("m", "1.0")[0]
    with drain(place, [os.getpid()]) as caller:
        assert drained(caller)
        fails, send = threading.Event(), worker.channel._try

        def lost(packet: Any) -> bool:
            if not fails.is_set():
                return send(packet)
            worker.channel.close()  # as where the system says EPIPE
            packet.close()
            return True

        monkeypatch.setattr(worker.channel, "_try", lost)
        fails.set()
    until(lambda: worker.is_gone)
    until(lambda: place.seats() == 1)  # the worker that lives, on its new channel
    assert worker not in place.acceptor.seats.of("m", "1.0")
    assert place.ask().status == 200
    until(lambda: place.acceptor.seats.held == 0)


def test_a_version_that_loses_all_its_workers_is_not_left_to_the_engine(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine would keep the request until somebody starts a worker."""
    monkeypatch.setattr(relays, "Relay", None)  # the request would be passed on
    place = Place(engine=("127.0.0.1", 9))
    try:
        place.add(loaded)
        place.follow(m=("1.0",))
        with drain(place, [os.getpid()]) as caller:
            assert drained(caller)
            assert place.ask().status == 503
        until(lambda: place.seats() == 1)
        assert place.ask().status == 200
    finally:
        place.close()


def test_an_acceptor_that_dies_has_drained_nobody(
    loaded: Any, place: Place, tmp_path: Path
) -> None:
    """Whoever is about to end the worker asks the next acceptor."""
    place.add(loaded)
    place.follow(m=("1.0",))
    (tmp_path / WORKERS_SOCKET).symlink_to(place.path)
    record = SimpleNamespace(acceptor=True, tmp=tmp_path)
    home = SimpleNamespace(running=lambda: record)
    access = cast("Access", SimpleNamespace(is_local=True, home=home))
    with draining.taken_off(access, "m", "1.0") as step, place.line() as line:
        sent = request()
        line.send(sent[:-5])
        until(lambda: any(each._reader.is_in_body for each in list(place.workers[0]._connections)))
        waiting = threading.Thread(target=cast("Work", step).run)
        waiting.start()
        until(lambda: bool(place.acceptor._workers._drained))
        place.stop_acceptor()
        place.start_acceptor()
        until(lambda: bool(place.acceptor._workers._drained))
        assert waiting.is_alive()
        line.send(sent[-5:])
        assert line.read().status == 200
        waiting.join(10)
        assert not waiting.is_alive()


@pytest.mark.parametrize("pids", [None, [os.getpid()]])
@pytest.mark.parametrize("version", ["1.0", None])
def test_a_drain_waits_for_workers_that_the_acceptor_before_had(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, pids: list[int] | None, version: str | None
) -> None:
    """They say hello when their loop is free, and until then have requests that nobody counts."""
    place = Place(keeps_roster=True)
    try:
        worker = place.add(loaded)
        place.follow(m=("1.0",))
        connect = worker._connect
        tries = threading.Event()
        monkeypatch.setattr(worker, "_connect", tries.set)
        with place.line() as line:
            sent = request()
            line.send(sent[:-5])
            until(lambda: any(each._reader.is_in_body for each in list(worker._connections)))
            place.stop_acceptor()
            place.start_acceptor()
            assert tries.wait(10)
            with drain(place, pids, version) as caller, drain(place, [1]) as nobody:
                assert drained(nobody)
                caller.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    caller.recv(1000)
                place.follow(m=("1.0",))
                with pytest.raises(TimeoutError):
                    caller.recv(1000)
                assert place.acceptor.seats.is_ending("m", None)
                worker._loop.call_soon_threadsafe(connect)
                with pytest.raises(TimeoutError):
                    caller.recv(1000)
                line.send(sent[-5:])
                assert line.read().status == 200
                caller.settimeout(10)
                assert drained(caller)
            until(lambda: place.seats() == 1)
            assert place.ask().status == 200
    finally:
        place.close()


def test_two_who_drain_the_same_worker_both_wait_and_it_rests_until_both_are_gone(
    loaded: Any, place: Place
) -> None:
    """The second finds no worker in its seat, and must not end it under a request."""
    place.add(loaded)
    place.follow(m=("1.0",))
    with place.line() as line:
        sent = request()
        line.send(sent[:-5])
        until(lambda: any(each._reader.is_in_body for each in place.workers[0]._connections))
        first, second = drain(place, [os.getpid()]), drain(place)
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(1000)
        line.send(sent[-5:])
        assert line.read().status == 200
    second.settimeout(10)
    assert drained(first)
    assert drained(second)
    first.close()
    assert place.ask().status == 503
    second.close()
    until(lambda: place.seats() == 1)
    assert place.ask().status == 200


def test_workers_that_will_not_have_a_request_do_not_get_it_for_ever(
    loaded: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they disagree about, the client gets a status."""
    worker = place.add(loaded)
    place.follow(m=("1.0",))
    monkeypatch.setattr(worker, "is_elsewhere", lambda _: True)
    with place.line() as line:
        line.send(request())
        got = line.read()
        assert (got.status, got.json()["code"]) == (503, "no_worker")
        assert line.is_closed()
    assert handed(place) < 30


def test_a_worker_with_too_many_files_open_refuses_and_recovers(
    loaded: Any, folder: Path, place: Place
) -> None:
    """A connection that it cannot take gets a status, and none is counted for ever."""
    assert loaded  # the folder is there
    place.follow(m=("1.0",))
    process = Process(place, folder, files=3)
    try:
        lines = [place.line() for _ in range(8)]
        opened = [line.__enter__() for line in lines]
        seen = []
        for line in opened:
            line.send(request())
            got = line.read()
            seen.append((got.status, got.json()["code"] if got.status != 200 else ""))
        assert set(seen) == {(200, ""), (503, "busy")}
        for each in lines:
            each.__exit__(None, None, None)
        (seat,) = place.acceptor.seats._seats["m", "1.0"]
        until(lambda: seat.held == 0 and seat.slots is not None and len(seat.slots) == 0)
        assert place.ask().status == 200
    finally:
        process.kill()


def test_an_acceptor_with_too_many_files_open_closes_and_recovers(one: Place) -> None:
    """What it cannot hand over is closed; it serves as soon as there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with one.line() as line:
        line.send(request("/ping", b"", "GET"))
        assert line.read("GET").status == 200
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            line.send(request())
            assert line.is_closed()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert one.ask().status == 200


@pytest.mark.parametrize(
    ("before", "line", "status"),
    [
        (b"\r\n" * 8, b"POST /predictions/m HTTP/1.1", 200),
        (b"\r\n" * 9, b"POST /predictions/m HTTP/1.1", 400),
        (b"\n\r\n", b"POST /predictions/m HTTP/1.1", 400),
        (b"\n", b"POST /predictions/m HTTP/1.1", 200),
        (b"\r\r\n", b"POST /predictions/m HTTP/1.1", 400),
        (b"", b"POST  /predictions/m HTTP/1.1", 400),
        (b"", b"POST /predictions/m  HTTP/1.1", 200),
    ],
)
def test_what_stands_before_a_request_and_in_its_line_is_read_in_one_way(
    one: Place, before: bytes, line: bytes, status: int
) -> None:
    """By the acceptor and by the worker: there is one response, after one move at most."""
    sent = before + line + request().partition(b" HTTP/1.1")[2]
    count = handed(one)
    with one.line() as client:
        client.send(sent)
        assert client.read().status == status
    with one.line() as client:
        client.send(request())
        assert client.read().status == 200
        client.send(sent)
        assert client.read().status == status
    assert handed(one) - count <= 3


def test_a_worker_that_leaves_while_it_is_drained_gets_nothing_more(
    loaded: Any, folder: Path, place: Place
) -> None:
    """Also when whoever had it drained is done; idle connections do not go round."""
    leaves, stays = place.add(loaded), place.add(service(folder))
    place.follow(m=("1.0",))
    with drain(place) as line:
        assert drained(line)
        leaves.leave()
    until(lambda: place.seats() == 1)
    lines = [place.line() for _ in range(4)]
    for each in (line.__enter__() for line in lines):
        each.send(request())
        assert each.read().status == 200
    before = leaves._adopted
    stays._loop.call_soon_threadsafe(stays._give_back, 4)
    until(lambda: not any(each._is_moving for each in stays._connections))
    assert place.ask().status == 200
    assert leaves._adopted == before
    for each in lines:
        each.__exit__(None, None, None)


def test_idle_connections_do_not_go_round(
    loaded: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that gives each back at once gets it a few times, and then its next request."""
    worker = place.add(loaded)
    place.follow(m=("1.0",))
    with place.line() as line:
        line.send(request())
        assert line.read().status == 200
        with monkeypatch.context() as patched:
            patched.setattr(type(worker), "_is_draining", property(lambda _: True))
            worker._loop.call_soon_threadsafe(worker._give_back, 1)
            until(lambda: len(place.acceptor._arrivals) == 1)
        assert handed(place) < 30
        line.send(request())
        assert line.read().status == 200


def test_a_version_is_drained_once_however_often_it_is_asked(loaded: Any, place: Place) -> None:
    """On one connection; in the end its worker has one seat, and no version is about to end."""
    place.add(loaded)
    place.follow(m=("1.0",))
    with drain(place) as line:
        assert drained(line)
        line.send(b'{"kind":"drain","model":"m","version":"1.0","pids":null}\n')
        assert drained(line)
    until(lambda: place.seats() == 1)
    assert place.ask().status == 200
    assert place.acceptor.seats.ending == []
