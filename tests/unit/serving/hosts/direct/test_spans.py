"""Spans of requests that an acceptor answers itself, or passes on."""

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from collector import NAME, SPAN, TRACE, Collector, attributes, below
from directly import JSON, Place, request, service, until
from marship.serving.hosts.direct import traces
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.seats import ModelState
from marship.serving.hosts.direct.trial import TrialOrder

SAMPLED = {**JSON, "traceparent": f"00-{TRACE}-{SPAN}-01"}
NOT_SAMPLED = {**JSON, "traceparent": f"00-{TRACE}-{SPAN}-00"}
SHADOW = TrialOrder(owner="me", model="m", default="1.0", version="2.0", share=1.0, gives_new=False)


class Echo(BaseHTTPRequestHandler):
    """An engine that answers with the trace id that it got."""

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        body = self.headers.get("traceparent", "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of processes that trace what clients want traced."""
    told = {traces.TRACES_VARIABLE: json.dumps({"url": collector.url, "share": 0})}
    monkeypatch.setenv(*told.popitem())
    return {traces.TRACES_VARIABLE: json.dumps({"url": collector.url, "share": 0})}


@pytest.fixture
def place(traced: dict[str, str]) -> Iterator[Place]:
    """An acceptor before an engine, without workers."""
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=engine.serve_forever, daemon=True).start()
    made = Place(limits=Limits(relayed_s=5), engine=engine.server_address)  # type: ignore[arg-type]
    made.acceptor.spans.share(traced)
    yield made
    made.close()
    engine.shutdown()
    engine.server_close()


def test_what_the_engine_answers_is_below_the_acceptors_span(
    place: Place, collector: Collector
) -> None:
    """The engine gets its id, also where the head was known; without a sample, the client's own."""
    with place.line() as line:
        seen = []
        for headers in (SAMPLED, SAMPLED, NOT_SAMPLED, JSON):
            line.send(request("/predictions/m/1.0", headers=headers))
            seen.append(line.read().body.decode())
    assert seen[2:] == [NOT_SAMPLED["traceparent"], ""]
    until(lambda: len(collector.spans()) == 2)
    spans = collector.spans()
    assert seen[:2] == [f"00-{TRACE}-{span['spanId']}-01" for span in spans]
    for span in spans:
        assert (span["traceId"], span["parentSpanId"], span["kind"]) == (TRACE, SPAN, 2)
        assert span["name"] == f"{NAME}/{{version}}"
        assert span["status"] == {}
        facts = attributes(span)
        assert facts["http.response.status_code"] == "200"
        assert facts["marship.model.version"] == "1.0"


def test_what_is_refused_without_a_worker_is_a_span(place: Place, collector: Collector) -> None:
    """An unknown path, and a model that has no workers and shall have none."""
    closed_model = {"m": ModelState("1.0", ("1.0",), {"1.0": 0})}
    place._loop.call_soon_threadsafe(place.acceptor.follow, closed_model)
    assert place.ask("/nowhere", headers=SAMPLED).status == 404
    place.acceptor._relays._engine = None
    assert place.ask("/predictions/m", headers=SAMPLED).status == 503
    assert place.ask("/predictions/m", headers=NOT_SAMPLED).status == 503
    until(lambda: len(collector.spans()) == 2)
    unknown, closed = collector.spans()
    assert (unknown["name"], closed["name"]) == ("POST", NAME)
    assert attributes(unknown)["error.type"] == "not_found"
    assert attributes(closed)["error.type"] == "scaled_to_zero"
    assert (unknown["status"], closed["status"]) == ({}, {"code": 2})


def test_both_versions_of_a_trial_are_below_one_span(
    folder: Path, traced: dict[str, str], collector: Collector
) -> None:
    """The acceptor's, which splits the request; each worker's is below it, once."""
    place = Place()
    place.acceptor.spans.share(traced)
    try:
        for version in ("1.0", "2.0"):
            place.add(service(folder, "m", version), version=version)
        place.follow(m=("1.0", "2.0"))
        place._loop.call_soon_threadsafe(
            place.acceptor.seats.trials.renew, SHADOW, time.monotonic(), ("1.0", "2.0")
        )
        until(lambda: place.acceptor.seats.trials.of("m") is not None)
        assert place.ask(headers=SAMPLED).status == 200
        until(lambda: sum(span["kind"] == 2 for span in collector.spans()) == 3)
    finally:
        place.close()
    spans = collector.spans()
    (whole,) = [span for span in spans if span.get("parentSpanId") == SPAN]
    both = below(spans, whole)
    assert [span["kind"] for span in both] == [2, 2]
    for one in both:
        steps = [span["name"] for span in below(spans, one)]
        assert steps == ["accept", "queue", "decode", "infer", "encode"]


def test_an_acceptor_that_is_not_told_to_trace_makes_no_spans(
    place: Place, collector: Collector
) -> None:
    """What a client sends is passed on as it is."""
    place.acceptor.spans.share({})
    assert place.ask(headers=SAMPLED).body.decode() == SAMPLED["traceparent"]
    assert collector.spans() == []
