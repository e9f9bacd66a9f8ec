"""Requests that no worker takes go to the engine, one by one, and its responses come back."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from directly import BODY, JSON, RIGHT, Place, request, until
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.seats import ModelState

LARGE = bytes(range(256)) * 8192


class Engine(ThreadingHTTPServer):
    """An engine of its own: answers by the model's name, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.may_end = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers, body))
        getattr(self, "_" + self.path.split("/")[2].partition("?")[0])(body)

    do_GET = do_PUT = lambda self: self.do_POST()  # noqa: N815

    def _echo(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-own")
        self.send_header("X-Own", "kept")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _unknown(self, _body: bytes) -> None:
        self.send_response(404)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b'13\r\n{"message": "none"}\r\n0\r\n\r\n')

    def _own(self, body: bytes) -> None:
        """The engine's own error: its code is the status that the body names."""
        status = int(body)
        text = b'{"code": %d, "type": "SomeException", "message": "no"}' % status
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _full(self, _body: bytes) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def _stream(self, _body: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"2\r\n1\n\r\n")
        assert self.server.may_end.wait(10)
        self.wfile.write(b"2\r\n2\n\r\n0\r\n\r\n")

    def _broken(self, _body: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"2\r\n1\n\r\n")
        self.close_connection = True

    def _short(self, _body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"not all")
        self.close_connection = True

    def _silent(self, _body: bytes) -> None:
        self.server.may_end.wait(10)
        self.close_connection = True

    def _noise(self, _body: bytes) -> None:
        self.wfile.write(b"no HTTP at all\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Listens."""
    with Engine() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.may_end.set()
        made.shutdown()


@pytest.fixture
def relayed(engine: Engine) -> Iterator[Place]:
    """An acceptor in front of it."""
    place = Place(limits=Limits(relayed_s=0.5), engine=engine.server_address)  # type: ignore[arg-type]
    yield place
    place.close()


@pytest.mark.parametrize("body", [BODY, b"", LARGE], ids=["small", "empty", "large"])
def test_a_request_and_its_response_pass_whole(relayed: Place, engine: Engine, body: bytes) -> None:
    """Path, query, headers and body; status, type, headers and body back; the connection stays."""
    with relayed.line() as line:
        for _ in range(2):
            headers = {
                **JSON,
                "X-Request-Id": "mine",
                "Authorization": "Bearer t",
                "TE": "trailers",
            }
            line.send(request("/predictions/echo/1.0?a=b%20c", body=body, headers=headers))
            got = line.read()
            assert (got.status, got.body, got.headers["x-own"]) == (200, body, "kept")
            assert got.headers["content-type"] == "application/x-own"
            assert got.headers["x-request-id"] == "mine"
            assert "connection" not in got.headers
    method, path, headers, sent = engine.seen[0]
    assert (method, path, sent) == ("POST", "/predictions/echo/1.0?a=b%20c", body)
    assert headers["authorization"] == "Bearer t"
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")
    assert "te" not in headers


def test_a_body_in_chunks_passes_whole(relayed: Place, engine: Engine) -> None:
    """The engine gets its length."""
    with relayed.line() as line:
        line.send(
            b"POST /predictions/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        assert line.read().body == b"abcde"
    assert engine.seen[0][2]["content-length"] == "5"


def test_kserve_requests_pass_with_the_error_its_clients_read(relayed: Place) -> None:
    """The engine has no path of KServe v2: it is asked by its own."""
    got = relayed.ask("/v2/models/unknown/versions/3/infer")
    assert (got.status, got.json()) == (404, {"message": "none", "error": "none"})


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/predictions/echo" + "a" * 3500, {}, 414),
        ("/predictions/echo?" + "a" * 3500, {}, 414),
        ("/predictions/" + "%41" * 1200, {}, 414),
        ("/predictions/echo", {"X-Long": "a" * 7500}, 431),
    ],
)
def test_what_the_engine_would_not_read_is_refused(
    relayed: Place, engine: Engine, path: str, headers: dict[str, str], status: int
) -> None:
    """It closes the connection there, and the client would get a fault of the server."""
    got = relayed.ask(path, headers=headers)
    assert (got.status, got.json()["code"], engine.seen) == (status, "too_large", [])


