"""Lines as they come, over real sockets: what each wait may take, and streams that break off."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from marship import AsyncClient, Client
from marship.engines.addresses import Target
from marship.engines.torchserve.access import Access
from marship.errors import InvalidInputError, MarshipError, NoAnswerError, ServerError
from marship.exchange.async_transport import AsyncTransport
from marship.exchange.calls import Flow, Lines, Work, line_value
from marship.exchange.connections import CheckedConnection, Pool
from marship.exchange.transports import BlockingTransport, Bounds

Chunk = bytes | float | None
"""Bytes to send, seconds to wait, or the end of the connection without the stream's end."""
Serve = Callable[..., str]
TIMEOUT_S = 1.6


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that sends the same chunks for every request; return its address."""
    servers = []

    def start(*chunks: Chunk, status: int = 200, kind: str = "application/jsonl") -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Accept"] == "application/jsonl"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in (*chunks, b""):
                    if chunk is None:
                        self.close_connection = True
                        return
                    if isinstance(chunk, float):
                        time.sleep(chunk)  # a slow server
                    else:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def blocking(url: str) -> tuple[list[Any], MarshipError | None]:
    """What `Client.stream` gives, and its error."""
    found = []
    with Client(inference_url=url, inference_token="t", timeout_s=TIMEOUT_S) as client:
        try:
            for value in client.stream("m", b""):
                found.append(value)  # noqa: PERF402  an error may come after some
        except MarshipError as error:
            return found, error
    return found, None


def awaiting(url: str) -> tuple[list[Any], MarshipError | None]:
    """The same of `AsyncClient.stream`."""

    async def ask() -> tuple[list[Any], MarshipError | None]:
        found = []
        async with AsyncClient(
            inference_url=url, inference_token="t", timeout_s=TIMEOUT_S
        ) as client:
            try:
                async for value in client.stream("m", b""):
                    found.append(value)  # noqa: PERF401  an error may come after some
            except MarshipError as error:
                return found, error
        return found, None

    return asyncio.run(ask())


CLIENTS = pytest.mark.parametrize("ask", [blocking, awaiting])


@CLIENTS
def test_lines_come_whole_however_the_chunks_are_cut(serve: Serve, ask: Any) -> None:
    """Two in a chunk, one over three chunks, one after the last line end, blank ones left out."""
    url = serve(b'{"a":1}\n\n{"a":2}\n{"a"', b":", b"3}\n", b"4")
    assert ask(url) == ([{"a": 1}, {"a": 2}, {"a": 3}, 4], None)


@CLIENTS
def test_a_response_that_is_no_lines_is_given_whole(serve: Serve, ask: Any) -> None:
    """A model that does not stream may return indented JSON, or text."""
    assert ask(serve(b'{"a":\n 1}\n', kind="application/json")) == ([{"a": 1}], None)
    assert ask(serve(b"two\n\nlines", kind="text/plain")) == ([b"two\n\nlines"], None)


@CLIENTS
def test_the_timeout_is_for_each_wait(serve: Serve, ask: Any) -> None:
    """Five waits are no error that are longer together, not each; one that is longer is."""
    found, error = ask(serve(*[b"1\n", TIMEOUT_S / 4] * 5))
    assert (found, error) == ([1] * 5, None)
    found, error = ask(serve(b"1\n", TIMEOUT_S * 2, b"2\n"))
    assert found == [1]
    assert isinstance(error, NoAnswerError)
    assert f"within {TIMEOUT_S} s" in str(error)


@CLIENTS
def test_a_stream_that_breaks_off_is_reported(serve: Serve, ask: Any) -> None:
    """Its lines are given, then the error."""
    found, error = ask(serve(b"1\n", None))
    assert found == [1]
    assert isinstance(error, NoAnswerError)
    assert "closed" in str(error)


@CLIENTS
def test_errors_by_status_and_by_line(serve: Serve, ask: Any) -> None:
    """An error status is read whole; an error line ends the stream."""
    problem = b'{"code": "invalid_input", "message": "m"}'
    found, error = ask(serve(problem, status=400))
    assert found == []
    assert isinstance(error, InvalidInputError)
    found, error = ask(serve(b"1\n", problem + b"\n", b"2\n"))
    assert found == [1]
    assert isinstance(error, InvalidInputError)
    assert error.status == 400


@pytest.mark.parametrize(
    ("line", "kind"),
    [(b'{"code": "internal", "message": "m"}', ServerError), (b"{", ServerError)],
)
def test_a_line_that_is_no_value(line: bytes, kind: type[MarshipError]) -> None:
    """The server's own fault, and what is no JSON."""
    with pytest.raises(kind):
        line_value(line)


