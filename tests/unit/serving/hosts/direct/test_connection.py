"""HTTP as a worker speaks it: responses in order, whatever comes in whatever pieces."""

import contextlib
import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import framings
from directly import BODY, JSON, RIGHT, Place, request, until
from marship.serving.hosts.direct.limits import Limits


def test_a_prediction_is_the_services(one: Place) -> None:
    """The same bytes, with the headers that every response has; the connection stays open."""
    with one.line() as line:
        for _ in range(3):
            line.send(request(headers={**JSON, "X-Request-Id": "my id"}))
            got = line.read()
            assert (got.status, got.json()) == (200, [[RIGHT]])
            assert got.headers["x-request-id"] == "my id"
            assert got.headers["server-timing"].startswith("decode;dur=")
            assert "connection" not in got.headers


@pytest.mark.parametrize("name", framings.WHOLE)
def test_bodies_may_be_framed_in_any_way_that_leaves_no_doubt(one: Place, name: str) -> None:
    """The response is what the body asks for, and the next request is read from its start."""
    with one.line() as line:
        headers, body = framings.WHOLE[name](BODY)
        head = b"POST /predictions/m HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        line.send(head + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body)
        if name == "expects":
            assert line._stream.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert line._stream.readline() == b"\r\n"
        first = line.read()
        assert first.status in (200, 400)
        line.send(request())
        assert line.read().json() == [[RIGHT]]


@pytest.mark.parametrize("name", framings.LIES)
def test_a_request_whose_end_is_in_doubt_ends_its_connection(one: Place, name: str) -> None:
    """What follows it is never taken for a request: at most one response, then the end."""
    with one.line() as line:
        headers, body = framings.LIES[name](BODY)
        head = b"POST /predictions/m HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        line.send(head + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body)
        line.socket.shutdown(1)
        told = line._stream.read()
        is_valid = name in ("chunked after a tab", "another request behind")
        assert told.count(b"HTTP/1.1 200") == is_valid, told
        assert told.count(b"HTTP/1.1 404") == (name == "another request behind"), told
    assert one.ask().status == 200


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_responses_come_in_order_whatever_pieces_the_requests_come_in(
    one: Place, data: st.DataObject
) -> None:
    """Valid, invalid, unknown and health requests in one stream, cut anywhere."""
    kinds = {
        "valid": (request(), 200),
        "invalid": (request(body=b"[[1]]"), 400),
        "no json": (request(body=b"{"), 400),
        "unknown": (request("/predictions/nobody"), 404),
        "no path": (request("/nowhere", b"", "GET"), 404),
        "health": (request("/v2/health/live", b"", "GET"), 200),
        "model": (request("/v2/models/m", b"", "GET"), 200),
        "method": (request("/predictions/m", BODY, "DELETE"), 405),
        "version": (request("/predictions/m/1.0"), 200),
        "other version": (request("/predictions/m/2.0"), 404),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=12))
    stream = b"".join(kinds[name][0] for name in chosen)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    with one.line() as line:
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            line.send(stream[start:stop])
            if data.draw(st.booleans()):
                time.sleep(0.001)  # else the kernel joins most pieces again
        got = [
            line.read("GET" if name in ("health", "model", "no path") else "POST").status
            for name in chosen
        ]
    assert got == [kinds[name][1] for name in chosen]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"POST /predictions/m HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n" + b" " * 20000, 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
)
def test_what_is_too_large_or_no_request_is_refused_with_a_status(
    one: Place, sent: bytes, status: int
) -> None:
    """One line that says why; nobody else is disturbed."""
    with one.line() as line:
        line.send(sent)
        got = line.read("GET")
        assert got.status == status
        assert " must " in got.json()["message"]
    assert one.ask().status == 200


@pytest.mark.parametrize("path", ["/predictions/m", "/predictions/nobody", "/nowhere"])
@pytest.mark.parametrize("framing", [b"0\r\nX-T: ", b"2;ext=", b"0\r\nX-T: b\r\nY"])
def test_what_frames_chunks_is_limited_as_heads_are(one: Place, path: str, framing: bytes) -> None:
    """A trailer or an extension without an end is refused, not collected."""
    with one.line() as line:
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        line.send(head.encode() + b"2\r\n[[\r\n" + framing)
        with contextlib.suppress(OSError):  # it is closed when enough was dropped
            for _ in range(100):
                line.send(b"a" * 4096)
        statuses = (431,) if path == "/predictions/m" else (404, 431)  # refused before it is known
        assert line.read().status in statuses
    assert one.ask().status == 200


@pytest.mark.parametrize("behind", [b"\x00garbage", b"GET", b"\r\n", b"x y z\r\n\r\n"])
def test_what_stands_behind_a_body_in_chunks_does_not_change_its_response(
    one: Place, behind: bytes
) -> None:
    """The request was whole; what follows it may be garbage."""
    with one.line() as line:
        head = b"POST /predictions/m HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        line.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + body + behind)
        assert line.read().json() == [[RIGHT]]


def test_usual_trailers_are_read_and_dropped(one: Place) -> None:
    """The next request is read from its start."""
    with one.line() as line:
        head = b"POST /predictions/m HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        size = f"{len(BODY):x}".encode()
        body = size + b";a=" + b"b" * 9000 + b"\r\n" + BODY + b"\r\n0\r\nX-T: " + b"c" * 9000
        line.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"\r\n\r\n")
        assert line.read().json() == [[RIGHT]]
        line.send(request())
        assert line.read().json() == [[RIGHT]]


