"""HTTP over a unix socket: which connections are used again, and what a lost one means."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from marship.engines.gateway import upstream
from marship.engines.gateway.upstream import Upstream, UpstreamResponse

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Two: a\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Peer:
    """A server that counts its connections, and sends the next response for each head."""

    def __init__(self, folder: Path, *responses: bytes) -> None:
        self.path, self.responses = folder / "s", list(responses)
        self.opened = self.closed = 0
        self.heads: list[bytes] = []
        self.changed = asyncio.Event()

    async def __aenter__(self) -> "Peer":
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                self.changed.set()
                if not self.responses:
                    await reader.read()  # until the client ends it
                    break
                writer.write(self.responses.pop(0))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.closed += 1
        self.changed.set()
        writer.close()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what a connection does."""
        async with asyncio.timeout(10):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


async def get(client: Upstream, key: str = "m") -> UpstreamResponse:
    """One request."""
    return await client.get(key, "/v2", {"a": "b"})


def run(test: Awaitable[None]) -> None:
    """Run a coroutine."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


def test_a_connection_serves_its_key_again(tmp_path: Path) -> None:
    """Models do not share connections, which would move from worker to worker."""

    async def test() -> None:
        async with Peer(tmp_path, OK, OK, OK) as peer:
            client = Upstream(peer.path)
            assert await get(client) == UpstreamResponse(
                200, {"content-length": "2", "x-two": "a"}, b"ok"
            )
            await get(client)
            assert peer.opened == 1
            await get(client, "other")
            assert peer.opened == 2
            client.close()

    run(test())


@pytest.mark.parametrize(("first", "idle_s"), [(CLOSING, 9.0), (OK, -1.0)])
def test_a_connection_that_closes_or_is_old_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, idle_s: float
) -> None:
    """The server is about to close it: a request that meets that is lost."""
    monkeypatch.setattr(upstream, "_IDLE_S", idle_s)

    async def test() -> None:
        async with Peer(tmp_path, first, OK) as peer:
            client = Upstream(peer.path)
            await get(client)
            await get(client)
            assert peer.opened == 2
            client.close()

    run(test())


def test_idle_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names clients request; the one that was idle for longest goes first."""
    monkeypatch.setattr(upstream, "_MOST_IDLE", 2)

    async def test() -> None:
        async with Peer(tmp_path, *[OK] * 5) as peer:
            client = Upstream(peer.path)
            for key in ("a", "b", "c"):
                await get(client, key)
            await peer.until(lambda: peer.closed == 1)
            await get(client, "c")
            await get(client, "b")
            assert peer.opened == 3
            client.close()

    run(test())


def test_cancelling_ends_the_connection(tmp_path: Path) -> None:
    """The server sees that nobody waits any more."""

    async def test() -> None:
        async with Peer(tmp_path) as peer:
            client = Upstream(peer.path)
            asked = asyncio.create_task(get(client))
            await peer.until(lambda: bool(peer.heads))
            asked.cancel()
            await peer.until(lambda: peer.closed == 1)
            with pytest.raises(asyncio.CancelledError):
                await asked

    run(test())


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"",
    ],
)
def test_a_response_that_is_cut_off(tmp_path: Path, method: str, data: bytes) -> None:
    """Wherever, it is an error, never half a response; only a GET is sent again, and only once."""

    async def test() -> None:
        asked = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(data)
            writer.close()

        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        client = Upstream(tmp_path / "s")
        with pytest.raises(OSError, match="closed"):
            await (get(client) if method == "GET" else client.post("m", "/v2", {}, [b"body"]))
        assert len(asked) == (2 if method == "GET" else 1)
        server.close()

    run(test())


def test_no_http(tmp_path: Path) -> None:
    """It is an error of the connection, too."""

    async def test() -> None:
        async with Peer(tmp_path, b"SSH-2.0\r\n\r\n") as peer:
            with pytest.raises(OSError, match="must be HTTP"):
                await get(Upstream(peer.path))

    run(test())


def test_nobody_listens(tmp_path: Path) -> None:
    """No connection, and no waiting for one."""

    async def test() -> None:
        with pytest.raises(OSError, match="No such file"):
            await get(Upstream(tmp_path / "none"))

    run(test())


def test_a_response_is_read_once_there_is_room(tmp_path: Path) -> None:
    """Until then no more of it than came with its head; the request's body is free by then."""
    size = 1 << 24
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)

    async def test() -> None:
        async with Peer(tmp_path, large, OK) as peer:
            client, body = Upstream(peer.path), [bytes(1 << 20)]
            told, goes = asyncio.Event(), asyncio.Event()

            async def on_head(headers: upstream.Headers) -> None:
                assert headers["content-length"] == str(size)
                assert not body
                told.set()
                await goes.wait()

            tracemalloc.start()
            asked = asyncio.create_task(client.post("m", "/v2", {}, body, on_head))
            await told.wait()
            before, _ = tracemalloc.get_traced_memory()
            await asyncio.sleep(0.2)  # in which all of it would come
            assert tracemalloc.get_traced_memory()[0] - before < 1 << 21
            goes.set()
            assert len((await asked).body) == size
            client.close()

    run(test())
    tracemalloc.stop()


def test_a_response_that_there_is_no_room_for_ends_its_connection(tmp_path: Path) -> None:
    """What is left of it is nobody's."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"

    async def refuse(_: upstream.Headers) -> None:
        raise ValueError("no room")

    async def test() -> None:
        async with Peer(tmp_path, head, OK) as peer:
            client = Upstream(peer.path)
            with pytest.raises(ValueError, match="no room"):
                await client.post("m", "/v2", {}, [], refuse)
            await get(client)
            assert peer.opened == 2
            client.close()

    run(test())


def test_an_idle_connection_keeps_no_response(tmp_path: Path) -> None:
    """There may be hundreds."""
    size = 1 << 24
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)

    async def test() -> None:
        async with Peer(tmp_path, large) as peer:
            client = Upstream(peer.path)
            tracemalloc.start()
            assert len((await get(client)).body) == size
            assert tracemalloc.get_traced_memory()[0] < size // 2
            client.close()

    run(test())
    tracemalloc.stop()
