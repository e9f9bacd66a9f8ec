"""What typed clients send again, for how long, and what they do not."""

import importlib
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from marship.client.typed.package import write
from marship.client.typed.retries import RETRY_S, Retries
from marship.client.typed.transport import JSON_TYPE, ServiceError, TypedConnection
from marship.exchange import retries as ours
from marship.serving.openapi.document import ServedModel, document
from marship.serving.openapi.interface import opaque

BUSY = (503, "busy", "0")


class Scripted(BaseHTTPRequestHandler):
    """Refuses as it is told, then responds with the number of requests."""

    protocol_version = "HTTP/1.1"
    refusals: ClassVar[list[tuple[int, str, str | None]]] = []
    asked: ClassVar[int] = 0

    def do_POST(self) -> None:
        """Refuse, or respond."""
        self.rfile.read(int(self.headers["Content-Length"]))
        cls = type(self)
        cls.asked += 1
        status, code, after_s = cls.refusals.pop(0) if cls.refusals else (200, "", None)
        if status < 0:  # no response of HTTP
            self.wfile.write(b"\0" * 32 + b"\r\n")
            status = 0
        if status == 0:  # the connection ends without a response
            self.close_connection = True
            return
        said = {"code": code, "message": "m"} if code else {"asked": cls.asked}
        body = json.dumps(said).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if after_s is not None:
            self.send_header("Retry-After", after_s)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(port: int = 0) -> Iterator[int]:
    """The server, at a port."""
    with ThreadingHTTPServer(("127.0.0.1", port), Scripted) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def connection() -> Iterator[TypedConnection]:
    """A connection to it."""
    Scripted.refusals, Scripted.asked = [], 0
    with serving() as port, TypedConnection(f"http://127.0.0.1:{port}") as found:
        yield found


def ask(connection: TypedConnection) -> Any:
    """The response to a request."""
    return connection.ask("/x", b"", JSON_TYPE)["asked"]


@pytest.mark.parametrize(
    ("refusals", "asked"),
    [
        ([BUSY, BUSY], 3),
        ([(429, "rate_limit", "0")], 2),
        ([(502, "not_running", None)], 2),
        ([(503, "no_worker", None)], 2),
        ([(503, "worker_died", "0")] * 2, 3),
    ],
)
def test_what_passes_is_sent_again(
    connection: TypedConnection, refusals: list[Any], asked: int
) -> None:
    """A server that is busy, away, or whose worker has died; streams, too."""
    Scripted.refusals = list(refusals)
    assert ask(connection) == asked
    Scripted.refusals, Scripted.asked = list(refusals), 0
    assert list(connection.lines("/x", b"")) == [{"asked": asked}]


@pytest.mark.parametrize(
    ("refusal", "asked"),
    [
        ((400, "invalid_input", None), 1),
        ((401, "token", None), 1),
        ((404, "not_found", None), 1),
        ((429, "rate_limit", None), 1),
        ((500, "internal", "0"), 1),
        ((503, "scaled_to_zero", "0"), 1),
        ((503, "busy", "30"), 1),
        ((503, "worker_died", "0"), 3),
        ((504, "response_timeout", "0"), 1),
    ],
)
def test_what_would_come_again_is_raised(
    connection: TypedConnection, refusal: Any, asked: int
) -> None:
    """Errors of the request, of a model without workers, what takes too long, repeated deaths."""
    Scripted.refusals = [refusal] * 9
    with pytest.raises(ServiceError) as refused:
        ask(connection)
    assert (refused.value.status, refused.value.code) == refusal[:2]
    after_s = refusal[2] and float(refusal[2])
    assert refused.value.retry_after_s == after_s
    assert Scripted.asked == asked


def test_what_may_have_been_answered_is_not_sent_again(connection: TypedConnection) -> None:
    """A new connection that ends within a request; a kept one may have ended before it."""
    Scripted.refusals = [(0, "", None)]
    with pytest.raises(ConnectionError):
        ask(connection)
    assert Scripted.asked == 1
    assert ask(connection) == 2
    Scripted.refusals = [(0, "", None)]
    assert ask(connection) == 4


def test_what_was_answered_by_no_http_is_not_sent_again(connection: TypedConnection) -> None:
    """On a kept connection, too: the server had the request."""
    assert ask(connection) == 1
    Scripted.refusals = [(-1, "", None)]
    with pytest.raises(HTTPException):
        ask(connection)
    assert Scripted.asked == 2
    assert ask(connection) == 3


def test_a_server_that_comes_back_is_waited_for() -> None:
    """Where it was there before; it may know its models a moment later."""
    Scripted.refusals, Scripted.asked = [], 0
    with serving() as port:
        connection = TypedConnection(f"http://127.0.0.1:{port}")
        assert ask(connection) == 1
        connection.close()
    found: list[Any] = []
    waits = threading.Thread(target=lambda: found.append(ask(connection)))
    waits.start()
    time.sleep(0.3)  # a sleep: some tries are refused meanwhile
    Scripted.refusals = [(404, "not_found", None)]
    with serving(port):
        waits.join(10)
        assert found == [3]
    connection.close()


def test_a_server_that_never_was_there_is_not_waited_for() -> None:
    """A wrong address is told at once."""
    with serving() as port:
        pass
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError), TypedConnection(f"http://127.0.0.1:{port}") as line:
        ask(line)
    assert time.monotonic() - began < 1


def test_it_may_be_turned_off_and_is_bounded(
    connection: TypedConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client that is written, too."""
    facts = {**opaque(None).facts(), "inputs": [], "outputs": []}
    write(document([ServedModel("m", "1.0", True, True, facts)], "1"), tmp_path / "retried")
    monkeypatch.syspath_prepend(tmp_path)
    made = importlib.import_module("retried")
    url = connection._parts.geturl()
    for retry_s, least, most in ((0, 1, 1), (0.5, 3, 20)):
        Scripted.refusals, Scripted.asked = [BUSY] * 1000, 0
        began = time.monotonic()
        with made.Client(url, retry_s=retry_s) as client, pytest.raises(made.ServiceError):
            client.predict(b"")
        assert least <= Scripted.asked <= most
        assert time.monotonic() - began < retry_s + 2


@pytest.mark.parametrize("seed", range(20))
def test_pauses_are_those_of_marships_own_client(seed: int) -> None:
    """The same numbers, drawn alike, for any row of failures."""
    assert RETRY_S == ours.RETRY_S
    draw = random.Random(seed)  # noqa: S311  no secret
    kinds = [(503, "busy"), (502, "not_running"), (429, "rate_limit"), (404, "not_found"), None]
    theirs, own = Retries(5.0), ours.RetryPolicy(5.0)
    for failure in draw.choices(kinds, k=8):
        after_s = draw.choice([None, 0, 1])
        random.seed(seed)
        if failure is None:
            wanted = own.after_loss()
        else:
            headers = {} if after_s is None else {"retry-after": str(after_s)}
            body = json.dumps({"code": failure[1], "message": ""}).encode()
            response = ours.HttpResponse(failure[0], headers, body)
            wanted = own.after(response, has_crashed=False)
        random.seed(seed)
        found = theirs.after_loss() if failure is None else theirs.after(*failure, after_s)
        assert found == (None if wanted is None else wanted.seconds)
