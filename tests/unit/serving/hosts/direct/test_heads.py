"""Heads that are known are not parsed again: nothing else may differ."""

import asyncio
import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from directly import JSON, request
from marship.serving.hosts.direct import heads
from marship.serving.hosts.direct.connection import Connection
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Head, Heads
from marship.serving.hosts.direct.limits import Limits, StatusError
from marship.serving.hosts.direct.site import Site
from marship.serving.message import Reply


class Forgetful(Heads):
    """Keeps nothing."""

    def keep(self, data: bytes, head: Head) -> None:
        """Do not."""


class _Recorder(Site):
    """A site that records what reaches it, and the client's side of the connection."""

    limits = Limits(request_bytes=300)
    headers = b""

    def __init__(self, known: Heads) -> None:
        self.heads, self.seen, self.events = known, [], []
        self._client, self._server = socket.socketpair()
        for end in (self._client, self._server):
            end.setblocking(False)

    def check(self, exchange: Exchange) -> None:
        if exchange.head.path == b"/refused":
            raise StatusError(405, "method", "the method must be another.")

    def handle(self, exchange: Exchange) -> None:
        head = exchange.head
        self.seen.append((head.method, head.path, head.query, dict(head.raw), exchange.body))
        exchange.reply(Reply(exchange.body))

    def is_elsewhere(self, target: bytes) -> bool:
        return target == b"/elsewhere"

    def pass_on(self, connection: Connection, unread: bytes) -> None:  # noqa: ARG002
        self.events.append(("passed on", unread))

    def opened(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection) -> None: ...

    # The transport.

    def get_extra_info(self, name: str) -> socket.socket:  # noqa: ARG002
        return self._server

    def is_closing(self) -> bool:
        return False

    def written(self) -> bytes:
        got = b""
        while True:
            try:
                got += self._client.recv(1 << 16)
            except BlockingIOError:
                return got

    def write_eof(self) -> None:
        self.events.append("end")

    def close(self) -> None:
        self.events.append("closed")

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def serve(pieces: list[bytes], known: Heads, *, moves: bool = True) -> tuple[Any, ...]:
    """What one connection does with these pieces."""

    async def run() -> _Recorder:
        recorder: Any = _Recorder(known)
        if not moves:
            recorder.is_elsewhere = lambda target: False  # noqa: ARG005
        connection = Connection(recorder)
        connection.connection_made(recorder)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        return recorder

    done = asyncio.run(run())
    statuses = [line for line in done.written().split(b"\r\n") if line.startswith(b"HTTP/1.1")]
    return done.seen, statuses, done.events


REQUESTS = [
    request(),
    request(body=b"[1]"),
    request("/predictions/m?top=3"),
    request("/refused"),
    request("/refused", body=b"x" * 99),
    request("/elsewhere"),
    request(method="GET", body=b""),
    request(body=b"x" * 301),
    request(body=b""),
    request(headers={**JSON, "Expect": "100-continue"}),
    request(headers={**JSON, "Connection": "close"}),
    request(headers={**JSON, "Upgrade": "h2c", "Connection": "Upgrade"}),
    request(headers={"Transfer-Encoding": "chunked"}, body=b"", method="PUT") + b"0\r\n\r\n",
    request(body=request()),
    request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    request().replace(b"Host: here\r\n", b""),
    request().replace(b"Content-Length", b"Content-Length: 3\r\nContent-Length"),
    b"\r\n" + request(),
    b"GET /\n\n",
]  # fmt: skip


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, and the rest."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in (*pieces, data) if piece]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=6),
    st.lists(st.integers(1, 200), max_size=6),
    st.sampled_from(["cut", "whole", "heads and bodies"]),
)
def test_a_known_head_changes_nothing(sent: list[bytes], sizes: list[int], manner: str) -> None:
    """The same requests reach the site, and the same statuses the client, in whatever pieces."""
    pieces = sent if manner == "whole" else cut(b"".join(sent), sizes)
    if manner == "heads and bodies":
        pieces = [part for each in sent for part in cut(each, [each.find(b"\r\n\r\n") + 4])]
    known = Heads()
    for each in REQUESTS:
        serve([each], known, moves=False)
    assert serve(pieces, known) == serve(pieces, Forgetful())


def test_a_token_is_checked_although_the_head_is_known() -> None:
    """What a site refuses now it refuses, whatever it accepted before."""
    known = Heads()
    serve([request()], known)

    async def run() -> Any:
        recorder: Any = _Recorder(known)

        def refuse(exchange: Exchange) -> None:  # noqa: ARG001
            raise StatusError(401, "token", "the token must be right.")

        recorder.check = refuse
        connection = Connection(recorder)
        connection.connection_made(recorder)
        connection.data_received(request())
        connection.data_received(request()[:-5])
        connection.data_received(request()[-5:])
        return recorder

    done = asyncio.run(run())
    assert (done.written().count(b" 401 "), done.seen) == (2, [])


def test_memory_is_bounded_whatever_clients_send() -> None:
    """Long heads are not kept, and many are forgotten."""
    known = Heads()
    for number in range(3 * heads.MOST):
        known.keep(b"%d" % number, Head("GET", b"/", {}))
    assert len(known._known) <= heads.MOST
    known.keep(b"x" * (heads.MOST_BYTES + 1), Head("GET", b"/", {}))
    assert known.get(b"x" * (heads.MOST_BYTES + 1)) is None


def test_only_heads_whose_end_is_certain_are_kept() -> None:
    """Not those of bodies in chunks, nor of requests that were refused."""
    for each in REQUESTS:
        known = Heads()
        seen, _, _ = serve([each], known)
        for head in known._known.values():
            assert seen, each
            assert not head.is_chunked
