"""Spans of clients."""

import subprocess
import sys
from typing import Any

import pytest

from marship.client.clients import _predict
from marship.exchange.calls import Call, HttpResponse

PLAIN = """
import sys
from marship.exchange import tracing
with tracing.span("predict m"):
    assert tracing.headers() == {}
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
TRACED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from marship.exchange import tracing

kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
with trace.get_tracer("app").start_as_current_span("page") as page:
    with tracing.span("predict m"):
        sent = tracing.headers()
(own,) = [span for span in kept.get_finished_spans() if span.name == "predict m"]
_, trace_id, span_id, flags = sent["traceparent"].split("-")
assert int(trace_id, 16) == own.context.trace_id == page.get_span_context().trace_id
assert int(span_id, 16) == own.context.span_id
assert own.parent.span_id == page.get_span_context().span_id
assert int(flags, 16) & 1
assert own.kind is trace.SpanKind.CLIENT
"""


def run(code: str) -> None:
    """Run code in a process of its own: what is imported here does not count."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_program_without_opentelemetry_does_not_get_it() -> None:
    """It is neither imported nor are headers sent."""
    run(PLAIN)


def test_a_prediction_is_a_span_below_the_programs_own() -> None:
    """Its ids are sent as W3C's traceparent."""
    run(TRACED)


def test_predictions_carry_the_headers(monkeypatch: Any) -> None:
    """Those of the span that is current while the call is made."""
    from marship.engines.addresses import Target
    from marship.engines.torchserve.engine import TorchServe
    from marship.exchange import tracing

    monkeypatch.setattr(tracing, "headers", lambda: {"traceparent": "00-a-b-01"})
    urls = {"inference": "http://127.0.0.1:1", "management": None, "metrics": None}
    tokens = {"inference": "t", "management": None}
    engine = TorchServe(Target(None, urls, tokens))
    flow = _predict(engine, "m", [1])
    asked = next(flow)
    assert isinstance(asked, Call)
    assert asked.headers["traceparent"] == "00-a-b-01"
    with pytest.raises(StopIteration) as ended:
        flow.send(HttpResponse(200, {"content-type": "application/json"}, b"[2]"))
    assert ended.value.value == [2]
