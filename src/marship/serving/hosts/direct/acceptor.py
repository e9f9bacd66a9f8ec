"""One address for all models: finds each connection a worker, and hands over the socket.

Only a connection's first request line is looked at. The worker then reads and answers on the
socket itself, request after request, and gives it back where the next one names another model.
What is about no worker (health, unknown models, models without a worker) is answered here.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from marship.errors import MarshipError, NotFoundError
from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.arrivals import Arrivals
from marship.serving.hosts.direct.connection import Connection
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.failures import Failures
from marship.serving.hosts.direct.heads import Heads
from marship.serving.hosts.direct.limits import Limits, error_reply, too_many, unplaced
from marship.serving.hosts.direct.methods import check_method, options
from marship.serving.hosts.direct.relay import check as check_relayed
from marship.serving.hosts.direct.relays import Relays, no_worker
from marship.serving.hosts.direct.request_line import target_of, without_empty_lines
from marship.serving.hosts.direct.roster import Roster
from marship.serving.hosts.direct.seats import ModelState, Seat, Seats
from marship.serving.hosts.direct.server_replies import ServerReplies
from marship.serving.hosts.direct.site import (
    LAST_REQUEST_S,
    Site,
    close_idle,
    close_some,
    expire,
    lines_of,
)
from marship.serving.hosts.direct.slots import IDLE, UNPROVEN
from marship.serving.hosts.direct.sockets import HANDSHAKES_S, accept
from marship.serving.hosts.direct.spans import Spans
from marship.serving.hosts.direct.split import Split
from marship.serving.hosts.direct.tokens import Tokens
from marship.serving.hosts.direct.workers import MOST_RETURNS, Workers, refuse, tell
from marship.serving.message import Reply

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_PAGES: Mapping[bytes, Reply] = MappingProxyType({})
_SWEEP_S = 0.5
_MOST_TARGETS = 2048
_ROOM_SHARE = 64
"""Of the connections one in so many is closed at once: each time all are looked through."""


class Acceptor(Site):
    """Accepts connections and passes them on, in an event loop.

    Args:
        loop: The loop.
        key_file: Holds the token; None asks for none.
        limits: Of the requests that are answered here, and of connections.
        engine: Where the engine itself answers predictions: a unix socket's path, or host and port.
        headers: Of every response.
        is_restart: Whether another acceptor served here before; the server is alive, then.
        roster: A file for the workers that are here; the next acceptor reads it.
        pages: Files that a browser gets without a token, by their paths.

    Attributes:
        failures: Errors that clients get from here.
        spans: Of traced requests that are answered here, or passed on.
    """

    def __init__(  # noqa: PLR0913  keyword-only
        self,
        loop: asyncio.AbstractEventLoop,
        key_file: Path | None,
        limits: Limits,
        *,
        engine: str | tuple[str, int] | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        is_restart: bool = False,
        roster: Path | None = None,
        pages: Mapping[bytes, Reply] = _NO_PAGES,
    ) -> None:
        self._loop, self.limits, self._tokens = loop, limits, Tokens(key_file)
        self.heads, self.headers = Heads(), lines_of(headers)
        self.seats = Seats()
        self.failures, self.spans = Failures(self.seats), Spans(self.seats)
        self._relays = Relays(loop, limits, self.seats, engine, self.failures)
        self._split = Split(loop, limits, self.seats, self._place, self.failures)
        has_tokens = key_file is not None
        self._replies = ServerReplies(
            self.seats, pages, has_tokens=has_tokens, is_restart=is_restart
        )
        self._own: set[Connection] = set()
        self._stops: list[Callable[[], None]] = []
        self._ends_at = 0.0  # by the loop's clock: when the last of them may still connect
        self._arrivals = Arrivals(loop, limits, self._place)
        self._workers = Workers(
            loop,
            self.seats,
            self._place,
            self._arrivals.add,
            self.headers,
            Roster(roster, time.monotonic()),
            self.failures,
        )
        self._routes: dict[bytes, routes.Route | None] = {}
        loop.call_later(_SWEEP_S, self._sweep)

    def close(self) -> None:
        """End all connections that are held here; workers keep theirs."""
        self._workers.close()
        for connection in list(self._own):
            if connection.transport is not None:
                connection.transport.abort()
        self._relays.close()
        self._split.close()
        self._arrivals.close()

    def follow(self, models: dict[str, ModelState]) -> None:
        """Take the state of all models, as the engine has it now."""
        self.seats.follow(models)
        self._relays.look()

    def serve_workers(self, listener: socket.socket) -> None:
        """Accept workers at a socket of their own."""
        self._workers.listen(listener)

    # Connections.

    def listen(self, listener: socket.socket) -> None:
        """Accept clients at a socket."""
        self._stops.append(accept(self._loop, listener, self._accepted))

    def finish(self) -> None:
        """Take no new clients, and let those that are here finish what they have sent.

        Each response is its connection's last, and connections without a request are closed.
        """
        self.heads.finish()
        self._ends_at = self._loop.time() + 2 * HANDSHAKES_S
        for stop in self._stops:
            stop()
        self._workers.finish()
        self._arrivals.finish(LAST_REQUEST_S)

    def _accepted(self, line: socket.socket) -> None:
        line.setblocking(False)
        if line.family != socket.AF_UNIX:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._is_full():
            error = too_many(self.limits.connections)
            refuse(line, error, self.headers)
            self.failures.add_error("", None, error)
        else:
            self._arrivals.add(line)

    def _is_full(self) -> bool:
        """Whether no more clients may connect; one that nothing is done for makes room.

        First those that have sent nothing, then those of whose request nobody knows yet that it
        may be sent, then those between two. Workers close theirs a moment later.
        """
        limit = self.limits.connections
        if self.connections - self.seats.closing < limit or self._arrivals.close_oldest():
            return False
        most = max(1, limit // _ROOM_SHARE)
        for state in (UNPROVEN, IDLE):
            closed = close_some(self._own, state, most)
            self._own.difference_update(closed)  # at once: the loop tells of them a turn later
            if closed or self.seats.make_room(state, most):
                return False
        return True

    @property
    def is_finished(self) -> bool:
        """After `finish`: whether all clients have what they asked for, and none can come."""
        return not self.connections and self._loop.time() > self._ends_at

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self.seats.held + len(self._own) + len(self._arrivals)

    def _place(self, fd: int, unread: bytes, returns: int = 0, came_s: float | None = None) -> None:
        """Hand a connection to the worker that its next request names, or answer here."""
        seat = self._seat_for(target_of(without_empty_lines(unread)))
        if seat is None:
            self._keep(fd, unread)
        elif returns > MOST_RETURNS:
            tell(self._loop, fd, unplaced(), self.headers)
            self.failures.add_error(seat.model, seat.version, unplaced())
        else:
            with suppress(OSError):  # too many files are open: it is closed
                seat.hand(fd, unread, returns, came_s)

    def _seat_for(self, target: bytes) -> Seat | None:
        route = self._route(target)
        if route is None or not route.model:
            return None
        return self.seats.least_busy(route.model, route.version)

    def _keep(self, fd: int, unread: bytes) -> None:
        line = socket.socket(fileno=fd)
        connection = Connection(self, unread)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, line))

        def look(done: asyncio.Task[Any]) -> None:
            if not done.cancelled() and done.exception() is not None:
                line.close()

        task.add_done_callback(look)

    def _sweep(self) -> None:
        self._loop.call_later(_SWEEP_S, self._sweep)
        expire(self._own, self.limits)
        if self.heads.is_closing:
            close_idle(self._own)
        self._arrivals.expire(time.monotonic())
        self._workers.watch(time.monotonic())
        self.seats.trials.expire(time.monotonic())
        self._split.expire()
        self.seats.level()

    # What connections that are answered here ask.

    def opened(self, connection: Connection) -> None:
        """Count it."""
        self._own.add(connection)

    def closed(self, connection: Connection) -> None:
        """Count it no more."""
        self._own.discard(connection)

    def is_elsewhere(self, target: bytes) -> bool:
        """Whether a worker answers."""
        return self._seat_for(target) is not None

    def pass_on(self, connection: Connection, unread: bytes) -> None:
        """Hand a connection on to a worker."""
        if connection.transport is None:
            return
        try:
            fd = os.dup(connection.transport.get_extra_info("socket").fileno())
        except OSError:  # too many files are open
            connection.abandon()
            return
        connection.transport.abort()
        self._place(fd, unread, 0, time.perf_counter())

    def _route(self, target: bytes) -> routes.Route | None:
        target = target.partition(b"?")[0]
        try:
            return self._routes[target]
        except KeyError:
            route = routes.find(target) or self._replies.route(target)
            if len(self._routes) < _MOST_TARGETS:
                self._routes[target] = route
            return route

    def check(self, exchange: Exchange) -> None:
        """Hold a request against its route and the token."""
        route = self._route(exchange.head.path)
        exchange.is_kserve = exchange.head.path.startswith((b"/v1", b"/v2"))
        exchange.route = route
        self.spans.begin(exchange)
        if route is not None and (route.kind in routes.OPEN or exchange.head.method == "OPTIONS"):
            check_method(exchange, route)
            return
        self._tokens.check(exchange.head.raw.get(b"authorization"))
        if route is None:
            raise NotFoundError(
                "a path must be /predictions/MODEL, /openapi.json or one of /v1 or /v2, got "
                f"{_shown(exchange.head.path)}."
            )
        check_method(exchange, route)
        if self._split.takes(route):
            return
        if route.kind == routes.PREDICT and self._relays.takes(route):
            check_relayed(exchange.head)
        elif route.model:
            raise no_worker(self.seats, route)

    def refuse(self, exchange: Exchange, error: MarshipError) -> None:
        """Answer a request that is refused, and count it as workers count theirs."""
        route, reply = self._route(exchange.head.path), error_reply(error)
        model, version = (route.model, route.version) if route is not None else ("", None)
        self.failures.add(model, version, reply, exchange)
        exchange.reply(reply)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request that `check` has accepted."""
        route = self._route(exchange.head.path)
        if exchange.head.method == "OPTIONS" or route is None:
            exchange.reply(options(route))
        elif self._split.takes(route):
            self._split.answer(exchange, route)
        elif route.kind == routes.PREDICT:
            self._relays.pass_on(exchange, route)
        elif route.kind == routes.READY:  # no worker here has answered
            is_ready = self._relays.takes(route) and self.seats.is_staffed(
                route.model, route.version
            )
            facts = {"name": route.model, "ready": is_ready}
            exchange.reply(Reply(orjson.dumps(facts), status=200 if is_ready else 503))
        else:
            is_closing = self.heads.is_closing
            exchange.reply(self._replies.reply(route.kind, exchange.head, is_closing=is_closing))


