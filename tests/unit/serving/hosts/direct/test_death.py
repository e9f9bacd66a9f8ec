"""A worker dies: idle connections go on, requests that were lost get a status."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import worker_process
from directly import Line, Place, request, until
from marship.serving.hosts.direct import slots, worker
from marship.serving.hosts.direct.roster import Roster, _began
from worker_process import Process


@pytest.fixture
def place() -> Iterator[Place]:
    """An acceptor without workers; what it says has a header, and the next one knows of it."""
    made = Place(headers={"X-All": "yes"}, keeps_roster=True)
    yield made
    made.close()


@pytest.fixture
def processes(place: Place, folder: Path, loaded: Any) -> Iterator[Any]:
    """Starts workers, and ends them."""
    assert loaded  # the folder is there
    place.follow(m=("1.0",))
    started: list[Process] = []

    def start(kind: str = "slow") -> Process:
        started.append(Process(place, folder, kind))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def lines(place: Place, count: int) -> list[Line]:
    """Connections that were served once."""
    opened = [Line(place.address) for _ in range(count)]
    for line in opened:
        line.send(request())
        assert line.read().status == 200
    return opened


def test_idle_connections_outlive_their_worker(place: Place, processes: Any) -> None:
    """Their next request is served by another one, and nobody sees a closed connection."""
    first = processes()
    opened = lines(place, 5)
    until(lambda: all(state == 0 for state in states(place)))
    first.kill()
    until(lambda: place.seats() == 0)
    processes()
    for line in opened:
        line.send(request())
        assert line.read().status == 200
        line.close()
    until(lambda: place.acceptor.connections == 0)


def stop(worker: Process) -> None:
    """Suspend a worker; it may read what is sent before it stands."""
    worker.process.send_signal(signal.SIGSTOP)
    until(lambda: psutil.Process(worker.process.pid).status() == psutil.STATUS_STOPPED)


def states(place: Place) -> list[int]:
    """What the first worker does with its connections."""
    seat = place.acceptor.seats._seats["m", "1.0"][0]
    assert seat.slots is not None
    return [seat.slots._states[slot] for slot in list(seat.slots._held)]


@pytest.mark.parametrize(
    "sent", [request(headers={"X-Hold": "1"}), request()[:-5], b"POST /predic"]
)
def test_a_request_that_is_lost_gets_a_status(place: Place, processes: Any, sent: bytes) -> None:
    """Whether it ran or was half read; the client may try again."""
    worker = processes()
    (line,) = lines(place, 1)
    until(lambda: states(place) == [0])
    line.send(sent)
    until(lambda: states(place)[0] in (slots.BEGUN, slots.UNPROVEN))
    worker.kill()
    got = line.read()
    assert (got.status, got.json()["code"], got.headers["retry-after"]) == (503, "worker_died", "1")
    assert (got.headers["connection"], got.headers["x-all"]) == ("close", "yes")
    assert line.is_closed()


def test_what_the_worker_had_not_read_does_not_keep_the_status_away(
    place: Place, processes: Any
) -> None:
    """A close with unread bytes resets the connection, and the client would see just that."""
    worker = processes()
    (line,) = lines(place, 1)
    until(lambda: states(place) == [0])
    sent = request(body=b"[" * 100_000)
    line.send(sent[:1000])
    until(lambda: states(place) == [1])
    os.kill(worker.process.pid, signal.SIGSTOP)
    line.send(sent[1000:-1])
    worker.kill()
    until(lambda: place.seats() == 0)
    line.send(sent[-1:])
    assert line.read().status == 503


def test_a_response_that_was_begun_ends_without_its_last_part(place: Place, processes: Any) -> None:
    """Nothing is written into the middle of it."""
    worker = processes("stream")
    line = Line(place.address)
    line.send(request())
    assert b"200" in line._stream.readline()
    until(lambda: states(place) == [2])
    worker.kill()
    assert line._stream.read().endswith(b"\r\n\r\n2\r\n1\n\r\n")


def test_a_connection_on_its_way_to_a_dead_worker_goes_to_another(
    place: Place, processes: Any
) -> None:
    """With what was read of it."""
    first = processes()
    os.kill(first.process.pid, signal.SIGSTOP)
    processes()
    line = Line(place.address)
    line.send(request())
    until(lambda: place.acceptor.seats.held == 1)
    assert states(place) == [3]
    first.kill()
    assert line.read().status == 200


def test_closed_connections_are_closed_for_the_client_and_forgotten(
    place: Place, processes: Any
) -> None:
    """The acceptor's own descriptors keep none open."""
    processes()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with place.line() as line:
            line.send(request(headers={"Connection": "close"}))
            assert line.read().body
            assert line.is_closed()
    opened = lines(place, 20)
    for line in opened:
        line.close()
    until(lambda: place.acceptor.connections == 0)
    (seat,) = place.acceptor.seats._seats["m", "1.0"]
    until(lambda: seat.slots is not None and len(seat.slots) == 0)
    until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


