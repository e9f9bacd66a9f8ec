"""Spans of clients."""

import subprocess
import sys

COMMON = """
import sys
from marship.client.clients import _predict
from marship.engines.addresses import Target
from marship.engines.torchserve.engine import TorchServe
from marship.errors import RequestError
from marship.exchange.calls import HttpResponse

def ask(status, body):
    urls = {"inference": "http://127.0.0.1:1", "management": None, "metrics": None}
    engine = TorchServe(Target(None, urls, {"inference": "t", "management": None}))
    flow = _predict(engine, "m", [1])
    call = next(flow)
    try:
        flow.send(HttpResponse(status, {"content-type": "application/json"}, body))
    except StopIteration as ended:
        assert ended.value == [2]
    return call
"""
PLAIN = """
assert "traceparent" not in ask(200, b"[2]").headers
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
TRACED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
with trace.get_tracer("app").start_as_current_span("page") as page:
    sent = ask(200, b"[2]").headers
    try:
        ask(400, b'{"code": "bad_request", "message": "no"}')
    except RequestError:
        pass
own, refused, _ = kept.get_finished_spans()
_, trace_id, span_id, flags = sent["traceparent"].split("-")
assert int(trace_id, 16) == own.context.trace_id == page.get_span_context().trace_id
assert int(span_id, 16) == own.context.span_id
assert own.parent.span_id == page.get_span_context().span_id
assert int(flags, 16) & 1
assert (own.name, own.kind) == ("POST /predictions/{model}", trace.SpanKind.CLIENT)
assert dict(own.attributes) == {
    "http.request.method": "POST", "url.template": "/predictions/{model}",
    "url.full": "http://127.0.0.1:1/predictions/m", "server.address": "127.0.0.1",
    "server.port": 1, "http.response.status_code": 200,
}
assert own.status.is_ok
assert refused.attributes["error.type"] == "bad_request"
assert refused.status.status_code is trace.StatusCode.ERROR
"""


def run(code: str) -> None:
    """Run code in a process of its own: what is imported here does not count."""
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_program_without_opentelemetry_does_not_get_it() -> None:
    """It is neither imported nor are headers sent."""
    run(PLAIN)


def test_a_prediction_is_a_span_below_the_programs_own() -> None:
    """Its ids are sent as W3C's traceparent, and a response that is an error makes it one."""
    run(TRACED)