def _shown(path: bytes) -> str:
    return path[:100].decode("latin-1")


def run(  # noqa: PLR0913  keyword-only
    *,
    clients: Sequence[socket.socket],
    workers: socket.socket,
    key_file: Path | None,
    limits: Limits,
    engine: str | tuple[str, int] | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
    is_restart: bool = False,
    roster: Path | None = None,
    pages: Mapping[bytes, Reply] = _NO_PAGES,
    on_start: Callable[["Acceptor", asyncio.AbstractEventLoop], None],
) -> None:
    """Accept until the loop is stopped.

    Args:
        clients: Listening sockets for clients.
        workers: The listening socket for workers.
        key_file: Holds the token; None asks for none.
        limits: Of connections and requests.
        engine: Where the engine itself answers predictions.
        headers: Of every response.
        is_restart: Whether another acceptor served here before.
        roster: A file for the workers that are here.
        pages: Files that a browser gets without a token.
        on_start: Called once before the loop runs, to follow the engine.
    """
    import uvloop

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    acceptor = Acceptor(
        loop,
        key_file,
        limits,
        engine=engine,
        headers=headers,
        is_restart=is_restart,
        roster=roster,
        pages=pages,
    )
    acceptor.serve_workers(workers)
    for listener in clients:
        acceptor.listen(listener)
    on_start(acceptor, loop)
    loop.run_forever()  # until somebody stops it
    loop.remove_reader(workers.fileno())  # they connect again at once, to the next acceptor
    acceptor.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