def test_a_model_is_ready_where_the_engine_has_a_worker_for_it(relayed: Place) -> None:
    """Requests are relayed to it; KServe's clients ask before they send one."""
    state = ModelState("1", ("1", "2"), {"1": 1, "2": 1}, {"1": 1, "2": 0})
    relayed._loop.call_soon_threadsafe(relayed.acceptor.follow, {"echo": state})
    until(lambda: relayed.acceptor.seats.knows_models)
    for path, is_ready in {
        "echo": True,
        "echo/versions/1": True,
        "echo/versions/2": False,
        "echo/versions/3": False,
        "unknown": False,
    }.items():
        got = relayed.ask(f"/v2/models/{path}/ready", b"", "GET")
        assert (got.status, got.json()["ready"]) == (200 if is_ready else 503, is_ready)


def test_names_reach_the_engine_encoded(relayed: Place, engine: Engine) -> None:
    """No name can become another path: the engine would split one that holds a slash."""
    for path in ("echo/..%2Fmodels%3Fx", "echo%2F1.0", "%2f"):
        assert relayed.ask(f"/predictions/{path}").status == 404
        assert relayed.ask(f"/v2/models/{path}/infer").status == 404
    assert not engine.seen
    relayed.ask("/predictions/echo/..%3Fx")
    assert engine.seen[0][1] == "/predictions/echo/..%3Fx"


@pytest.mark.parametrize("left", ["no workers", "no version", "nothing"])
def test_a_request_that_no_worker_will_take_gets_its_status(engine: Engine, left: str) -> None:
    """The engine keeps it for ever where the model is scaled to none or unregistered meanwhile."""
    states = {
        "no workers": {"silent": ModelState("1.0", ("1.0",), {"1.0": 0}, {"1.0": 0})},
        "no version": {"silent": ModelState("2.0", ("2.0",), {"2.0": 1}, {"2.0": 1})},
        "nothing": {},
    }
    served = {"silent": ModelState("1.0", ("1.0",), {"1.0": 1}, {"1.0": 1})}
    place = Place(engine=engine.server_address)  # type: ignore[arg-type]
    try:
        with place.line() as line:
            line.send(request("/predictions/silent/1.0"))
            until(lambda: engine.seen)
            for state in (served, states[left], served, states[left]):  # once says nothing
                place._loop.call_soon_threadsafe(place.acceptor.follow, state)
            line.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                line.socket.recv(1)
            place._loop.call_soon_threadsafe(place.acceptor.follow, states[left])
            line.socket.settimeout(5)
            assert line.read().status == (503 if left == "no workers" else 404)
        until(lambda: not place.acceptor._relays)
    finally:
        engine.may_end.set()
        place.close()


def test_a_model_scaled_to_none_is_said_at_once(relayed: Place, engine: Engine) -> None:
    """The engine refuses; the client gets the command that mends it, and no word to try again."""
    idle, busy = (
        {"full": ModelState("1.0", ("1.0",), {"1.0": 0}, {"1.0": 0})},
        {"full": ModelState("1.0", ("1.0",), {"1.0": 1}, {"1.0": 0})},
    )
    for states, code in (({}, None), (busy, None), (idle, "scaled_to_zero")):
        told = threading.Event()
        relayed._loop.call_soon_threadsafe(
            lambda given=states, done=told: (relayed.acceptor.follow(given), done.set())
        )
        assert told.wait(5)
        got = relayed.ask("/predictions/full")
        assert (got.status, got.json().get("code")) == (503, code)
    assert "marship scale full 1" in got.json()["message"]
    assert "retry-after" not in got.headers
    got = relayed.ask("/v2/models/full/versions/1.0/infer")
    assert "marship scale full 1 --version 1.0" in got.json()["error"]
    assert engine.seen[-1][1] == "/predictions/full/1.0"


