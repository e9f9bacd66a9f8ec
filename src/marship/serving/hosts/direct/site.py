"""What a server does with the requests of its connections: the acceptor and the workers do."""

import logging
import time
from typing import TYPE_CHECKING, Protocol

from marship.errors import MarshipError
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Heads
from marship.serving.hosts.direct.limits import Limits, error_reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from marship.serving.hosts.direct.connection import Connection

logger = logging.getLogger(__name__)


class Site(Protocol):
    """What a server does with the requests of its connections.

    Attributes:
        limits: Of a client.
        heads: Those that its connections have read.
        headers: Lines of every response.
    """

    limits: Limits
    heads: Heads
    headers: bytes

    def opened(self, connection: "Connection") -> None:
        """A connection is there."""

    def closed(self, connection: "Connection") -> None:
        """It is gone."""

    def is_elsewhere(self, target: bytes) -> bool:
        """Whether another process answers requests of this target."""

    def pass_on(self, connection: "Connection", unread: bytes) -> None:
        """Give the connection to the process that answers what was not read."""

    def check(self, exchange: Exchange) -> None:
        """Look at a request before its body.

        Raises:
            MarshipError: It is refused.
        """

    def handle(self, exchange: Exchange) -> None:
        """Answer a request."""

    def refuse(self, exchange: Exchange, error: MarshipError) -> None:
        """Answer a request that `check` or its connection has refused."""
        exchange.reply(error_reply(error))


def close_longest_idle(connections: "Iterable[Connection]") -> bool:
    """Close the connection that has waited longest for a request; whether there was one."""
    idle = [
        each
        for each in connections
        if each.is_idle and each.due.is_idle and each.transport is not None
        if not each.writer.buffered  # else its client would miss the end of a response
    ]
    if not idle:
        return False
    min(idle, key=lambda each: each.due.at).abandon()
    return True


def lines_of(headers: "Mapping[str, str]") -> bytes:
    """Headers as every response has them."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def expire(connections: "Iterable[Connection]") -> None:
    """End what takes longer than its limits, each connection for itself."""
    now = time.monotonic()
    for connection in list(connections):
        try:
            connection.expire(now)
        except Exception:
            logger.exception("a connection must end in time, got an error; it is closed.")
            connection.abandon()
