"""A collector of OpenTelemetry's spans."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NAME = "POST /predictions/{model}"
"""Of a span of a prediction."""


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP, in JSON."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.received: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def spans(self) -> list[dict[str, Any]]:
        """All that came."""
        return [
            span
            for one in self.received
            for resource in one["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Keep what comes, if it is at the path and of the type of the protocol."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_right = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/json"
        self.server.received.append(json.loads(body))  # type: ignore[attr-defined]
        self.server.keys.append(self.headers["api-key"])  # type: ignore[attr-defined]
        self.send_response(200 if is_right else 415)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs."""
    made = Collector()
    yield made
    made.shutdown()
    made.server_close()


def below(spans: list[dict[str, Any]], above: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans below one, in the order in which they were sent."""
    return [span for span in spans if span.get("parentSpanId") == above["spanId"]]


def attributes(span: dict[str, Any]) -> dict[str, str]:
    """What a span says, as text."""
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}
