"""Predictions are retried, over real sockets: after which errors, how often, and for how long."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from marship import AsyncClient, Client
from marship.errors import (
    InvalidInputError,
    MarshipError,
    NoAnswerError,
    NotFoundError,
    NotRunningError,
    RateLimitError,
    ResponseTimeoutError,
    ScaledToZeroError,
    ServerError,
    WorkerDiedError,
)
from marship.exchange import retries

DIED = (507, b'{"code": 507, "type": "InternalServerException", "message": "Worker died."}', {})
BUSY = (503, b'{"code": 503, "type": "ServiceUnavailableException", "message": "m"}', {})
AWAY = (502, b"<html>", {})
GONE = (404, b'{"code": 404, "type": "ModelNotFoundException", "message": "m"}', {})
LIMIT = (429, b'{"code": "rate_limit", "message": "m"}', {})
LIMIT_FOR_NOW = (*LIMIT[:2], {"Retry-After": "0"})
OWN_FAULT = (500, b'{"code": "internal", "message": "m"}', {})
FINE = (200, b"7", {})
JSON_LINES = "application/jsonl"
DROPPED = None
LATE = "late"
RETRY_S, TIMEOUT_S = 2.0, 0.8

Reply = Any


@dataclass
class Scripted:
    """A server that sends these responses in turn, and the last one for ever."""

    replies: list[Reply]
    asked_at: list[float] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    description: Reply = (200, b'[{"responseTimeout": 9}]', {})
    url: str = ""

    def next(self) -> Reply:
        """The response to the next request."""
        self.asked_at.append(time.monotonic())
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """Start such a server."""
    servers = []

    def start(*replies: Reply) -> Scripted:
        script = Scripted(list(replies))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                reply = script.next()
                if reply == LATE:
                    time.sleep(2 * TIMEOUT_S)  # longer than the client waits
                if reply in (DROPPED, LATE):
                    self.close_connection = True
                    return
                status, body, headers = reply
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self) -> None:
                self.do_POST()

            def do_GET(self) -> None:
                script.described.append(self.path)
                status, body, _ = script.description
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        script.url = f"http://127.0.0.1:{server.server_port}"
        return script

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def options(url: str, retry_s: float) -> dict[str, Any]:
    """Of both clients."""
    return {
        "inference_url": url,
        "inference_token": "t",
        "management_url": url,
        "management_token": "t",
        "timeout_s": TIMEOUT_S,
        "retry_s": retry_s,
    }


def blocking(url: str, retry_s: float = RETRY_S) -> Any:
    """What `Client.predict` gives, or its error."""
    with Client(**options(url, retry_s)) as client:
        try:
            return client.predict("m", b"")
        except MarshipError as error:
            return error


def awaiting(url: str, retry_s: float = RETRY_S) -> Any:
    """The same of `AsyncClient`."""

    async def ask() -> Any:
        async with AsyncClient(**options(url, retry_s)) as client:
            try:
                return await client.predict("m", b"")
            except MarshipError as error:
                return error

    return asyncio.run(ask())


def streaming(url: str, retry_s: float = RETRY_S) -> Any:
    """What `Client.stream` gives, or its error."""
    with Client(**options(url, retry_s)) as client:
        try:
            return list(client.stream("m", b""))
        except MarshipError as error:
            return error


def streaming_async(url: str, retry_s: float = RETRY_S) -> Any:
    """The same of `AsyncClient`."""

    async def ask() -> Any:
        async with AsyncClient(**options(url, retry_s)) as client:
            try:
                return [line async for line in client.stream("m", b"")]
            except MarshipError as error:
                return error

    return asyncio.run(ask())


CLIENTS = pytest.mark.parametrize("ask", [blocking, awaiting])


@CLIENTS
@pytest.mark.parametrize("passing", [DIED, BUSY, AWAY, DROPPED, LIMIT_FOR_NOW])
def test_what_may_pass_is_sent_again(scripted: Any, ask: Any, passing: Reply) -> None:
    """A dead worker, a full queue, a proxy alone, a lost connection, a limit for now."""
    server = scripted(passing, passing, FINE)
    assert ask(server.url) == 7
    first, second, third = server.asked_at
    assert second - first >= 0.05
    assert third - second >= 0.1


IDLE = (200, b'[{"minWorkers": 0, "workers": []}]', {})
TOLD_IDLE = (503, b'{"code": "scaled_to_zero", "message": "m"}', {})


@CLIENTS
@pytest.mark.parametrize("answer", [BUSY, TOLD_IDLE])
def test_a_model_scaled_to_none_is_not_waited_for(scripted: Any, ask: Any, answer: Reply) -> None:
    """Of TorchServe's own refusal the management API tells; the direct address tells itself."""
    server = scripted(answer)
    server.description = IDLE
    error = ask(server.url)
    assert isinstance(error, ScaledToZeroError)
    assert len(server.asked_at) == 1
    assert answer is TOLD_IDLE or "marship scale m 1" in str(error)