def test_a_batch_that_hangs_in_the_event_loop_is_504(place: Place, processes: Any) -> None:
    """The loop cannot write it, so the acceptor does; whoever was waiting may try again."""
    processes("stuck")
    held, beside = lines(place, 2)
    until(lambda: states(place) == [0, 0])
    held.send(request(headers={"X-Hold": "1"}))
    got = held.read()
    assert (got.status, got.json()["code"]) == (504, "response_timeout")
    assert got.headers["x-all"] == "yes"
    assert held.is_closed()
    processes()
    beside.send(request())
    assert beside.read().status == 200


def test_what_was_read_is_kept_until_the_worker_has_begun() -> None:
    """A worker that has taken a connection may die before it looks at it."""
    memory, states = slots.make()
    held = slots.Slots(memory, os.getpid())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        taken, waits = (held.hold(ours.fileno(), b"GET", 0) for _ in range(2))
        assert taken is not None
        states[taken] = slots.BEGUN
        held.forget_unread()
        assert [each.unread for _, each in held.release()] == [b"", b"GET"]
        assert waits is not None
    held.close()


def test_states_of_an_acceptor_that_died_are_let_go(place: Place, loaded: Any) -> None:
    """At once, though connections of its time are open or closed: each has a descriptor."""
    place.roster = None  # its worker is this very process
    worker = place.add(loaded)
    place.follow(m=("1.0",))
    gc.disable()
    try:
        opened = lines(place, 3)
        assert worker._states is not None
        gone = weakref.ref(worker._states)
        opened.pop().close()
        until(lambda: len(worker._connections) == 2)
        place.stop_acceptor()
        place.start_acceptor()
        until(lambda: place.seats() == 1)
        assert gone() is None
        for line in opened:
            line.send(request())
            assert line.read().status == 200
            line.close()
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["locked", "stopped"])
def test_a_worker_that_cannot_end_itself_is_ended(place: Place, processes: Any, how: str) -> None:
    """Its client gets the status of a timeout, those on their way to it another worker."""
    worker = processes("locked")
    line, idle, late = lines(place, 3)
    until(lambda: states(place) == [0, 0, 0])
    line.send(request(headers={"X-Hold": "1"} if how == "locked" else {})[:-5])
    until(lambda: 1 in states(place))
    if how == "stopped":
        stop(worker)
    line.send(request()[-5:])
    line.socket.settimeout(10)
    assert line.read().status == 504
    until(lambda: place.seats() == 0)
    processes()
    for each in (idle, late):
        each.send(request())
        assert each.read().status == 200


def test_a_stopped_worker_is_ended_where_clients_keep_their_connections(
    place: Place, processes: Any
) -> None:
    """It does not note that a request has begun, and nobody connects anew."""
    worker = processes("locked")
    opened = lines(place, 4)
    processes()
    until(lambda: states(place) == [0, 0])  # the other worker has as many
    stop(worker)
    for line in opened:
        line.send(request())
    for line in opened:
        assert line.read().status == 200
    assert worker.process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("how", ["locked", "stopped", "stopped twice"])
