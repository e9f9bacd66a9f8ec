"""Load by requests at a rate and by clients that wait, against servers of sockets."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from marship.operate.tune import load
from marship.operate.tune.load import Endpoint

STALL_S = 0.4
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"


class Answering:
    """A server of plain sockets that answers one request after the other, as one worker does.

    Args:
        stall_after: It stalls once, after so many requests; 0 never.
        answer: What it says.
        is_closing: Whether it closes each connection after one answer.
    """

    def __init__(
        self, stall_after: int = 0, answer: bytes = OK, *, is_closing: bool = False
    ) -> None:
        self._stall_after, self._answer, self._is_closing = stall_after, answer, is_closing
        self._worker = threading.Lock()
        self.answered = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self._listener.getsockname()[1], "/predictions/m")

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line:
            unread = b""
            while data := line.recv(1 << 16):
                unread += data
                while b"\r\n\r\n{}" in unread:
                    unread = unread.partition(b"\r\n\r\n{}")[2]
                    with self._worker:
                        self.answered += 1
                        if self.answered == self._stall_after:
                            time.sleep(STALL_S)  # what the test is about: a server that stalls
                    line.sendall(self._answer)
                    if self._is_closing:
                        return


@contextmanager
def answering(stall_after: int = 0, answer: bytes = OK, **more: bool) -> Iterator[Answering]:
    """Such a server."""
    server = Answering(stall_after, answer, **more)
    try:
        yield server
    finally:
        server.close()


def request(endpoint: Endpoint) -> list[bytes]:
    """One request."""
    return [endpoint.request(b"{}", "application/json")]


def test_a_stall_shows_in_the_p99_of_requests_at_a_rate() -> None:
    """All that were due in the stall waited for its end, though no connection had sent them."""
    with answering(stall_after=50) as server:
        found = load.at_rate(server.endpoint, request(server.endpoint), 200, 1.0)
    assert found.failed == 0
    assert found.p99_ms > 1000 * STALL_S * 0.8
    assert found.p50_ms < 1000 * STALL_S / 2


def test_clients_that_wait_leave_the_stall_out() -> None:
    """Two of many hundred requests meet it: the omission that a load at a rate avoids."""
    with answering(stall_after=50) as server:
        found = load.closed(server.endpoint, request(server.endpoint), 2, 1.0)
    assert found.failed == 0
    assert found.answered > 300
    assert found.p99_ms < 1000 * STALL_S / 2


def test_a_rate_is_kept() -> None:
    """As many requests are answered as were due: Poisson, whose deviation is the root."""
    with answering() as server:
        found = load.at_rate(server.endpoint, request(server.endpoint), 300, 1.0, seed=3)
    assert abs(found.answered - 300) < 4 * 300**0.5
    assert found.failed == 0


def test_refusals_are_counted_as_failed() -> None:
    """By either kind of load, and not as answers."""
    with answering(answer=BUSY) as server:
        open_ = load.at_rate(server.endpoint, request(server.endpoint), 100, 0.3)
        waiting = load.closed(server.endpoint, request(server.endpoint), 2, 0.2)
    assert open_.answered == waiting.answered == 0
    assert open_.failed > 5
    assert waiting.failed > 5


@pytest.mark.parametrize("clients", [1, 8])
def test_connections_that_are_closed_are_opened_again(clients: int) -> None:
    """A client of a server that closes after each answer goes on with a new connection."""
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with answering(answer=closing, is_closing=True) as server:
        found = load.closed(server.endpoint, request(server.endpoint), clients, 0.3)
    assert found.answered > 2 * clients
    assert found.failed == 0


def test_no_server_is_an_error() -> None:
    """And not a load of nothing."""
    with socket.socket() as held:  # bound: nobody else may listen there meanwhile
        held.bind(("127.0.0.1", 0))
        endpoint = Endpoint("127.0.0.1", held.getsockname()[1], "/predictions/m")
        with pytest.raises(OSError, match=r"refused|reset"):
            load.closed(endpoint, request(endpoint), 2, 0.2)
