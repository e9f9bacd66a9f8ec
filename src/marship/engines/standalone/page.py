"""The server of the page for Prometheus, within the limits that clients of models have."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace

from marship.errors import NotFoundError
from marship.serving.hosts.direct.connection import Connection
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Heads
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.site import Site, expire
from marship.serving.message import Reply

PATH = b"/metrics"
_CONNECTIONS, _SWEEP_S = 32, 0.5


class FiguresPage(Site):
    """Answers GET /metrics.

    Args:
        loop: The event loop.
        listener: Where clients connect.
        render: The page.
        content_type: Its type.
    """

    headers = b""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        render: Callable[[], bytes],
        content_type: str,
    ) -> None:
        self._loop, self._render, self._content_type = loop, render, content_type
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
        exchange.reply(Reply(self._render(), self._content_type))
