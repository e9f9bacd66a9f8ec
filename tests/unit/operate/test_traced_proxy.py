"""One trace from a client through the proxy and the acceptor to a worker."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector import NAME, SPAN, TRACE, Collector, attributes, below, collecting
from directly import BODY, Place, service, until
from marship.engines.addresses import SPANS_SOCKET
from marship.engines.home import Home
from marship.engines.torchserve import config
from marship.engines.torchserve.proxied import ProxiedSpans
from marship.operate.proxy_settings import ProxySettings
from marship.serving.hosts.direct import traces
from nginx import Door, free_port, in_front

CLIENT = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import marship

kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
url, authority, inputs = sys.argv[1:]
with marship.Client(inference_url=url, inference_token="t", ca=authority) as client:
    client.predict("m", json.loads(inputs))
(own,) = kept.get_finished_spans()
print(f"{own.context.trace_id:032x} {own.context.span_id:016x} {own.start_time} {own.end_time}")
"""
JSON = "application/json"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of spans."""
    with collecting() as made:
        yield made


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of processes that trace what clients want traced."""
    told = {traces.TRACES_VARIABLE: json.dumps({"url": collector.url, "share": 0})}
    monkeypatch.setenv(traces.TRACES_VARIABLE, told[traces.TRACES_VARIABLE])
    return told


@pytest.fixture
def door(tmp_path: Path, traced: dict[str, str]) -> Iterator[Door]:
    """A proxy before the acceptor of a worker."""
    place = Place()
    place.add(service(tmp_path / "model"))
    place.follow(m=("1.0",))
    place.acceptor.spans.share(traced)
    home = Home(tmp_path / "home")
    home.path.mkdir(mode=0o700)
    host, port = place.address
    packaged = config.PACKAGED.read_text()
    home.config.write_text(packaged.replace("127.0.0.1:8079", f"{host}:{port}"))
    told = home.path / SPANS_SOCKET
    place._loop.call_soon_threadsafe(ProxiedSpans, place._loop, told, traced)
    until(told.exists)
    settings = ProxySettings(
        home=home.path,
        out=tmp_path / "proxy",
        listen=f"127.0.0.1:{free_port()}",
        self_signed=True,
        traces=True,
    )
    with in_front(settings, ["m"]) as one:
        one.headers = {"Authorization": "Bearer t", "Content-Type": JSON}
        yield one
    place.close()


def times(span: dict[str, Any]) -> tuple[int, int]:
    """When a span began and ended, in milliseconds: nginx knows no shorter ones."""
    return tuple(int(span[f"{end}TimeUnixNano"]) // 10**6 for end in ("start", "end"))  # type: ignore[return-value]


def test_one_trace_from_the_client_to_the_worker(door: Door, collector: Collector) -> None:
    """Client, proxy, acceptor, worker and its steps, each below the one before and within it."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, door.url, str(door.authority), BODY.decode()],
        capture_output=True, text=True, check=False, env={**os.environ, "MARSHIP_HOME": "none"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trace, client, *of_client = done.stdout.split()
    until(lambda: len(collector.spans()) == 9)
    spans = collector.spans()
    assert {span["traceId"] for span in spans} == {trace}
    (proxy,) = below(spans, {"spanId": client})
    (acceptor,) = below(spans, proxy)
    seat, worker = below(spans, acceptor)
    steps = [span["name"] for span in below(spans, worker)]
    assert steps == ["accept", "queue", "decode", "infer", "encode"]
    assert [span["kind"] for span in (proxy, acceptor, seat, worker)] == [2, 2, 1, 1]
    for span, scheme in ((proxy, "https"), (acceptor, "http")):
        facts = attributes(span)
        assert span["name"] == NAME
        assert facts["http.request.method"] == "POST"
        assert facts["http.response.status_code"] == "200"
        assert facts["http.route"] == "/predictions/{model}"
        assert (facts["url.path"], facts["url.scheme"]) == ("/predictions/m", scheme)
    assert attributes(proxy)["marship.request.id"] == attributes(acceptor)["marship.request.id"]
    began, ended = (int(time_ns) // 10**6 for time_ns in of_client)
    for span in (proxy, acceptor, worker):
        assert times(span)[0] >= began - 1
        assert times(span)[1] <= ended + 1
        began, ended = times(span)


def test_what_the_proxy_refuses_is_its_span_alone(door: Door, collector: Collector) -> None:
    """The query is not told."""
    sampled = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "other=1"}
    assert door.ask("POST", "/nowhere?secret=1", b"{}", **sampled).status == 404
    until(lambda: len(collector.spans()) == 1)
    (span,) = collector.spans()
    assert (span["traceId"], span["parentSpanId"], span["traceState"]) == (TRACE, SPAN, "other=1")
    facts = attributes(span)
    assert (span["name"], facts["error.type"], facts["url.path"]) == ("POST", "404", "/nowhere")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": f"00-{TRACE}-{SPAN}-00"},
        {"traceparent": f"00-{'0' * 32}-{SPAN}-01"},
        {"traceparent": f"00-{TRACE}-{SPAN}-01-more"},
        {"traceparent": "what'ever\\"},
    ],
)
def test_what_is_not_sampled_has_no_span(
    door: Door, collector: Collector, headers: dict[str, str]
) -> None:
    """Nor does anything but a trace id begin one: what is sampled afterwards comes alone."""
    assert door.ask("POST", "/predictions/m", BODY, **headers).status == 200
    sampled = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    assert door.ask("POST", "/predictions/m", BODY, **sampled).status == 200
    until(lambda: sum(span["kind"] == 2 for span in collector.spans()) >= 2)  # proxy, acceptor
    assert len(below(collector.spans(), {"spanId": SPAN})) == 1
    assert {span["traceId"] for span in collector.spans()} == {TRACE}


@pytest.mark.parametrize("gone", ["collector", "socket"])
def test_spans_that_nobody_takes_cost_no_request(
    door: Door, collector: Collector, tmp_path: Path, gone: str
) -> None:
    """They are dropped: a collector that is down, or a server that does not trace."""
    if gone == "collector":
        collector.shutdown()
        collector.server_close()
    else:
        (tmp_path / "home" / SPANS_SOCKET).unlink()
    sampled = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    for _ in range(3):
        assert door.ask("POST", "/predictions/m", BODY, **sampled).status == 200
