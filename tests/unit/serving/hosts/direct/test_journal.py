"""What is written down of requests: lines of a log, and spans at a collector."""

import json
import re
import resource
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector import NAME, SPAN, TRACE, Collector, attributes, below
from directly import BODY, JSON, Line, Place, request, until
from marship.engines.figures import requests
from marship.engines.standalone.settings import HostSettings
from marship.errors import UsageError
from marship.serving.hosts.direct import heads, journal, request_log, traces, worker
from marship.serving.hosts.direct.heads import Head, Heads
from marship.serving.hosts.direct.request_log import RequestLog

FORM = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
NOT_OURS = re.compile(rb"ff-.*|00-.{52}-.*|.{36}0{16}.*", re.DOTALL)
"""Of that form, and yet none: no version, more than its version has, no span."""


@pytest.fixture
def place(
    loaded: Any, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A worker that logs and traces."""
    asked = {"file": str(tmp_path / "requests.jsonl"), "bodies": True}
    monkeypatch.setenv(request_log.LOG_VARIABLE, json.dumps(asked))
    told = {"url": collector.url, "share": 0}
    monkeypatch.setenv(traces.TRACES_VARIABLE, json.dumps(told))
    made = Place()
    made.add(loaded)
    made.follow(m=("1.0",))
    yield made
    made.close()


def ask(place: Place, *headers: str, body: bytes = BODY) -> int:
    """The status of one request."""
    line = Line(place.address)
    given = dict(header.split(": ") for header in headers)
    line.send(request(body=body, headers={**JSON, **given}))
    status = line.read().status
    line.close()
    return int(status)


def test_a_sampled_request_becomes_spans_below_its_clients(
    place: Place, collector: Collector
) -> None:
    """The trace and the span of its traceparent; the steps lie within the request, in turn."""
    sampled, not_sampled = (f"traceparent: 00-{TRACE}-{SPAN}-0{flag}" for flag in (1, 0))
    for _ in range(2):  # the second head is known
        assert ask(place, sampled, "tracestate: other=1") == 200
    assert ask(place, not_sampled) == 200
    assert ask(place) == 200
    assert ask(place, sampled, body=b"[[1,") == 400
    until(lambda: len(collector.spans()) == 24)
    spans = collector.spans()
    assert {span["traceId"] for span in spans} == {TRACE}
    whole = [span for span in spans if span["kind"] == 2]
    assert [span.get("traceState") for span in whole] == ["other=1", "other=1", None]
    assert [(span["name"], span["parentSpanId"]) for span in whole] == [(NAME, SPAN)] * 3
    for one in whole:
        seat, inner = below(spans, one)
        steps = below(spans, inner)
        assert [seat["name"], inner["name"]] == ["seat", "worker"]
        assert [span["name"] for span in steps] == ["accept", "queue", "decode", "infer", "encode"]
        times = [int(span["startTimeUnixNano"]) for span in (one, seat, inner, *steps)]
        assert times == sorted(times)
        assert seat["endTimeUnixNano"] == inner["startTimeUnixNano"]
        assert int(steps[-1]["endTimeUnixNano"]) <= int(inner["endTimeUnixNano"])
        assert inner["endTimeUnixNano"] == one["endTimeUnixNano"]
        assert abs(int(one["startTimeUnixNano"]) / 1e9 - time.time()) < 60
    facts = attributes(whole[-1])
    assert facts["http.response.status_code"] == "400"
    assert facts["error.type"] == "malformed"
    assert (facts["http.route"], facts["url.path"]) == ("/predictions/{model}", "/predictions/m")
    resource = {
        a["key"] for a in collector.received[0]["resourceSpans"][0]["resource"]["attributes"]
    }
    assert {"service.name", "marship.model.name"} <= resource


def test_each_request_is_a_line_of_the_log(place: Place, tmp_path: Path) -> None:
    """Well, refused by the model, and refused before; with the id that its client got."""
    assert ask(place, "X-Request-Id: mine") == 200
    assert ask(place, body=b"[[1,") == 400
    line = Line(place.address)
    line.send(b"DELETE /predictions/m HTTP/1.1\r\nhost: a\r\n\r\n")
    assert line.read().status == 405
    file = tmp_path / "requests.jsonl"
    until(lambda: file.exists() and file.read_bytes().count(b"\n") == 3)
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    assert [(row["status"], row["code"]) for row in rows] == [
        (200, "ok"),
        (400, "malformed"),
        (405, "method"),
    ]
    first = rows[0]
    assert (first["id"], first["model"], first["version"]) == ("mine", "m", "1.0")
    assert first["request"] == BODY.decode()
    assert first["response_bytes"] == len(first["response"])
    assert first["total_ms"] >= first["queue_ms"] >= 0
    assert {"decode_ms", "infer_ms", "encode_ms"} <= first.keys()
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_being_asked_nothing_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """As shipped: a worker has no journal at all."""
    for name in (request_log.LOG_VARIABLE, traces.TRACES_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert journal.told("m", "1.0") is None


def test_a_log_keeps_five_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest ones; several writers lose no line on the way."""
    monkeypatch.setattr(request_log, "_MOST_BYTES", 200)
    monkeypatch.setattr(request_log, "_WRITE_S", 1e6)
    logs = [RequestLog(tmp_path / "requests.jsonl") for _ in range(2)]
    for number in range(100):
        logs[number % 2].add({"number": number})
        logs[number % 2].write()
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == 5
    found = [json.loads(row)["number"] for file in files for row in file.read_text().splitlines()]
    assert sorted(found) == list(range(100 - len(found), 100))


def test_lines_that_cannot_be_written_take_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes: bodies are long. The newest are kept, and written into files of the size stated."""
    monkeypatch.setattr(request_log, "_MOST_WAITING", 10_000)
    monkeypatch.setattr(request_log, "_MOST_BYTES", 3_000)
    monkeypatch.setattr(request_log, "_PIECE", 1_000)
    monkeypatch.setattr(request_log, "_WRITE_S", 1e6)
    log = RequestLog(tmp_path / "requests.jsonl")
    for number in range(1000):
        log.add({"number": number, "request": "x" * (number % 500)})
        assert log._size == sum(map(len, log._waiting)) <= 10_000
    log.write()
    files = sorted(tmp_path.glob("*.jsonl"))
    assert log._size == 0
    assert all(file.stat().st_size <= 3_000 for file in files)
    found = [json.loads(row)["number"] for file in files for row in file.read_text().splitlines()]
    assert sorted(found) == list(range(1000 - len(found), 1000))


def test_a_disk_that_takes_a_part_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write may be short, and the next one fail: what is half there is taken back."""
    monkeypatch.setattr(request_log, "_WRITE_S", 1e6)
    log = RequestLog(tmp_path / "requests.jsonl")
    log.add({"number": 0})
    log.write()
    log.add({"number": 1, "request": "x" * 5000})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            log.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "requests.jsonl").read_text() == '{"number":0}\n'


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("api-key=a%20b%2C, x = y=z,", {"api-key": "a b,", "x": "y=z"}),
        ("", {}),
        ("api-key", None),
        ("a b=c", None),
        ("a=%0Ab: c", None),
    ],
)
def test_a_collectors_headers_are_opentelemetrys_variable(
    given_text: str, wanted: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs with values as in URLs; no value is shown, and none can add a header of its own."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", given_text)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", raising=False)
    settings = HostSettings(traces_url="http://h/v1/traces")
    ask_for = partial(requests.variables, Path("logs"), settings)
    if wanted is None:
        with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_HEADERS must be like"):
            ask_for()
        return
    assert json.loads(ask_for()[traces.TRACES_VARIABLE])["headers"] == wanted
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "own=1")
    assert json.loads(ask_for()[traces.TRACES_VARIABLE])["headers"] == {"own": "1"}