def test_a_worker_that_hangs_is_ended_by_the_next_acceptor(
    place: Place, processes: Any, how: str
) -> None:
    """It cannot say hello; those that do are not ended, and one more acceptor knows it, too."""
    worker = processes("locked")
    (line,) = lines(place, 1)
    until(lambda: states(place) == [0])
    line.send(request(headers={"X-Hold": "1"} if how == "locked" else {})[:-5])
    until(lambda: states(place) == [1])
    other = processes("locked")
    if how != "locked":
        stop(worker)
    line.send(request()[-5:])
    for _ in range(2 if how == "stopped twice" else 1):
        place.stop_acceptor()
        place.start_acceptor()
        place.follow(m=("1.0",))
        until(lambda: place.seats() == 1)  # the other is back, and entered
    assert worker.process.wait(10) == -signal.SIGKILL
    until(lambda: place.seats() == 1)
    assert other.process.poll() is None
    assert place.ask().status == 200


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_worker_that_dies_as_soon_as_it_is_ready_has_died(
    place: Place, folder: Path, loaded: Any, is_busy: bool
) -> None:
    """The engine's first request ends it: also where the acceptor learns of it afterwards."""
    assert loaded
    place.follow(m=("1.0",))
    deaths: list[Any] = []
    place.acceptor.seats.on_death = deaths.append
    tests = str(Path(worker_process.__file__).parent)
    words = [sys.executable, "-c", worker_process.SCRIPT, tests, folder, place.path, "brief", ""]
    started = subprocess.Popen(words)
    if is_busy:
        place._loop.call_soon_threadsafe(started.wait)
    assert started.wait(60) == 3
    until(lambda: len(deaths) == 1)
    assert (deaths[0].pid, deaths[0].model, deaths[0].version) == (started.pid, "m", "1.0")
    until(lambda: place.seats() == 0)


def test_a_worker_whose_loop_gets_a_turn_between_two_calls_is_not_ended(tmp_path: Path) -> None:
    """Calls that keep Python's lock may each take all their time; a third one in a row may not."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first = Roster(tmp_path / "roster", 0.0)
    first.enter(other.pid, 5.0, "m", "1.0")
    first.close()
    following = Roster(tmp_path / "roster", 100.0)
    assert following.missing("m", "1.0") == following.missing("m", None) == [other.pid]
    assert following.missing("m", "2.0") == following.missing("n", None) == []
    assert list(following.overdue(111.9, 2.0, 0.0)) == []
    assert [pid for pid, _ in following.overdue(112.1, 2.0, 0.0)] == [other.pid]
    other.communicate(b"\n")


def test_a_worker_says_hello_in_the_turn_in_which_it_has_lost_the_acceptor(
    place: Place, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next turn may come only after another call."""
    place.roster = None  # its worker is this very process
    made = place.add(loaded)
    monkeypatch.setattr(worker, "RETRY_S", 0.0)
    told: list[bool] = []
    lost = made._on_lost

    def look() -> None:
        lost()
        told.append(made._channel is not None)

    made._channel._on_lost = look  # type: ignore[union-attr]
    place.stop_acceptor()
    place.start_acceptor()
    until(lambda: place.seats() == 1)
    assert told == [True]


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"[[",
        b"{}",
        b"[1]",
        b'[["a", "b", "c"]]',
        b'[[1, "0", 0]]',
        b"[[%d, 5, 0]]",
        b'[[%d, "5", 0, "m", "1.0"]]',
        b'[[100000000000000000000, "0", 0]]',
    ],
)
def test_nobody_else_is_ended_for_what_a_roster_says(place: Place, kept: bytes) -> None:
    """Pids are reused; and the file may be anything."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert place.roster is not None
    place.stop_acceptor()
    place.roster.write_bytes(kept % other.pid if b"%d" in kept else kept)
    place.start_acceptor()
    watched = threading.Event()

    def watch() -> None:
        for later in range(0, 100, 1):
            place.acceptor._workers.watch(time.monotonic() + later)
        watched.set()

    place._loop.call_soon_threadsafe(watch)
    assert watched.wait(10)
    assert other.poll() is None
    other.kill()
    other.wait()
    assert other.stdin is not None
    other.stdin.close()


ODD = (None, True, -1, 0, 1 << 40, 1 << 70, "5", "", [], {}, [1], 0.5)
"""Values in place of others: of all types of JSON."""


@pytest.mark.parametrize("place_of", range(6))
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_rows_of_a_roster_hide_no_other_and_stop_no_sweep(
    tmp_path: Path, odd: object, place_of: int
) -> None:
    """Whatever stands in a row, and at its end: the workers of right rows are ended when late."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    right = [other.pid, _began(other.pid), 5.0, "m", "1.0"]
    file = tmp_path / "roster.json"
    changed = [*right[:place_of], odd, *right[place_of + 1 :]]
    file.write_text(json.dumps([changed, right]))
    made = Roster(file, 0.0)
    assert [pid for pid, _ in made.overdue(100.0, 2.0, 0.0)] == [other.pid]
    assert not list(made.overdue(200.0, 2.0, 0.0))
    made.close()
    other.communicate(b"\n")


