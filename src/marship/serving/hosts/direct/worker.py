"""The server beside a host's own worker loop: an event loop on a thread of its own.

The acceptor hands it connections whose next request names this model, and takes back those whose
next request does not. Where no acceptor can be reached, it is tried again.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from marship.errors import MarshipError
from marship.serving.hosts.direct import journal, routes, slots, sockets
from marship.serving.hosts.direct.connection import Connection
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Heads
from marship.serving.hosts.direct.lane import Lane
from marship.serving.hosts.direct.limits import Limits, StatusError, code_of, error_reply
from marship.serving.hosts.direct.methods import check_method, options
from marship.serving.hosts.direct.samples import SampleWriter
from marship.serving.hosts.direct.site import Site, close_idle, close_some, expire, lines_of
from marship.serving.hosts.direct.sockets import Channel, Packet
from marship.serving.hosts.direct.tokens import Tokens
from marship.serving.message import Reply
from marship.serving.service import Service

logger = logging.getLogger(__name__)

RETRY_S = 0.2
SWEEP_S = 0.5
_MOST_TARGETS = 512
_UNKNOWN = routes.Route("unknown")
_GIVE_BACK_WITHIN_S, _GREETS_WITHIN_S = 0.5, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a worker serves directly.

    Attributes:
        acceptor: The acceptor's socket for workers.
        model: The name that clients use.
        version: The version that this worker has.
        batch: The most requests in a batch.
        queue: The most requests that wait.
        key_file: Holds the token; None asks for none.
        limits: Of a client; the largest request is the service's.
        headers: Of every response.
        sampler: Takes samples of requests; None takes none.
    """

    acceptor: Path
    model: str
    version: str
    batch: int
    queue: int
    key_file: Path | None
    limits: Limits = field(default_factory=Limits)
    headers: Mapping[str, str] = field(default_factory=dict)
    sampler: SampleWriter | None = None


def start(service: Service, settings: WorkerSettings) -> "DirectWorker":
    """Serve from now on, until the process ends; returns when the acceptor, if any, was told.

    The engine gives a worker that is ready the requests that have waited, and one of them may end
    it: the acceptor tells of the deaths of workers that it knows.
    """
    service.measure_pace()
    worker = DirectWorker(service, settings)
    threading.Thread(target=worker.run, name="direct", daemon=True).start()
    worker.has_tried.wait(_GREETS_WITHIN_S)
    return worker