@CLIENTS
def test_a_full_queue_is_looked_up_once(scripted: Any, ask: Any) -> None:
    """TorchServe says the same of it: that there are workers is asked for once, not each time."""
    server = scripted(BUSY, BUSY, BUSY, FINE)
    server.description = (200, b'[{"minWorkers": 1, "workers": [{}]}]', {})
    assert ask(server.url) == 7
    assert server.described == ["/models/m"]


@CLIENTS
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((400, b'{"code": "invalid_input", "message": "m"}', {}), InvalidInputError),
        (LIMIT, RateLimitError),
        (OWN_FAULT, ServerError),
        (LATE, NoAnswerError),
    ],
)
def test_what_stays_is_sent_once(
    scripted: Any, ask: Any, answer: Reply, kind: type[MarshipError]
) -> None:
    """A refusal, a limit that names no time, a handler's own fault, what is too slow already."""
    server = scripted(answer)
    assert isinstance(ask(server.url), kind)
    assert len(server.asked_at) == 1


@CLIENTS
def test_a_model_may_come_back_after_its_server(scripted: Any, ask: Any) -> None:
    """After a lost connection a missing model is waited for; else it is told at once."""
    server = scripted(DROPPED, GONE, GONE, FINE)
    assert ask(server.url) == 7
    server = scripted(GONE, FINE)
    assert isinstance(ask(server.url), NotFoundError)
    assert len(server.asked_at) == 1


@CLIENTS
def test_a_request_that_kills_workers_kills_three(scripted: Any, ask: Any) -> None:
    """It may be what they die of."""
    server = scripted(DIED)
    error = ask(server.url)
    assert isinstance(error, WorkerDiedError)
    assert error.status == 507
    assert len(server.asked_at) == 3


ASKED = pytest.mark.parametrize("ask", [blocking, awaiting, streaming, streaming_async])
DIED_OF_A_SIGNAL = (500, DIED[1].replace(b"507", b"500"), {})
SCALED = (500, DIED[1].replace(b"died", b"scaled down"), {})
IN_NO_TIME = (200, b'[{"responseTimeout": 0}]', {})


@ASKED
@pytest.mark.parametrize("died", [DIED, DIED_OF_A_SIGNAL])
@pytest.mark.parametrize("retry_s", [0, RETRY_S])
def test_a_request_over_the_response_timeout_is_sent_once(
    scripted: Any, ask: Any, died: Reply, retry_s: float
) -> None:
    """A worker that died after its responseTimeout was ended for it: the error says so."""
    server = scripted(died)
    server.description = IN_NO_TIME
    error = ask(server.url, retry_s)
    assert isinstance(error, ResponseTimeoutError)
    assert (error.code, error.status) == ("response_timeout", 504)
    assert "response timeout of 0 s" in str(error)
    assert len(server.asked_at) == 1
    assert server.described == ["/models/m"]


@ASKED
@pytest.mark.parametrize(
    "description",
    [
        (200, b'[{"responseTimeout": 9}]', {}),
        (200, b"[]", {}),
        (200, b'[{"responseTimeout": "soon"}]', {}),
        (200, b"<html>", {}),
        (401, b"{}", {}),
        (404, b"", {}),
    ],
)
def test_a_worker_that_died_sooner_is_a_death(scripted: Any, ask: Any, description: Reply) -> None:
    """Within the timeout, or if it is unknown, another worker is tried, twice."""
    server = scripted(DIED)
    server.description = description
    assert isinstance(ask(server.url), WorkerDiedError)
    assert len(server.asked_at) == 3