def test_workers_that_were_stopped_together_with_the_acceptor_have_their_time(
    place: Place, processes: Any
) -> None:
    """A machine that sleeps, or a benchmark that suspends servers, ends no worker."""
    worker = processes("locked")
    (line,) = lines(place, 1)
    line.send(request()[:-5])
    until(lambda: 1 in states(place))
    worker.process.send_signal(signal.SIGSTOP)
    watched = threading.Event()

    def watch() -> None:
        place.acceptor._workers.watch(time.monotonic() + 100)
        place.acceptor._workers.watch(time.monotonic() + 101)
        watched.set()

    place._loop.call_soon_threadsafe(watch)
    assert watched.wait(10)
    worker.process.send_signal(signal.SIGCONT)
    line.send(request()[-5:])
    assert line.read().status == 200


def test_a_worker_is_ended_though_the_acceptor_is_kept_from_looking(
    place: Place, processes: Any
) -> None:
    """Time without a look does not count, but what was there before it does."""
    worker = processes("locked")
    (line,) = lines(place, 1)
    until(lambda: states(place) == [0])
    stop(worker)
    watched = threading.Event()

    def watch() -> None:
        looks = range(1, 10)
        for look in looks:
            place.acceptor._workers.watch(time.monotonic() + 100 * look)
            place.acceptor._workers.watch(time.monotonic() + 100 * look + 0.5)
        watched.set()

    place._loop.call_soon_threadsafe(watch)
    assert watched.wait(10)
    assert worker.process.wait(5) == -signal.SIGKILL
    line.close()


def test_a_worker_that_reads_a_slow_body_is_not_silent(place: Place, processes: Any) -> None:
    """It says that it lives for as long as the client takes."""
    processes("locked")
    (line,) = lines(place, 1)
    line.send(request()[:-5])
    time.sleep(4)  # longer than a request may run, and than a silence is taken for none
    line.send(request()[-5:])
    assert line.read().status == 200


class Told:
    """What a worker sends, at a socket in place of an acceptor."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)

    def hello(self) -> socket.socket:
        """The channel of a worker that connects."""
        line, _ = self._listener.accept()
        line.settimeout(10)
        assert self.read(line)["kind"] == "hello"
        return line

    def read(self, line: socket.socket) -> dict[str, Any]:
        """The next packet."""
        data, fds, _, _ = socket.recv_fds(line, 1 << 16, 2)
        for fd in fds:
            os.close(fd)
        return dict(json.loads(data.partition(b"\n")[0]))

    def hand(self, line: socket.socket, slot: int, unread: bytes) -> socket.socket:
        """Pass a connection on; returns the client's side."""
        client, server = socket.socketpair()
        head = json.dumps({"kind": "connection", "slot": slot, "fds": 1}).encode()
        socket.send_fds(line, [head + b"\n" + unread], [server.fileno()])
        server.close()
        client.settimeout(10)
        return client

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


@pytest.mark.parametrize("seconds", [0.0, worker.RETRY_S])
def test_connections_on_their_way_survive_the_acceptor(
    tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A busy worker reads them after that died; to the next one they have no number."""
    monkeypatch.setattr(worker, "RETRY_S", seconds)
    told = Told(tmp_path / "w")
    settings = worker.WorkerSettings(
        acceptor=tmp_path / "w", model="m", version="1.0", batch=1, queue=99, key_file=None
    )
    one = worker.DirectWorker(loaded, settings)
    threading.Thread(target=one.run, daemon=True).start()
    first = told.hello()
    is_held, goes = threading.Event(), threading.Event()

    def hold() -> None:
        is_held.set()
        assert goes.wait(10)
        one._report()  # to nobody, before it reads

    one._loop.call_soon_threadsafe(hold)
    assert is_held.wait(10)
    whole = request("/predictions/m/1.0")
    clients = [told.hand(first, slot, whole) for slot in range(20)]
    first.close()
    goes.set()
    for client in clients:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    second = told.hello()
    for client in clients:
        client.close()
    until(lambda: not one._connections)
    one._loop.call_soon_threadsafe(one._report)
    while (packet := told.read(second)).get("connections") != 0:
        assert packet["kind"] == "load"
    one.stop()
    told.close()
    second.close()
