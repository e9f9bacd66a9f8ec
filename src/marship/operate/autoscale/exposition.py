"""Metrics of autoscaling at an address of their own: TorchServe shows only what its workers say."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from marship.errors import UsageError
from marship.operate.autoscale import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marship.operate.autoscale.record import ScalingState

_TYPE = "text/plain; version=0.0.4"


class Exposition:
    """An HTTP server on loopback, as long as it is entered.

    Args:
        port: Where it listens; 0 takes a free one.

    Attributes:
        states: What it shows.

    Raises:
        UsageError: The port is taken.
    """

    def __init__(self, port: int) -> None:
        self.states: Sequence[ScalingState] = ()
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        except OSError as error:
            raise UsageError(
                f"metrics_port must be free, got {port}: {error.strerror}. Choose another with "
                "--metrics-port."
            ) from error

    @property
    def url(self) -> str:
        """Where Prometheus reads."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/metrics"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        shown = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/metrics":
                    self.send_error(404)
                    return
                body = record.metrics(shown.states).encode()
                self.send_response(200)
                self.send_header("Content-Type", _TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
                """Nothing: a line for each scrape says nothing."""

        return Handler