def test_a_collector_gets_its_headers(collector: Collector) -> None:
    """With each request."""
    traces.Tracer(collector.url, 0.0, {}, {"api-key": "a b"})._send([{}])
    assert collector.keys == ["a b"]


def test_a_collector_that_is_gone_costs_no_request(loaded: Any, caplog: Any) -> None:
    """Spans are dropped, which is logged once."""
    tracer = traces.Tracer("http://127.0.0.1:9/v1/traces", 0.0, {"service.name": "marship"})
    for _ in range(2):
        tracer._send([{}])
    assert loaded
    assert len([r for r in caplog.records if "spans must reach" in r.getMessage()]) == 1


@given(st.binary(max_size=80) | st.from_regex(FORM, fullmatch=True))
@example(f"ff-{TRACE}-{SPAN}-01".encode())
@example(f"00-{TRACE}-{'0' * 16}-01".encode())
@example(f"00-{TRACE}-{SPAN}-01-more".encode())
@example(f"cc-{TRACE}-{SPAN}-01-more".encode())
def test_what_is_no_trace_id_is_not_taken_over(given_id: bytes) -> None:
    """W3C Trace Context, 3.2.2: another form, or an id of zeros, is as none."""
    tracer = traces.Tracer.__new__(traces.Tracer)
    tracer._share = 0.0
    found = tracer.parent(given_id)
    right = None if NOT_OURS.fullmatch(given_id) else re.fullmatch(FORM, given_id)
    assert (found is not None) == (right is not None and int(right[1], 16) % 2 == 1)


@given(
    st.lists(
        st.sampled_from(["host: a", "content-length: 3", "x: y", " folded", "Traceparent: z"])
    ),
    st.sampled_from([f"00-{TRACE}-{SPAN}-01", "short", f"00-{TRACE.upper()}-{SPAN}-01", ""]),
    st.integers(0, 5),
)
def test_a_head_is_known_whatever_its_trace_id_is(lines: list[str], value: str, at: int) -> None:
    """Only a line of its own of the right form is cut out; all else has to be read anew."""
    with_id = [*lines[:at], f"traceparent: {value}", *lines[at:]]
    whole = "\r\n".join(["POST /a HTTP/1.1", *with_id, "", ""]).encode()
    rest = "\r\n".join(["POST /a HTTP/1.1", *lines, "", ""]).encode()
    found, known = Heads(), Head("POST", b"/a", {})
    found._known[rest] = known
    is_cut = len(value) == 55 and lines[at : at + 1] != [" folded"]
    assert found.find(whole) == ((known, value.encode()) if is_cut else (None, b""))
    assert found.find(rest) == (known, b"")


def test_a_handler_sees_the_trace_id_among_the_headers() -> None:
    """Whether it was cut out of the head or not."""
    found = heads.TracedHeaders({b"host": b"a"}, b"00-1")
    assert dict(found) == {"host": "a", "traceparent": "00-1"}
    assert (found.get("traceparent"), found.get("host"), found.get("x")) == ("00-1", "a", None)
    assert len(found) == 2


def test_a_head_is_kept_without_its_trace_id() -> None:
    """A client that sends another one each time fills nothing."""
    found = Heads()
    for number in range(3):
        value = f"00-{number:032x}-{SPAN}-00".encode()
        data = b"POST /a HTTP/1.1\r\nhost: a\r\ntraceparent: " + value + b"\r\n\r\n"
        found.keep(data, Head("POST", b"/a", {b"host": b"a", heads.TRACE: value}))
        head, trace = found.find(data)
        assert head is not None
        assert (head.raw, trace) == ({b"host": b"a"}, value)
    assert len(found._known) == 1
    assert worker.journal is journal
