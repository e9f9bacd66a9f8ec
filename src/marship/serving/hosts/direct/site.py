"""What a server does with the requests of its connections: the acceptor and the workers do."""

import heapq
import logging
import time
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

from marship.errors import MarshipError
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Heads
from marship.serving.hosts.direct.limits import Limits, error_reply
from marship.serving.hosts.direct.slots import IDLE, UNPROVEN
from marship.serving.model.heap import release_freed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from marship.serving.hosts.direct.connection import Connection

logger = logging.getLogger(__name__)

LAST_REQUEST_S = 1.0
"""How long a connection without a request stays open once the server finishes."""
_YOUNG_S = 0.25
_PAUSE_S = 2  # who reads steadily is silent for less
_STOPPED_S = 5  # who has taken nothing for so long has stopped
"""A head that has begun to come within it may come in several pieces."""


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


def close_some(connections: "Iterable[Connection]", state: int, most: int) -> "list[Connection]":
    """Close connections that nothing is done for, as many as are in a state; returns them.

    First those whose client has begun a request and does not go on, then those between requests,
    then those whose client has begun one just now; of each those that have waited longest.

    Args:
        connections: Those there are.
        state: IDLE or UNPROVEN.
        most: How many to close at most.
    """
    found = [
        each
        for each in connections
        if (each.writer.state == IDLE and each.is_idle and each.due.is_idle)
        or (each.writer.state == UNPROVEN and each.due.is_unproven)
        if each.transport is not None
        if not each.writer.buffered  # else its client would miss the end of a response
    ]
    count = min(most, sum(each.writer.state == state for each in found))
    now = time.monotonic()

    def rank(each: "Connection") -> tuple[int, float]:
        is_young = now - each.due.began < _YOUNG_S
        return (1 if each.writer.state == IDLE else 2 if is_young else 0, each.due.began)

    closed = heapq.nsmallest(count, found, key=rank)
    for each in closed:
        each.abandon()
    return closed


def close_idle(connections: "Iterable[Connection]") -> None:
    """Close what has been between two requests for a while: the server ends.

    A client that has just had its response may be sending its next request.
    """
    since = time.monotonic() - LAST_REQUEST_S
    for each in list(connections):
        if each.is_idle and each.due.is_idle and each.due.began < since and each.transport:
            each.transport.close()


def lines_of(headers: "Mapping[str, str]") -> bytes:
    """Headers as every response has them."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def expire(connections: "Iterable[Connection]", limits: Limits) -> None:
    """End what takes longer than its limits, each connection for itself, and what is too much."""
    now = time.monotonic()
    connections = list(connections)
    _drop_unread(connections, limits.unsent_bytes, now)
    for connection in connections:
        try:
            connection.expire(now)
        except Exception:
            logger.exception("a connection must end in time, got an error; it is closed.")
            connection.abandon()


def _drop_unread(connections: "Iterable[Connection]", most_bytes: int, now: float) -> None:
    """Close clients that read nothing where the responses that wait for them take too much memory.

    What waits for its turn behind a slow stream counts, too.
    First those that have taken nothing for five seconds, and of them those for which most waits;
    then those that have taken nothing for longest. Who reads steadily takes megabytes at once, as
    the kernel's buffers empty, and nothing in between: who has taken something within two seconds
    is closed only where twice as much waits.
    """
    unread = []
    for each in connections:
        stalled_s = each.writer.stalled_s(now, waits=each.unsent > 0)
        if each.unsent:
            stopped_s = min(stalled_s, _STOPPED_S) if stalled_s > _PAUSE_S else 0.0
            unread.append((-stopped_s, -each.unsent, each))
    waiting = -sum(waits for _, waits, _ in unread)
    if waiting <= most_bytes:
        return
    for stopped, waits, each in sorted(unread, key=itemgetter(0, 1)):
        if waiting <= (most_bytes if stopped else 2 * most_bytes):
            break
        waiting += waits
        each.abandon()
    release_freed()  # else the allocator keeps it all