class DirectWorker(Site):
    """One model's HTTP server, in the event loop of its thread.

    Args:
        service: The model, loaded.
        settings: Of this server.
    """

    def __init__(self, service: Service, settings: WorkerSettings) -> None:
        self._service, self._settings = service, settings
        # What is ready of a stream behind another one waits in memory: so one waits at most.
        pipelined = 2 if service.streams else settings.limits.pipelined
        self.limits = replace(
            settings.limits, request_bytes=service.max_request_bytes, pipelined=pipelined
        )
        self.heads, self.headers = Heads(), lines_of(settings.headers)
        self._tokens = Tokens(settings.key_file)
        self._journal = journal.told(settings.model, settings.version, settings.sampler)
        self._routes: dict[bytes, routes.Route | None] = {}
        self._connections: set[Connection] = set()
        self._arriving: set[Connection] = set()
        self._is_default, self._versions = False, [settings.version]
        self._is_drained = self._is_leaving = False
        self._channel: Channel | None = None
        self._connected_at = 0.0
        self._adopted = 0  # connections, since the acceptor knows this worker
        self._load_sent: tuple[int, int, int, list[float]] | None = None
        self._states: slots.States | None = None
        self._description = service.description()
        self.has_tried = threading.Event()  # to reach the acceptor

    # The loop.

    def run(self) -> None:
        """Run the event loop until `stop`."""
        try:
            import uvloop

            self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        except ImportError:
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._lane = Lane(
            self._service,
            self._loop,
            most=self._settings.batch,
            queue=self._settings.queue,
            on_stuck=self._end,
            journal=self._journal,
        )
        self._loop.call_soon(self._connect)
        self._loop.call_soon(self._sweep)
        self._loop.run_forever()
        self._loop.close()

    def stop(self) -> None:
        """End the event loop, and with it every connection."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _end(self) -> None:
        """End the process, without its connections: one that is read just then would be lost."""
        self.leave()
        os._exit(1)

    def _connect(self) -> None:
        """Tell the acceptor that this worker is ready."""
        if not self._is_leaving:
            self._greet()
        self.has_tried.set()

    def _greet(self) -> None:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.connect(str(self._settings.acceptor))
        except OSError:
            line.close()
            self._loop.call_later(RETRY_S, self._connect)
            return
        self._channel = Channel(self._loop, line, self._on_packet, self._on_lost)
        self._connected_at = self._loop.time()
        self._is_default, self._adopted, self._load_sent = False, 0, None
        self._is_drained = False  # the acceptor that requested it is gone
        facts = {
            "model": self._settings.model,
            "version": self._settings.version,
            "pid": os.getpid(),
            "connections": len(self._connections | self._arriving),
            "timeout_s": self._service.timeout_s,
            "done": self._service.metrics.load(),
        }
        memory, self._states = slots.make()
        for connection in self._connections | self._arriving:
            connection.writer.leave()  # another acceptor has their other descriptors, or none
        self._channel.send(Packet("hello", facts, [memory, *sockets.held(self._description)]))

    def _on_lost(self) -> None:
        self._channel = None
        if self._loop.time() - self._connected_at > RETRY_S:
            self._connect()  # in this turn: the next one may come only after another long call
        else:
            self._loop.call_later(RETRY_S, self._connect)

    def _on_packet(self, packet: Packet) -> None:
        if packet.kind == "connection":
            self._adopt(packet)
        elif packet.kind == "state":
            self._is_default = bool(packet.facts["default"])
            self._versions = list(packet.facts["versions"])
            self._routes.clear()
            if not self._is_default:
                self._give_back_idle()
        elif packet.kind == "give back":
            self._give_back(int(packet.facts["count"]))
        elif packet.kind == "make room":
            close_some(self._connections, packet.facts["state"], packet.facts["count"])
        elif packet.kind == "drain":
            self._is_drained = True
            self._give_back(len(self._connections))
            self._report()
        elif packet.kind == "resume":
            self._is_drained = False
        elif packet.kind == "finish":
            self.heads.finish()
        elif packet.kind == "ping" and self._channel is not None:
            self._channel.send(Packet("pong"))

    def _adopt(self, packet: Packet) -> None:
        slot, channel = packet.facts.get("slot"), self._channel
        if packet.is_cut:
            self._adopted += 1
            self._refuse(slot)
            return
        connection = Connection(self, packet.payload(), slot, self._states)
        self._arriving.add(connection)
        if self._journal is not None and "at" in packet.facts:
            facts = packet.facts
            self._journal.handed[connection] = (facts.get("came"), facts["at"])
        line = socket.socket(fileno=packet.fds[0])
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, line))

        def look(done: asyncio.Task[Any]) -> None:
            self._arriving.discard(connection)
            if self._channel is channel:
                # not before it is one of the connections: a drain would end without it
                self._adopted += 1
                if self._is_draining:
                    self._report()
            if not done.cancelled() and done.exception() is not None:
                line.close()
                self._refuse(connection.writer.leave())

        task.add_done_callback(look)

    def _refuse(self, slot: int | None) -> None:
        """Let the acceptor answer a client that cannot be served here."""
        if self._channel is not None and slot is not None:
            self._channel.send(Packet("refused", {"slot": slot}))

    def _sweep(self) -> None:
        self._loop.call_later(SWEEP_S, self._sweep)
        expire(self._connections, self._settings.limits)
        if self.heads.is_closing:
            close_idle(self._connections)
        self._report()

    def _report(self) -> None:
        done = self._service.metrics.load()
        facts = (len(self._connections), self._lane.load, self._adopted, done)
        if self._channel is not None and facts != self._load_sent:
            self._load_sent = facts
            names = ("connections", "requests", "adopted", "done")
            self._channel.send(Packet("load", dict(zip(names, facts, strict=True))))

    def _give_back(self, count: int) -> None:
        """Give connections back to the acceptor, those between requests first."""
        chosen = sorted(self._connections, key=lambda connection: not connection.is_idle)
        for connection in chosen[:count]:
            connection.move()

    def _give_back_idle(self) -> None:
        for connection in [each for each in self._connections if each.is_idle]:
            connection.move()

    def leave(self) -> None:
        """Give all connections back, as far as that goes quickly: the process is about to end."""
        done = threading.Event()

        def give() -> None:
            self._is_leaving = True
            if self._channel is not None:
                self._channel.send(Packet("leaving"))
            self._give_back_idle()
            if self._channel is not None:
                self._channel.flush()
            done.set()

        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(give)
            done.wait(_GIVE_BACK_WITHIN_S)

    # What connections ask.

    def opened(self, connection: Connection) -> None:
        """Count it."""
        self._connections.add(connection)
        if self._is_draining:
            connection.move()

    @property
    def _is_draining(self) -> bool:
        return self._is_drained or self._is_leaving

    def closed(self, connection: Connection) -> None:
        """Count it no more, and let the acceptor close it, too."""
        self._connections.discard(connection)
        if self._journal is not None:
            self._journal.handed.pop(connection, None)
        slot = connection.writer.leave()
        if slot is not None and self._channel is not None:
            self._channel.send(Packet("closed", {"slot": slot}))
        if self._is_draining:
            self._report()

    def is_elsewhere(self, target: bytes) -> bool:
        """Whether another process answers: another model, another version, or the server itself."""
        return self._is_draining or self._route(target) is None

    def pass_on(self, connection: Connection, unread: bytes) -> None:
        """Give a connection back to the acceptor; without one, it is closed."""
        transport = connection.transport
        if transport is None:
            return
        if self._channel is None:
            transport.close()
            return
        slot, fd = connection.writer.leave(), None
        try:
            if slot is None:
                fd = os.dup(transport.get_extra_info("socket").fileno())
            packet = Packet.with_connection("back", fd, unread, slot)
        except OSError:  # the file table is full
            if fd is not None:
                os.close(fd)
            packet = Packet("refused", {"slot": slot})
        transport.abort()
        packet.facts = {**packet.facts, "has_answered": connection.writer.has_written}
        self._channel.send(packet)

    def _route(self, target: bytes) -> routes.Route | None:
        """The route of a target, if this worker answers it."""
        found = self._routes.get(target, _UNKNOWN)
        return self._find(target.partition(b"?")[0]) if found is _UNKNOWN else found

    def _find(self, target: bytes) -> routes.Route | None:
        if target in self._routes:
            return self._routes[target]
        route = routes.find(target)
        if route is not None:
            named = route.version or (self._settings.version if self._is_default else None)
            if (route.model, named) != (self._settings.model, self._settings.version):
                route = None
        if len(self._routes) < _MOST_TARGETS:
            self._routes[target] = route
        return route

    def check(self, exchange: Exchange) -> None:
        """Hold a request against its route and the token."""
        route = self._route(exchange.head.path)
        if route is None:  # it became another's while its head was read
            raise StatusError(
                503, "busy", "the model version is being replaced. Retry.", retry_after_s=0
            )
        exchange.route, exchange.is_kserve = route, route.is_kserve
        if route.kind not in routes.OPEN and exchange.head.method != "OPTIONS":
            self._tokens.check(exchange.head.raw.get(b"authorization"))
        check_method(exchange, route)

    def refuse(self, exchange: Exchange, error: MarshipError) -> None:
        """Answer a request that is refused, and count it as the model's other errors."""
        self._service.metrics.add_error(code_of(error))
        refusal = error_reply(error)
        if self._journal is not None:
            self._journal.refused(exchange, refusal)
        exchange.reply(refusal)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request that `check` has accepted."""
        route = exchange.route
        assert route is not None  # noqa: S101  check found it
        if exchange.head.method == "OPTIONS":
            exchange.reply(options(route))
        elif route.kind == routes.PREDICT:
            self._lane.put(exchange)
        elif route.kind == routes.METADATA:
            service, model = self._service, self._settings.model
            exchange.reply(
                routes.metadata(model, self._versions, service.contract, service.own_advice())
            )
        else:
            is_ready = not self.heads.is_closing
            facts = {"name": self._settings.model, "ready": is_ready}
            exchange.reply(Reply(orjson.dumps(facts), status=200 if is_ready else 503))


__all__ = ["DirectWorker", "WorkerSettings", "error_reply", "sockets", "start"]
