"""The server of the page for Prometheus, within the limits that clients of models have."""

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from marship.engines.figures.families import CONTENT_TYPE
from marship.errors import NotFoundError
from marship.serving.hosts.direct.connection import Connection
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Heads
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.site import Site, expire
from marship.serving.message import Reply

logger = logging.getLogger(__name__)

PATH = b"/metrics"
_CONNECTIONS, _SWEEP_S = 32, 0.5


class FiguresPage(Site):
    """Answers GET /metrics.

    Args:
        loop: The event loop.
        listener: Where clients connect.
        prepare: Looks at what belongs to the loop, and returns what makes the page of it on a
            thread: a page of many models takes longer than clients should wait.
    """

    headers = b""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        prepare: Callable[[], Callable[[], bytes]],
    ) -> None:
        self._loop, self._prepare = loop, prepare
        self._thread = ThreadPoolExecutor(1, "figures")
        self.limits, self.heads = replace(Limits(), request_bytes=0), Heads()
        self._connections: set[Connection] = set()
        self._task = loop.create_task(loop.create_server(lambda: Connection(self), sock=listener))
        loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._loop.call_later(_SWEEP_S, self._sweep)
        expire(self._connections, self.limits)

    def opened(self, connection: Connection) -> None:
        """Count it, and close it where there are too many."""
        self._connections.add(connection)
        if len(self._connections) > _CONNECTIONS:
            connection.abandon()

    def closed(self, connection: Connection) -> None:
        """Count it no more."""
        self._connections.discard(connection)

    def is_elsewhere(self, _target: bytes) -> bool:
        """All is answered here."""
        return False

    def pass_on(self, connection: Connection, _unread: bytes) -> None:
        """Nobody else is there."""
        connection.abandon()

    def check(self, exchange: Exchange) -> None:
        """Refuse all but the page."""
        if exchange.head.path != PATH or exchange.head.method not in ("GET", "HEAD"):
            raise NotFoundError("the request must be GET /metrics, got another one.")

    def handle(self, exchange: Exchange) -> None:
        """Send the page."""

        def send(made: "Future[bytes]") -> None:
            if exchange.is_abandoned:
                return
            if (error := made.exception()) is not None:
                logger.error("the page of metrics must be made.", exc_info=error)
                exchange.reply(Reply(b"", CONTENT_TYPE, 500))
            else:
                exchange.reply(Reply(made.result(), CONTENT_TYPE))

        def done(made: "Future[bytes]") -> None:
            self._loop.call_soon_threadsafe(send, made)

        self._thread.submit(self._prepare()).add_done_callback(done)
