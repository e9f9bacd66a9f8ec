"""One address for all models: finds each connection a worker, and hands over the socket.

Only a connection's first request line is looked at. The worker then reads and answers on the
socket itself, request after request, and gives it back where the next one names another model.
What is about no worker (health, unknown models, models without a worker) is answered here.
"""

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from marship import __version__
from marship.errors import MarshipError, NotFoundError
from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.arrivals import Arrivals
from marship.serving.hosts.direct.connection import Connection, Site
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Heads
from marship.serving.hosts.direct.limits import Limits, StatusError, error_reply
from marship.serving.hosts.direct.relay import Relay
from marship.serving.hosts.direct.seats import ModelState, Seat, Seats
from marship.serving.hosts.direct.sockets import Channel, Packet
from marship.serving.hosts.direct.tokens import Tokens
from marship.serving.hosts.direct.worker import check_method, options
from marship.serving.message import Reply

_ACCEPTS_PER_TURN = 64
_FULL_S = 0.1
_SWEEP_S = 0.5
_MOST_TARGETS = 2048


class Acceptor(Site):
    """Accepts connections and passes them on, in an event loop.

    Args:
        loop: The loop.
        key_file: Holds the token; None asks for none.
        limits: Of the requests that are answered here, and of connections.
        engine: Where the engine itself answers predictions: a unix socket's path, or host and port.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        key_file: Path | None,
        limits: Limits,
        engine: str | tuple[str, int] | None = None,
    ) -> None:
        self._engine = engine
        self._relays: set[Relay] = set()
        self._loop, self.limits, self._tokens = loop, limits, Tokens(key_file)
        self.heads = Heads()
        self.seats = Seats()
        self._own: set[Connection] = set()
        self._arrivals = Arrivals(loop, limits, self._place)
        self._channels: set[Channel] = set()
        self._routes: dict[bytes, routes.Route | None] = {}
        loop.call_later(_SWEEP_S, self._sweep)

    def close(self) -> None:
        """End all connections that are held here; workers keep theirs."""
        for channel in list(self._channels):
            channel.close()
        for connection in list(self._own):
            if connection.transport is not None:
                connection.transport.abort()
        for relay in self._relays:
            relay.close()
        self._arrivals.close()

    def follow(self, models: dict[str, ModelState]) -> None:
        """Take the state of all models, as the engine has it now."""
        self.seats.follow(models)

    # Workers.

    def serve_workers(self, listener: socket.socket) -> None:
        """Accept workers at a socket of their own."""
        listener.setblocking(False)

        def accept() -> None:
            with suppress(BlockingIOError):
                line, _ = listener.accept()
                self._add_worker(line)

        self._loop.add_reader(listener.fileno(), accept)

    def _add_worker(self, line: socket.socket) -> None:
        seat: Seat

        def on_packet(packet: Packet) -> None:
            self._on_packet(seat, packet)

        def on_lost() -> None:
            self._channels.discard(seat.channel)
            self.seats.remove(seat)

        seat = Seat(Channel(self._loop, line, on_packet, on_lost))
        self._channels.add(seat.channel)

    def _on_packet(self, seat: Seat, packet: Packet) -> None:
        if packet.kind == "hello":
            seat.model, seat.version = packet.told["model"], packet.told["version"]
            seat.connections = packet.told["connections"]
            self.seats.add(seat)
        elif packet.kind == "load":
            seat.connections, seat.requests = packet.told["connections"], packet.told["requests"]
            seat.adopted = packet.told["adopted"]
        elif packet.kind == "leaving":
            self.seats.remove(seat)
        elif packet.kind == "back" and packet.fds:
            self._take_back(seat, packet)

    def _take_back(self, seat: Seat, packet: Packet) -> None:
        """Find another worker for a connection, by its next request or else by its last model."""
        unread, fd = packet.payload(), packet.fds[0]
        if unread:
            self._place(fd, unread)
        elif another := self.seats.least_busy(seat.model, None):
            another.hand(fd, unread)
        else:
            self._arrivals.add(socket.socket(fileno=fd))

    # Connections.

    def listen(self, listener: socket.socket) -> None:
        """Accept clients at a socket."""
        listener.setblocking(False)
        number = listener.fileno()

        def accept() -> None:
            for _ in range(_ACCEPTS_PER_TURN):
                try:
                    line, _ = listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                        self._loop.remove_reader(number)
                        self._loop.call_later(
                            _FULL_S, lambda: self._loop.add_reader(number, accept)
                        )
                        return
                    continue
                line.setblocking(False)
                if line.family != socket.AF_UNIX:
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.connections >= self.limits.connections:
                    _refuse(line, _too_many(self.limits.connections))
                    continue
                self._arrivals.add(line)

        self._loop.add_reader(number, accept)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self.seats.held + len(self._own) + len(self._arrivals) + len(self._relays)

    def _place(self, fd: int, unread: bytes) -> None:
        """Hand a connection to the worker that its next request names, or answer here."""
        target = _first_target(unread)
        seat = self._seat_for(target)
        if seat is not None:
            seat.hand(fd, unread)
        elif self._engine is not None and self._is_engines(target):
            relay = Relay(self.limits)
            self._relays.add(relay)
            task = self._loop.create_task(relay.run(socket.socket(fileno=fd), self._engine, unread))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        else:
            self._keep(fd, unread)

    def _seat_for(self, target: bytes) -> Seat | None:
        route = self._route(target)
        if route is None or not route.model:
            return None
        return self.seats.least_busy(route.model, route.version)

    def _is_engines(self, target: bytes) -> bool:
        """Whether a model has workers, but none that speaks HTTP."""
        route = self._route(target)
        if self._engine is None or route is None:
            return False
        if route.kind != routes.PREDICT or route.is_kserve:
            return False
        return self.seats.is_engines_alone(route.model, route.version)

    def _keep(self, fd: int, unread: bytes) -> None:
        line = socket.socket(fileno=fd)
        connection = Connection(self, unread)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, line))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self._own):
            connection.expire(now)
        self._arrivals.expire(now)
        self.seats.level()
        for relay in list(self._relays):
            if relay.client.transport is None and relay.engine.transport is None:
                if relay.has_begun:
                    self._relays.discard(relay)
            elif now > relay.deadline:
                relay.close()
        self._loop.call_later(_SWEEP_S, self._sweep)

    # What connections that are answered here ask.

    def opened(self, connection: Connection) -> None:
        """Count it."""
        self._own.add(connection)

    def closed(self, connection: Connection) -> None:
        """Count it no more."""
        self._own.discard(connection)

    def is_elsewhere(self, target: bytes) -> bool:
        """Whether a worker answers, or the engine."""
        return self._seat_for(target) is not None or self._is_engines(target)

    def pass_on(self, connection: Connection, unread: bytes) -> None:
        """Hand a connection on to a worker."""
        if connection.transport is None:
            return
        fd = os.dup(connection.transport.get_extra_info("socket").fileno())
        connection.transport.abort()
        self._place(fd, unread)

    def _route(self, target: bytes) -> routes.Route | None:
        target = target.partition(b"?")[0]
        try:
            return self._routes[target]
        except KeyError:
            route = routes.find(target)
            if len(self._routes) < _MOST_TARGETS:
                self._routes[target] = route
            return route

    def check(self, exchange: Exchange) -> None:
        """Hold a request against its route and the token."""
        route = self._route(exchange.head.path)
        exchange.is_kserve = exchange.head.path.startswith(b"/v2")
        if route is not None and (route.kind in routes.OPEN or exchange.head.method == "OPTIONS"):
            check_method(exchange, route)
            return
        self._tokens.check(exchange.head.raw.get(b"authorization"))
        if route is None:
            raise NotFoundError(
                "a path must be /predictions/MODEL or one of /v2, got "
                f"{_shown(exchange.head.path)}."
            )
        check_method(exchange, route)
        if route.model:
            raise self._no_worker(route)

    def _no_worker(self, route: routes.Route) -> MarshipError:
        named = f"{route.model} version {route.version}" if route.version else route.model
        if not self.seats.is_registered(route.model, route.version):
            return NotFoundError(
                f"{named[:200]} must be registered, got no such model. See: marship models"
            )
        return StatusError(
            503,
            "no_worker",
            f"{named} must have a worker that is ready, got none. Retry, or scale it up.",
            retry_after_s=1,
        )

    def handle(self, exchange: Exchange) -> None:
        """Answer a request that `check` has accepted."""
        route = self._route(exchange.head.path)
        if exchange.head.method == "OPTIONS" or route is None:
            exchange.reply(options(route))
        elif route.kind == routes.SERVER:
            exchange.reply(routes.server(__version__))
        elif route.kind == routes.LIVE:
            exchange.reply(Reply(orjson.dumps({"live": True})))
        elif route.kind == routes.READY:  # a worker would have answered
            told = {"name": route.model, "ready": False}
            exchange.reply(Reply(orjson.dumps(told), status=503))
        else:
            exchange.reply(self._health(route.kind))

    def _health(self, kind: str) -> Reply:
        """Whether every model has the workers that are wanted."""
        is_ready = self.seats.is_complete
        told = {"status": "Healthy" if is_ready else "Unhealthy"}
        if kind == routes.SERVER_READY:
            told = {"ready": is_ready}  # type: ignore[dict-item]
        return Reply(orjson.dumps(told), status=200 if is_ready else 503)


def _first_target(unread: bytes) -> bytes:
    line = unread.lstrip(b"\r\n")
    start = line.find(b" ") + 1
    target = line[start : line.find(b" ", start)]
    if not target.startswith(b"/") and b"://" in target:
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return target


def _shown(path: bytes) -> str:
    return path[:100].decode("latin-1")


def _too_many(most: int) -> StatusError:
    return StatusError(
        503, "busy", f"at most {most} clients may be connected, got more.", retry_after_s=1
    )


def _refuse(line: socket.socket, error: StatusError) -> None:
    """Answer without a parser: what the client sends is not read."""
    reply = error_reply(error)
    head = (
        f"HTTP/1.1 {reply.status} Service Unavailable\r\ncontent-type: {reply.content_type}\r\n"
        f"retry-after: 1\r\ncontent-length: {len(reply.body)}\r\nconnection: close\r\n\r\n"
    )
    with suppress(OSError):
        line.send(head.encode() + reply.body)
    line.close()


def run(  # noqa: PLR0913  keyword-only
    *,
    clients: Sequence[socket.socket],
    workers: socket.socket,
    key_file: Path | None,
    limits: Limits,
    engine: str | tuple[str, int] | None = None,
    on_start: Callable[["Acceptor", asyncio.AbstractEventLoop], None],
) -> None:
    """Accept until the loop is stopped.

    Args:
        clients: Listening sockets for clients.
        workers: The listening socket for workers.
        key_file: Holds the token; None asks for none.
        limits: Of connections and requests.
        engine: Where the engine itself answers predictions.
        on_start: Called once before the loop runs, to follow the engine.
    """
    import uvloop

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    acceptor = Acceptor(loop, key_file, limits, engine)
    acceptor.serve_workers(workers)
    for listener in clients:
        acceptor.listen(listener)
    on_start(acceptor, loop)
    loop.run_forever()  # until somebody stops it
    acceptor.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