def test_a_stream_passes_as_it_comes(relayed: Place, engine: Engine) -> None:
    """Its first part is there before its last."""
    with relayed.line() as line:
        line.send(request("/predictions/stream"))
        assert b"200" in line._stream.readline()
        while line._stream.readline() != b"\r\n":
            pass
        assert line._stream.read(7) == b"2\r\n1\n\r\n"
        engine.may_end.set()
        assert line._stream.read(12) == b"2\r\n2\n\r\n0\r\n\r\n"
        line.send(request("/predictions/echo"))
        assert line.read().body == BODY


def test_what_is_not_whole_is_not_taken_for_a_response(relayed: Place) -> None:
    """Part of a body, part of a stream, no HTTP, silence: 502, or the end of the connection."""
    for name in ("short", "noise", "silent"):
        got = relayed.ask(f"/predictions/{name}")
        assert (got.status, got.json()["code"], got.headers["retry-after"]) == (
            502,
            "no_answer",
            "1",
        )
    with relayed.line() as line:
        line.send(request("/predictions/broken"))
        told = line._stream.read()
        assert told.endswith(b"2\r\n1\n\r\n")
    assert relayed.ask("/predictions/short").status == 502
    assert relayed.ask("/predictions/echo").status == 200


def test_an_engine_that_is_not_there() -> None:
    """A status, and the next request is served."""
    place = Place(engine=("127.0.0.1", 9))
    try:
        assert place.ask("/predictions/echo").status == 502
        assert place.ask("/ping", b"", "GET").status == 503
    finally:
        place.close()


def test_a_client_that_leaves_ends_its_request(relayed: Place, engine: Engine) -> None:
    """And no other's."""
    with relayed.line() as line:
        line.send(request("/predictions/stream"))
        until(lambda: engine.seen)
    engine.may_end.set()
    assert relayed.ask("/predictions/echo").body == BODY
    until(lambda: not relayed.acceptor._relays)


def test_a_connection_goes_to_a_worker_as_soon_as_there_is_one(
    relayed: Place, engine: Engine, loaded: Any
) -> None:
    """The engine answers the first request, and the worker the next, on the same connection."""
    with relayed.line() as line:
        line.send(request("/predictions/echo"))
        assert line.read().body == BODY
        relayed.add(loaded, name="echo")
        line.send(request("/predictions/echo"))
        assert line.read().json()[0][0] == RIGHT
    assert len(engine.seen) == 1


def test_a_trace_id_is_passed_on(relayed: Place, engine: Engine) -> None:
    """Also of the second request, whose head is known but for it."""
    wanted = [f"00-{number:032x}-00f067aa0ba902b7-00" for number in (1, 2, 3)]
    with relayed.line() as line:
        for trace in wanted:
            line.send(request("/predictions/echo", headers={**JSON, "traceparent": trace}))
            assert line.read().status == 200
    assert [headers["traceparent"] for _, _, headers, _ in engine.seen] == wanted


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "not_found"), (503, "no_worker"), (413, "too_large"), (400, "bad_request"),
     (500, "internal"), (507, "internal")],
)  # fmt: skip
def test_the_engines_own_errors_have_codes_as_ours_have(
    relayed: Place, status: int, code: str
) -> None:
    """Its numbers are the status again; its type and message stay, and the acceptor counts it."""
    got = relayed.ask("/predictions/own", body=b"%d" % status)
    assert got.status == status
    assert got.json() == {"code": code, "type": "SomeException", "message": "no"}
    errors = relayed.acceptor.failures._sheet.read()
    assert [dict(series.labels) for series, _ in errors] == [{"code": code}]


def test_what_a_worker_of_the_engine_refuses_is_not_counted_twice(relayed: Place) -> None:
    """Its own response comes as it is, whatever its status."""
    assert relayed.ask("/predictions/unknown").json() == {"message": "none"}
    assert relayed.ask("/predictions/full").status == 503
    assert not list(relayed.acceptor.failures._sheet.read())
    assert relayed.ask("/predictions/short").json()["code"] == "no_answer"
    assert len(list(relayed.acceptor.failures._sheet.read())) == 1