def test_clients_of_http_1_0_and_those_that_close_get_a_whole_response(one: Place) -> None:
    """The connection ends behind it."""
    for version, header in (("1.0", ""), ("1.1", "Connection: close\r\n")):
        with one.line() as line:
            head = f"POST /predictions/m HTTP/{version}\r\nHost: h\r\n{header}"
            line.send(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            assert line.read().json() == [[RIGHT]]
            assert line.is_closed()


def test_an_upgrade_is_not_taken_and_the_body_not_lost(one: Place) -> None:
    """As curl --http2 sends it."""
    with one.line() as line:
        line.send(request(headers={**JSON, "Connection": "Upgrade", "Upgrade": "h2c"}))
        assert line.read().json() == [[RIGHT]]


def test_head_and_options(one: Place) -> None:
    """HEAD is GET without its body; OPTIONS names the methods, and 405 too."""
    with one.line() as line:
        line.send(request("/v2/models/m", b"", "HEAD"))
        got = line.read("HEAD")
        assert (got.status, got.body) == (200, b"")
        assert int(got.headers["content-length"]) > 100
        line.send(request("/predictions/m", b"", "OPTIONS"))
        assert "POST" in line.read("OPTIONS").headers["allow"]
        line.send(request("/predictions/m", b"", "PATCH"))
        got = line.read("PATCH")
        assert (got.status, got.json()["code"]) == (405, "method")
        assert "POST" in got.headers["allow"]


def test_a_get_without_parameters_is_no_prediction(one: Place) -> None:
    """A browser's: 405 with the methods that are; with a query or a body it reaches the handler."""
    with one.line() as line:
        line.send(request("/predictions/m", b"", "GET"))
        got = line.read()
        assert (got.status, got.headers["allow"]) == (405, "POST, PUT, OPTIONS")
        line.send(request("/predictions/m?k=1", b"", "GET"))
        assert line.read().status == 400
        line.send(request("/predictions/m", BODY, "GET"))
        assert line.read().json() == [[RIGHT]]


def test_a_field_that_curl_encodes_is_read(one: Place) -> None:
    """As by TorchServe itself; JSON that curl calls a form of fields stays JSON."""
    fields = {"Content-Type": "application/x-www-form-urlencoded"}
    with one.line() as line:
        for body in (BODY, b"body=" + quote(BODY).encode(), b"data=" + quote(BODY).encode()):
            line.send(request("/predictions/m", body, headers=fields))
            assert line.read().json() == [[RIGHT]]
        line.send(request("/predictions/m", b"x=%FF", headers=fields))
        assert line.read().status == 400


@pytest.fixture
def strict(loaded: Any) -> Any:
    """A place that waits for nobody."""
    made = Place(limits=Limits(head_s=0.3, body_s=0.3, body_rate=1 << 30, idle_s=0.4, linger_s=0.2))
    made.add(loaded)
    made.follow(m=("1.0",))
    yield made
    made.close()


@pytest.mark.parametrize(
    "begun", [b"POST /predictions/m HTTP/1.1\r\nHost:", request()[:-5], request() + request()[:-5]]
)
def test_a_slow_writer_is_refused(strict: Place, begun: bytes) -> None:
    """408 at the end of its time, however many bytes trickle in."""
    with strict.line() as line:
        line.send(begun)
        if begun.startswith(request()):
            assert line.read().status == 200
        got = line.read()
        assert (got.status, got.json()["code"]) == (408, "timeout")
        assert line.is_closed()


def test_an_idle_connection_is_closed(strict: Place) -> None:
    """Without a word, behind a response or before any request."""
    with strict.line() as line:
        line.send(request())
        assert line.read().status == 200
        assert line.is_closed()
    with strict.line() as line:
        assert line.is_closed()
    until(lambda: strict.acceptor.connections == 0)


def test_the_chunks_of_a_refused_request_are_parsed_up_to_a_limit(one: Place) -> None:
    """Its client gets the response and the end; a short body leaves the connection open."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    with one.line() as line:
        line.send(head + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n")
        assert line.read().status == 404
        line.send(request())
        assert line.read().status == 200
    with one.line() as line:
        line.send(head)
        with contextlib.suppress(OSError):  # it is closed when enough was dropped
            for _ in range(100):
                line.send(b"1\r\na\r\n" * 1000)
        assert line.read().status == 404
    with one.line() as line:  # of a known length: it costs nothing to drop
        line.send(request("/nowhere", body=bytes(500_000)) + request())
        assert [line.read().status, line.read().status] == [404, 200]


@pytest.mark.parametrize("space", [" ", "\t", " \t "])
def test_white_space_around_a_headers_value_is_none_of_it(one: Place, space: str) -> None:
    """Length, coding, type and token are read without it (RFC 9110, 5.5)."""
    lines = [
        "POST /predictions/m HTTP/1.1",
        f"Host: h{space}",
        f"Content-Type:{space}application/json{space}",
        f"Content-Length:{space}{len(BODY)}{space}",
        f"Expect: 100-continue{space}",
    ]
    with one.line() as line:
        line.send("\r\n".join([*lines, "", ""]).encode())
        assert line._stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert line._stream.readline() == b"\r\n"
        line.send(BODY)
        assert line.read().json() == [[RIGHT]]
    with one.line() as line:
        head = "\r\n".join([*lines[:3], "Transfer-Encoding: chunked ", "", f"{len(BODY):x}", ""])
        line.send(head.encode() + BODY + b"\r\n0\r\n\r\n")
        assert line.read().json() == [[RIGHT]]


def test_a_client_of_http_1_0_is_not_told_to_continue(one: Place) -> None:
    """It would take that for its response (RFC 9110, 10.1.1)."""
    for _ in range(2):  # the same head again, which may be known
        with one.line() as line:
            head = "POST /predictions/m HTTP/1.0\r\nExpect: 100-continue\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
            line.send(head.encode())
            time.sleep(0.1)  # so that the head is read before the body comes
            line.send(BODY)
            assert line.read().json() == [[RIGHT]]
