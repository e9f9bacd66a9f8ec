"""Idle connections, slow readers and slow writers, beside clients that send requests."""

import json
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from figures import Figures
from loads import Tally, load
from marship import Client
from marship.engines.torchserve import config, server
from marship.operate.proxy import ProxySettings
from nginx import Door, free_port, in_front
from versions import ANSWERS, ROW
from waiting import until
from watching import memory_mb

Amount = Callable[[float, float], float]

TIMEOUT_S = 20.0
HEAP_MB = 768
"""Java's heap, all of it resident from the start: growth is then not a heap that fills up.

Six rounds of 20 responses of 8 MB are more than it, so leaked responses would exhaust it.
"""

KEPT_MB = 96
"""What the last round may add to what the earlier ones left; a leak adds more each time."""

RESPONSE_BYTES = 8 << 20
CUT_AFTER_S = 2


@pytest.fixture(scope="module")
def own(
    start: Callable[..., server.Server], archives: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[server.Server]:
    """A server with `lin`, which gets requests all the time, and `echo`, for large responses."""
    assert archives.is_dir()
    folder = tmp_path_factory.mktemp("connections")
    heap = f"-Xms{HEAP_MB}m -Xmx{HEAP_MB}m -XX:+AlwaysPreTouch"
    source = folder / "config.properties"
    source.write_text(config.PACKAGED.read_text().replace("-Xms512m", heap))
    one = start(folder / "home", config=source)
    with Client(one.home.path) as client:
        client.register("lin-1.mar", name="lin", workers=1)
        client.register("echo.mar", workers=1)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def door(own: server.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A proxy in front of it, which closes connections that are silent for two seconds."""
    settings = ProxySettings(
        home=own.home.path,
        out=tmp_path_factory.mktemp("door") / "proxy",
        listen=f"127.0.0.1:{free_port()}",
        self_signed=True,
        client_timeout_s=CUT_AFTER_S,
        rate=1000,
        burst=1000,
    )
    with in_front(settings, ["lin", "echo"]) as one:
        one.headers = {"Authorization": f"Bearer {token(own)}"}
        yield one


@pytest.fixture
def rounds(amount: Amount) -> int:
    """How often connections are held and closed."""
    return int(amount(2, 3))


def token(one: server.Server) -> str:
    """The inference token."""
    return str(json.loads(one.home.key_file.read_text())["inference"]["key"])


def connect(port: int, receive_bytes: int | None = None) -> socket.socket:
    """A new connection."""
    line = socket.socket()
    if receive_bytes:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    line.settimeout(TIMEOUT_S)
    line.connect(("127.0.0.1", port))
    return line


def head(one: server.Server, size_bytes: int) -> bytes:
    """The head of a request whose response is as large as its body."""
    lines = (
        "POST /predictions/echo HTTP/1.1",
        "Host: x",
        "Content-Type: application/octet-stream",
        f"Authorization: Bearer {token(one)}",
        f"Content-Length: {size_bytes}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextmanager
def closing(lines: Sequence[socket.socket]) -> Iterator[None]:
    """Close all when the block ends."""
    try:
        yield
    finally:
        for line in lines:
            line.close()


def port_of(one: server.Server) -> int:
    """The port of the inference API."""
    return int(one.record.inference_url.rpartition(":")[2])


class Memory:
    """Memory of a server's Java and workers before, while and after connections are held."""

    def __init__(self, one: server.Server) -> None:
        self._record = one.record
        self._before = memory_mb(one.record)
        self._most = self._before
        self._after: list[tuple[int, int]] = []

    def look(self) -> None:
        """Measure while they are held."""
        now = memory_mb(self._record)
        self._most = (max(self._most[0], now[0]), max(self._most[1], now[1]))

    def look_after(self) -> None:
        """Measure after they are closed."""
        time.sleep(1)  # Java frees what the connections held
        self._after.append(memory_mb(self._record))

    def check(self) -> str:
        """Fail if the last round left more memory in use than the earlier ones."""
        *earlier, last = self._after
        assert last[0] < max(java for java, _ in earlier) + KEPT_MB, self._after
        assert last[1] < max(workers for _, workers in earlier) + KEPT_MB, self._after
        return f"Java held {self._before[0]} MB before, up to {self._most[0]}, {last[0]} after"


@contextmanager
def checked_load(own: server.Server) -> Iterator[Tally]:
    """Three clients without retries; every response must be correct, and in time."""
    with load(own.home.path, "lin", ROW, ANSWERS, timeout_s=TIMEOUT_S) as tally:
        tally.wait_for_more(10)
        yield tally
    assert tally.all_correct(), tally


def assert_is_served(tally: Tally) -> None:
    """Requests are served at this moment."""
    tally.wait_for_more(11, timeout_s=1)


def allow_files(count: int) -> None:
    """Raise this process's limit of open files; Java takes the hard limit by itself."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_enough = most == resource.RLIM_INFINITY or most >= count
    assert is_enough, f"this test needs {count:,} open files, got a hard limit of {most:,}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def test_idle_connections(
    own: server.Server, amount: Amount, figures: Figures, rounds: int
) -> None:
    """TorchServe keeps them for ever, at a few kB each, and serves other requests."""
    count = int(amount(2_000, 10_000))
    allow_files(count + 1_000)
    memory, java = Memory(own), psutil.Process(own.record.pid)
    with checked_load(own) as tally:
        for _ in range(rounds):
            lines = [connect(port_of(own)) for _ in range(count)]
            with closing(lines):
                assert_is_served(tally)
                until(lambda: java.num_fds() > count, TIMEOUT_S, "accepting them")
                memory.look()
            memory.look_after()
            assert java.num_fds() < count
    figures.add(f"{count:,} idle connections, {rounds} times", tally, memory.check())


def test_more_connections_than_java_may_have(
    own: server.Server, amount: Amount, figures: Figures
) -> None:
    """Open connections are served, further ones wait until others close, none is broken."""
    java = psutil.Process(own.record.pid)
    limits = java.rlimit(psutil.RLIMIT_NOFILE)
    with checked_load(own) as tally:
        room = java.num_fds() + 100
        java.rlimit(psutil.RLIMIT_NOFILE, (room, limits[1]))
        try:
            lines = [connect(port_of(own)) for _ in range(200)]
            with closing(lines):
                for _ in range(int(amount(2, 20))):
                    assert_is_served(tally)
                assert java.num_fds() <= room
            end = time.monotonic() + TIMEOUT_S
            while java.num_fds() > room - 50:  # until the waiting ones came in, and are gone
                assert time.monotonic() < end
                tally.wait_for_more(1)
            with Client(own.home.path, retry_s=0, timeout_s=TIMEOUT_S) as late:
                assert late.predict("lin", ROW) == ANSWERS["1"]
        finally:
            java.rlimit(psutil.RLIMIT_NOFILE, limits)
    figures.add("100 connections more than Java may have open", tally, "they wait")


def assert_whole(line: socket.socket, got: bytearray, body: bytes) -> None:
    """What was read and what follows are a response with this body."""
    while not got.endswith(body) and (data := line.recv(1 << 16)):
        got += data
    head, _, rest = got.partition(b"\r\n\r\n")
    is_same = rest == body  # pytest would look long for where they differ
    assert head.startswith(b"HTTP/1.1 200"), head
    assert is_same, f"{len(rest)} bytes of {len(body)}"


def test_slow_readers(own: server.Server, amount: Amount, figures: Figures) -> None:
    """Java holds a response until the client has read it or closes; a late reader gets all of it.

    One client reads a few kB/s at first, some nothing for as long, the others close unread.
    """
    count, late, rounds = 20, 9, int(amount(6, 10))
    memory, body = Memory(own), bytes(range(256)) * (RESPONSE_BYTES // 256)
    with checked_load(own) as tally:
        for turn in range(rounds):
            lines = [connect(port_of(own), receive_bytes=4096) for _ in range(count)]
            with closing(lines):
                for line in lines:
                    line.sendall(head(own, RESPONSE_BYTES) + body)
                got = bytearray()
                for _ in range(1 if turn else int(amount(10, 60))):
                    got += lines[0].recv(1024)
                    time.sleep(0.2)  # the rate of a slow reader
                assert_is_served(tally)
                memory.look()
                assert_whole(lines[0], got, body)
                for line in lines[1 : 1 + late]:
                    assert_whole(line, bytearray(), body)
            memory.look_after()
    case = f"{count} readers of {RESPONSE_BYTES >> 20} MB at 5 kB/s or not at all, {rounds} times"
    figures.add(case, tally, memory.check())


def test_slow_writers(own: server.Server, amount: Amount, figures: Figures, rounds: int) -> None:
    """Headers and bodies a byte at a time: TorchServe waits for ever, and serves the others."""
    count, turns = int(amount(50, 200)), int(amount(10, 200))
    memory, begun = Memory(own), head(own, 1000)
    with checked_load(own) as tally:
        for _ in range(rounds):
            lines = [connect(port_of(own)) for _ in range(count)]
            with closing(lines):
                for line in lines[::2]:
                    line.sendall(begun)
                for turn in range(turns):
                    for number, line in enumerate(lines):
                        line.sendall(begun[turn : turn + 1] if number % 2 else b"x")
                    time.sleep(0.1)  # the rate of a slow writer
                assert_is_served(tally)
                memory.look()
                lines[0].sendall(b"x" * (1000 - turns))  # the rest
                assert lines[0].recv(100).startswith(b"HTTP/1.1 200")
            memory.look_after()
    case = f"{count} writers of a byte every 0.1 s, headers or bodies, {rounds} times"
    figures.add(case, tally, memory.check())


def is_cut(line: socket.socket) -> bool:
    """Whether the server closes or resets it."""
    try:
        while line.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_all_of_them_through_the_proxy(
    own: server.Server, door: Door, amount: Amount, figures: Figures, rounds: int
) -> None:
    """The proxy closes them in time, TorchServe sees no slow client, others are served.

    One address may have 32 requests in progress; idle connections do not count, and the oldest
    are closed when nginx has no free ones.
    """
    memory, java = Memory(own), psutil.Process(own.record.pid)
    body = bytes(RESPONSE_BYTES)
    with checked_load(own) as tally:
        for _ in range(rounds):
            idle = [connect(door.port) for _ in range(int(amount(500, 3000)))]
            writers = [door.connect() for _ in range(20)]
            readers = [door.connect(receive_bytes=4096) for _ in range(int(amount(3, 10)))]
            with closing([*idle, *writers, *readers]):
                for line in readers:
                    line.sendall(head(own, RESPONSE_BYTES) + body)
                for number, line in enumerate(writers):
                    line.sendall(head(own, 1000)[: None if number % 2 else 30])
                assert door.ask("POST", "/predictions/lin", json.dumps(ROW).encode()).status == 200
                assert java.num_fds() < 200
                assert_is_served(tally)
                memory.look()
                time.sleep(2 * CUT_AFTER_S)  # longer than the proxy waits
                assert all(is_cut(line) for line in (*writers, *readers, idle[0]))
            memory.look_after()
    seen = f"closed after {CUT_AFTER_S} s, as configured; {memory.check()}"
    figures.add(f"all of them through the proxy, {rounds} times", tally, seen)


def test_the_proxy_bounds_concurrent_requests_of_one_address(
    own: server.Server, door: Door
) -> None:
    """Of 40 requests that arrive slowly 8 are refused, and so are others meanwhile.

    Which 8 is random: nginx has a process for each core, and all share the count.
    """
    begun = head(own, 1000)
    lines = [door.connect() for _ in range(40)]
    with closing(lines):
        for line in lines:
            line.sendall(begun)
        time.sleep(0.2)  # nginx reads all 40 before the next requests
        responses = [door.ask("GET", "/ping") for _ in range(3)]
        assert {response.status for response in responses} == {429}
        statuses = Counter(line.recv(1 << 16)[:12] for line in lines)
        assert statuses == {b"HTTP/1.1 429": 8, b"": 32}
    end = time.monotonic() + 5 * CUT_AFTER_S
    while door.ask("GET", "/ping").status != 200:
        assert time.monotonic() < end