def test_a_long_line_is_joined_once() -> None:
    """A megabyte in chunks of a kilobyte is one line, in linear time."""
    lines = Lines()
    assert all(lines.feed(b"x" * 1024) == [] for _ in range(1024))
    assert [len(line) for line in lines.feed(b"\n")] == [1 << 20]
    assert lines.end() == []


def test_an_event_loop_goes_on_while_a_flow_works() -> None:
    """The work waits for what only the loop does, and its result goes into the flow."""
    began, done = threading.Event(), threading.Event()

    def work() -> bool:
        began.set()
        return done.wait(10)

    def flow() -> Flow[str]:
        return f"seen: {(yield Work(work))}"

    async def both() -> str:
        transport = AsyncTransport(Access(Target()), Bounds(TIMEOUT_S))
        working = asyncio.create_task(transport.run(flow()))
        async with asyncio.timeout(10):
            while not began.is_set():
                await asyncio.sleep(0)
        done.set()
        return await working

    assert asyncio.run(both()) == "seen: True"
    assert BlockingTransport(Access(Target()), Bounds(TIMEOUT_S)).run(flow()) == "seen: True"


def test_an_error_of_work_is_thrown_into_the_flow() -> None:
    """So a flow can undo what it began."""

    def fail() -> None:
        raise ServerError("it broke")

    def flow() -> Flow[str]:
        try:
            yield Work(fail)
        except ServerError as error:
            return str(error)
        return "no error"

    transport = AsyncTransport(Access(Target()), Bounds(TIMEOUT_S))
    assert asyncio.run(transport.run(flow())) == "it broke"
    assert BlockingTransport(Access(Target()), Bounds(TIMEOUT_S)).run(flow()) == "it broke"


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends each request's body back, and keeps connections."""

    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _run(code: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, which takes ResourceWarnings for errors."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code, url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_forked_process_has_connections_of_its_own(echo: str) -> None:
    """Two processes that share one read each other's responses."""
    done = _run(FORKING, echo)
    assert (done.returncode, done.stdout) == (0, "right\n" * 6), done.stderr


FORKING = """
import asyncio, os, sys
from marship import AsyncClient, Client

url = {"inference_url": sys.argv[1], "inference_token": "t"}

def blocking(client, start):
    for number in range(start, start + 200):
        assert client.predict("m", [number]) == [number]

def awaiting(client, start):
    async def run():
        for number in range(start, start + 200):
            assert await client.predict("m", [number]) == [number]
    asyncio.run(run())

for use, kind in ((blocking, Client), (awaiting, AsyncClient)):
    client = kind(**url)
    use(client, 0)
    children = []
    for child in (1, 2):
        pid = os.fork()
        if not pid:
            use(client, 1000 * child)
            os.write(1, b"right\\n")
            os._exit(0)
        children.append(pid)
    use(client, 5000)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    os.write(1, b"right\\n")
"""


def test_an_asyncio_client_may_be_used_in_one_loop_after_the_other(serve: Serve) -> None:
    """Each loop has connections of its own."""
    url = serve(b"1\n", kind="application/json")
    client = AsyncClient(inference_url=url, inference_token="t")
    for _ in range(3):
        assert asyncio.run(_one(client)) == 1


async def _one(client: AsyncClient) -> Any:
    (value,) = [value async for value in client.stream("m", b"")]
    return value


def test_a_loop_s_connections_are_closed_with_it(echo: str) -> None:
    """Not when they are garbage, which may be much later; nothing is said about it."""
    done = _run(LOOPS, echo)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LOOPS = """
import asyncio, gc, os, sys
from marship import AsyncClient

client = AsyncClient(inference_url=sys.argv[1], inference_token="t")

async def ask(calls=5):
    results = await asyncio.gather(*(client.predict("m", [number]) for number in range(calls)))
    assert results == [[number] for number in range(calls)]

async def close_and_ask():
    for _ in range(3):
        await ask()
        await client.close()

gc.collect()
gc.disable()
asyncio.run(ask())
before = os.listdir("/proc/self/fd")
for _ in range(20):
    asyncio.run(ask())
asyncio.run(close_and_ask())
assert os.listdir("/proc/self/fd") == before
"""


def test_a_client_without_references_closes_its_connections(echo: str) -> None:
    """In a loop that goes on."""

    async def ask() -> None:
        client = AsyncClient(inference_url=echo, inference_token="t")
        assert await client.predict("m", [1]) == [1]
        session = weakref.ref(next(iter((await client._transport._own()).values())))
        del client
        async with asyncio.timeout(10):
            while (found := session()) is not None and not found.closed:
                del found
                await asyncio.sleep(0)

    asyncio.run(ask())


def test_a_loop_that_is_dropped_without_being_closed_is_not_kept(echo: str) -> None:
    """Nor are its files: they are garbage with it."""
    client = AsyncClient(inference_url=echo, inference_token="t")
    gone = []
    for number in range(3):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(client.predict("m", [number])) == [number]
        gone.append(weakref.ref(loop))
        del loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody closed them
        gc.collect()
        gc.collect()
    assert [found() for found in gone] == [None] * 3


class _HeldLoop(asyncio.SelectorEventLoop):
    """Two threads find out at the same time that it is closed."""

    meeting: threading.Barrier | None = None

    def is_closed(self) -> bool:
        closed = super().is_closed()
        if self.meeting is not None:
            self.meeting.wait(10)
        return closed


def test_threads_find_the_same_closed_loop(echo: str) -> None:
    """Each of them has a loop of its own; neither fails because the other was first."""
    client = AsyncClient(inference_url=echo, inference_token="t")
    old = _HeldLoop()
    assert old.run_until_complete(client.predict("m", [0])) == [0]
    old.run_until_complete(old.shutdown_asyncgens())
    old.close()
    old.meeting = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(asyncio.run, client.predict("m", [n])) for n in (1, 2)]
        found = [one.result() for one in asked]
    old.meeting = None
    assert found == [[1], [2]]


def test_many_threads_share_an_asyncio_client(echo: str) -> None:
    """Each with one loop after the other."""
    client = AsyncClient(inference_url=echo, inference_token="t")

    def ask(thread: int) -> list[Any]:
        return [asyncio.run(client.predict("m", [thread, n])) for n in range(40)]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert found == [[[thread, n] for n in range(40)] for thread in range(8)]


class _Raced(list[CheckedConnection]):
    """Idle connections that another thread takes once somebody has looked whether there are any."""

    def __bool__(self) -> bool:
        found = len(self) > 0
        self.clear()
        return found


def test_threads_take_the_last_connection_at_the_same_time() -> None:
    """Who comes second opens another one, and closing finds none."""
    pool = Pool(_none)
    for act in (lambda: pool.take("http://127.0.0.1:9"), pool.close):
        pool._free["http://127.0.0.1:9"] = _Raced([CheckedConnection("http://127.0.0.1:9", _none)])
        act()


def _none(*_: object) -> None:
    """Check nothing."""