@CLIENTS
def test_where_the_limit_is_unknown_what_took_long_is_sent_once(
    scripted: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after more than the retry time may be a timeout: one worker is enough."""
    server = scripted(DIED)
    server.description = (401, b"{}", {})
    clock = iter(range(0, 10**9, 3))  # each look at it is 3 s later
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert isinstance(ask(server.url), WorkerDiedError)
    assert len(server.asked_at) == 1


@CLIENTS
def test_a_worker_that_is_scaled_down_is_no_timeout(scripted: Any, ask: Any) -> None:
    """TorchServe says it in other words, and the model's status is not requested."""
    server = scripted(SCALED, FINE)
    server.description = IN_NO_TIME
    assert ask(server.url) == 7
    assert server.described == []


def test_another_servers_home_is_not_called(scripted: Any) -> None:
    """Where only the address for predictions is given, the home's server may be another."""
    server = scripted(DIED, FINE)
    server.description = IN_NO_TIME
    with Client(inference_url=server.url, inference_token="t", retry_s=RETRY_S) as client:
        assert client.predict("m", b"") == 7
    assert server.described == []


@CLIENTS
def test_it_ends_with_the_time(scripted: Any, ask: Any) -> None:
    """A queue that stays full: the error comes before the time is over, after growing pauses."""
    server = scripted(BUSY)
    began = time.monotonic()
    error = ask(server.url)
    assert error.status == 503
    assert time.monotonic() - began < RETRY_S + 0.5
    assert 4 <= len(server.asked_at) <= 7


@CLIENTS
def test_none_are_made_where_none_are_wanted(scripted: Any, ask: Any) -> None:
    """retry_s=0 sends one request."""
    server = scripted(BUSY, FINE)
    assert ask(server.url, 0).status == 503
    assert len(server.asked_at) == 1


@CLIENTS
def test_the_server_says_how_long_to_wait(scripted: Any, ask: Any) -> None:
    """Retry-After is kept; one that is beyond the time ends it at once."""
    server = scripted((*BUSY[:2], {"Retry-After": "1"}), FINE)
    assert ask(server.url) == 7
    assert server.asked_at[1] - server.asked_at[0] >= 1
    server = scripted((*BUSY[:2], {"Retry-After": "60"}))
    assert ask(server.url).status == 503
    assert len(server.asked_at) == 1


def test_only_predictions_are_sent_again(scripted: Any) -> None:
    """A change of the server's models is made once."""
    server = scripted(BUSY, FINE)
    with Client(**options(server.url, RETRY_S)) as client, pytest.raises(ServerError):
        client.set_default("m", "1.0")
    assert len(server.asked_at) == 1


def test_nobody_is_waited_for_who_never_responded(scripted: Any) -> None:
    """A wrong address is an error at once; a server that responded before is waited for."""
    began = time.monotonic()
    assert isinstance(blocking("http://127.0.0.1:9"), NotRunningError)
    assert time.monotonic() - began < 0.5
    server = scripted(FINE)
    with Client(**options(server.url, RETRY_S)) as client:
        assert client.predict("m", b"") == 7
        client._engine._urls["inference"] = "http://127.0.0.1:9"  # the server ends
        began = time.monotonic()
        with pytest.raises(NotRunningError):
            client.predict("m", b"")
    assert time.monotonic() - began > 0.5


def test_pauses_differ(scripted: Any) -> None:
    """Clients of one server do not come back together."""
    pauses = set()
    for _ in range(5):
        server = scripted(BUSY, FINE)
        blocking(server.url)
        pauses.add(round(server.asked_at[1] - server.asked_at[0], 3))
    assert len(pauses) > 2


def test_a_stream_is_sent_again_until_it_begins(scripted: Any) -> None:
    """Before its first line; what goes wrong after that is the caller's to see."""
    lines = (200, b'1\n{"code": "internal", "message": "m"}\n', {"Content-Type": JSON_LINES})
    server = scripted(BUSY, lines)
    with Client(**options(server.url, RETRY_S)) as client:
        stream = client.stream("m", b"")
        assert next(stream) == 1
        with pytest.raises(ServerError):
            next(stream)
    assert len(server.asked_at) == 2
