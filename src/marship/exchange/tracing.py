"""Spans of clients, by OpenTelemetry's API, where the program that calls uses it.

Whether and where spans are sent is that program's to say (its SDK). One that has not imported
OpenTelemetry pays for a look at a dictionary. Names are those of OpenTelemetry's semantic
conventions for HTTP, 1.38, client.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

from marship.errors import MarshipError
from marship.exchange.calls import Call, Flow, HttpResponse

_API = "opentelemetry.trace"


def traced(
    ask: Callable[[Call], Flow[HttpResponse]],
    call: Call,
    url_of: Callable[[Call], str],
    template: str,
) -> Flow[HttpResponse]:
    """Make a call within a client's span, whose ids it carries (W3C Trace Context).

    Args:
        ask: Makes it, with all that is tried again.
        call: What is asked.
        url_of: Where it goes.
        template: Its path, with placeholders for names.

    Raises:
        MarshipError: As `ask` does.
    """
    if _API not in sys.modules:
        return (yield from ask(call))
    from opentelemetry import trace

    facts: dict[str, str | int] = {
        "http.request.method": call.method,
        "url.template": template,
    }
    with suppress(MarshipError):  # `ask` has its own words for what is wrong with the address
        facts |= _place(url_of(call))
    with trace.get_tracer("marship").start_as_current_span(
        f"{call.method} {template}", kind=trace.SpanKind.CLIENT, attributes=facts
    ) as own:
        try:
            response = yield from ask(replace(call, headers={**call.headers, **headers()}))
        except MarshipError as error:
            own.set_attribute("error.type", error.code)
            raise
        own.set_attribute("http.response.status_code", response.status)
        return response


def _place(url: str) -> dict[str, str | int]:
    """Where a call goes; addresses have no passwords in them."""
    parts = urlsplit(url)
    if parts.hostname is None:  # a unix socket
        return {"url.full": url}
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"url.full": url, "server.address": parts.hostname, "server.port": port}


def headers() -> dict[str, str]:
    """The headers that pass the current span on; none without one."""
    from opentelemetry import propagate

    found: dict[str, str] = {}
    propagate.inject(found)
    return found
