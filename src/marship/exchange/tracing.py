"""Spans of clients, by OpenTelemetry's API, where the program that calls uses it.

Whether and where spans are sent is that program's to say (its SDK). One that has not imported
OpenTelemetry pays for a look at a dictionary.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_API = "opentelemetry.trace"


@contextmanager
def span(name: str) -> Iterator[None]:
    """A client's span around what is entered."""
    if _API not in sys.modules:
        yield
        return
    from opentelemetry import trace

    tracer = trace.get_tracer("marship")
    with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT):
        yield


def headers() -> dict[str, str]:
    """The headers that pass the current span on (W3C Trace Context); none without one."""
    found: dict[str, str] = {}
    if _API in sys.modules:
        from opentelemetry import propagate

        propagate.inject(found)
    return found
