"""Workers at the acceptor: they say hello, give connections back, and die."""

import asyncio
import logging
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from marship.serving.hosts.direct import sockets
from marship.serving.hosts.direct.death import Death, exit_code
from marship.serving.hosts.direct.failures import Failures
from marship.serving.hosts.direct.limits import StatusError, error_reply, too_late, worker_died
from marship.serving.hosts.direct.roster import Roster
from marship.serving.hosts.direct.seats import Seat, Seats
from marship.serving.hosts.direct.slots import (
    BEGUN,
    HANDED,
    IDLE,
    LATE,
    UNPROVEN,
    Held,
    Slots,
)
from marship.serving.hosts.direct.sockets import Channel, Packet, accept
from marship.serving.openapi.description import MOST_BYTES

logger = logging.getLogger(__name__)

_ENDS_WITHIN_S, _LOOK_S = 2.0, 0.005
_SILENT_S, _AWAY_S = 2.0, 2.0
"""Beyond a request's time until a worker is ended; without a look at them, which does not count."""
_DROPS_S, _DROPPED_BYTES = 2.0, 1 << 16
MOST_RETURNS = 20
"""Times that workers may give a connection back before its client gets an error, or must resend."""


class Workers:
    """All workers' channels.

    Args:
        loop: The event loop.
        seats: Where workers are entered.
        place: Takes a connection's descriptor, and what was read of it, to whom it belongs; it is
            given the number of times workers have given it back without a response, and when it
            came here.
        await_request: Takes a connection that is between requests.
        headers: Lines of every response.
        roster: Workers of an acceptor before this one.
        failures: Gets each error that a client gets.
    """

    def __init__(  # noqa: PLR0913, PLR0917  each is another part of the acceptor
        self,
        loop: asyncio.AbstractEventLoop,
        seats: Seats,
        place: Callable[[int, bytes, int, float | None], None],
        await_request: Callable[[socket.socket], None],
        headers: bytes,
        roster: Roster,
        failures: Failures,
    ) -> None:
        self._loop, self._seats, self._headers = loop, seats, headers
        self._failures = failures
        self._place, self._await_request = place, await_request
        self._all: set[Seat] = set()
        self._roster, self._watched_at = roster, time.monotonic()
        self._drained: set[Seat] = set()
        self._is_finishing = False

    def close(self) -> None:
        """End all channels; workers keep their connections."""
        self._roster.close()
        for seat in list(self._all):
            seat.channel.close()

    def finish(self) -> None:
        """Let workers answer what each connection has, or may just be sending, and close it."""
        self._is_finishing = True
        for seat in list(self._all):
            seat.channel.send(Packet("finish"))

    def listen(self, listener: socket.socket) -> None:
        """Accept workers at a socket of their own."""
        accept(self._loop, listener, self._add_worker)

    def _add_worker(self, line: socket.socket) -> None:
        seat: Seat

        def on_packet(packet: Packet) -> None:
            self._on_packet(seat, packet)

        def on_lost() -> None:
            seat.is_gone = True
            self._roster.leave(seat.pid)
            self._drained.discard(seat)
            self._all.discard(seat)
            self._seats.remove(seat)
            self._release(seat)
            self._resume_drained(seat)

        seat = Seat(Channel(self._loop, line, on_packet, on_lost))
        self._all.add(seat)

    def watch(self, now: float) -> None:
        """End workers that are silent for longer than a request may take.

        A worker ends itself where a request takes too long, but not where native code keeps
        Python's lock, or where the process is stopped: then it does not even note that a request
        has come. So whoever has connections is asked; one without any is the engine's to watch.

        Args:
            now: By the monotonic clock.
        """
        missed_s = now - self._watched_at
        self._watched_at = now
        away_s = missed_s if missed_s > _AWAY_S else 0.0  # this process was stopped; they, too
        for seat in list(self._all):  # a send may find one gone
            if seat.timeout_s is None or seat.slots is None:
                continue
            seat.heard_at += away_s
            if not (len(seat.slots) or seat.connections):  # also those of an acceptor before
                seat.heard_at = now
                continue
            if now - seat.heard_at > seat.timeout_s + _SILENT_S and not seat.is_stuck:
                seat.is_stuck = True
                logger.error(
                    "worker %d of %s must respond within its timeout, %g s, and was silent for "
                    "longer. It is ended.", seat.pid, seat.model, seat.timeout_s,
                )  # fmt: skip
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(seat.slots.process, signal.SIGKILL)
            seat.channel.send(Packet("ping"))
        for pid, process in self._roster.overdue(now, _SILENT_S, away_s):
            logger.error("worker %d must connect again, and was silent. It is ended.", pid)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)

    def _on_packet(self, seat: Seat, packet: Packet) -> None:
        seat.heard_at = self._watched_at
        if packet.kind == "hello":
            self._greet(seat, packet)
        elif packet.kind == "load":
            seat.closing = 0
            seat.connections, seat.requests = packet.facts["connections"], packet.facts["requests"]
            seat.adopted = packet.facts.get("adopted", seat.handed)
            self._seats.did(seat, packet.facts.get("done", []))
            if seat.slots is not None and seat.adopted == seat.handed:
                seat.slots.forget_unread()
        elif packet.kind == "leaving":
            seat.is_leaving = True
            self._seats.remove(seat)
        elif packet.kind in {"drain", "ask load", "try", "ask trials"}:
            self._serve_caller(seat, packet)
        elif packet.kind == "closed" and seat.slots is not None:
            _end(seat.slots.take(packet.facts["slot"]).fd)
            seat.closing = max(0, seat.closing - 1)
        elif packet.kind == "refused" or (packet.kind == "back" and packet.is_cut):
            self._refuse(seat, packet.facts["slot"])
        elif packet.kind == "back":
            self._take_back(seat, packet)

    def _greet(self, seat: Seat, packet: Packet) -> None:
        """A worker is ready."""
        seat.model, seat.version = packet.facts["model"], packet.facts["version"]
        seat.connections = packet.facts["connections"]
        seat.pid = packet.facts["pid"]
        seat.timeout_s = packet.facts.get("timeout_s")
        seat.done = packet.facts.get("done", [])
        if packet.fds:
            try:
                seat.slots = Slots(packet.fds[0], seat.pid)
            except ProcessLookupError:  # by a request of the engine's, which waited for a worker
                self._seats.on_death(Death(seat.pid, seat.model, seat.version, None, False, {}))
            except OSError:
                pass  # too many files are open
        if packet.fds[1:]:  # a worker of an earlier archive says nothing of its model
            seat.description = sockets.read_held(packet.fds[1], MOST_BYTES)
        self._roster.enter(seat.pid, seat.timeout_s, seat.model, seat.version)
        self._seats.add(seat)
        if self._is_finishing:
            seat.channel.send(Packet("finish"))

    def _serve_caller(self, caller: Seat, packet: Packet) -> None:
        """What others than workers ask at the same socket."""
        facts, trials = packet.facts, self._seats.trials
        if packet.kind == "drain":
            self._drain(caller, facts["model"], facts["version"], facts["pids"])
        elif packet.kind == "ask load":
            told = self._seats.load_of(facts["model"], facts["version"])
            caller.channel.send(Packet("load of", told))
        elif packet.kind == "ask trials":
            states = [state.to_json() for state in trials.states()]
            caller.channel.send(Packet("trials", {"trials": states}))
        else:
            is_known = self._seats.knows_models  # else the next try tells more
            told = trials.reply(facts, time.monotonic(), self._seats.serving) if is_known else {}
            caller.channel.send(Packet("tried", told))

    def _drain(self, caller: Seat, model: str, version: str | None, pids: list[int] | None) -> None:
        """Give workers nothing new, and say when they have nothing left.

        Workers of an acceptor before this one may have requests, too, and say hello later.
        """

        def look() -> None:
            if caller.is_gone:
                return
            missing = self._roster.missing(*self._meant(model, version))
            self._take_off(caller, model, version, pids, missing)
            is_default_known = version is not None or self._seats.knows_models
            is_missed = any(pids is None or pid in pids for pid in missing)
            is_held = any(seat.held for seat in caller.drained if not seat.is_gone)
            if is_missed or is_held or not is_default_known:
                self._loop.call_later(_LOOK_S, look)
            else:
                caller.channel.send(Packet("drained"))

        look()

    def _meant(self, model: str, version: str | None) -> tuple[str, str | None]:
        """A model with the version that is meant; None while nobody knows the default one."""
        return model, self._seats.named(model, version)[1] or None

    def _take_off(
        self,
        caller: Seat,
        model: str,
        version: str | None,
        pids: list[int] | None,
        missing: list[int],
    ) -> None:
        """Have those drained for a caller that are here and not drained for it yet."""
        named = self._seats.named(model, version)
        here = self._seats.of(model, version)
        others = [seat for seat in self._drained if (seat.model, seat.version) == named]
        for seat in (*here, *others):
            if (pids is None or seat.pid in pids) and caller not in seat.drainers:
                self._seats.remove(seat)
                self._drained.add(seat)
                seat.drainers.add(caller)
                caller.drained.append(seat)
                seat.channel.send(Packet("drain"))

        stays = self._seats.of(model, version) or set(missing) - set(pids or ())
        is_any = bool(named[1] and (caller.drained or missing))
        if is_any and (pids is None or not stays) and caller.ends is None:
            caller.ends = named
            self._seats.ending.append(named)

    def _resume_drained(self, caller: Seat) -> None:
        """Let workers serve again that whoever had them drained did not end."""
        if caller.ends is not None:
            self._seats.ending.remove(caller.ends)
        for seat in caller.drained:
            seat.drainers.discard(caller)
            if not (seat.is_gone or seat.drainers):
                self._drained.discard(seat)
                seat.channel.send(Packet("resume"))
                self._seats.add(seat)

    def _take_back(self, seat: Seat, packet: Packet) -> None:
        """Find another worker for a connection, by its next request or else by its last model."""
        unread, slot = packet.payload(), packet.facts.get("slot")
        returns = 0
        if seat.slots is not None and slot is not None:
            held = seat.slots.take(slot)
            fd = held.fd
            returns = 0 if packet.facts.get("has_answered", True) else held.returns + 1
        else:
            fd = packet.fds[0]
        another = self._seats.least_busy(seat.model, None) if returns <= MOST_RETURNS else None
        if unread:
            self._place(fd, unread, returns, time.perf_counter())
        elif another is not None:
            with suppress(OSError):  # too many files are open: it is closed
                another.hand(fd, unread, returns)
        else:
            self._await_request(socket.socket(fileno=fd))

    def _refuse(self, seat: Seat, slot: int | None) -> None:
        """Answer a client for a worker that has too many files open."""
        if seat.slots is not None and slot is not None:
            self._tell(seat, seat.slots.take(slot).fd, _full())

    def _release(self, seat: Seat) -> None:
        """Find out what a worker that is gone left behind, as soon as its process has ended."""
        found, seat.slots = seat.slots, None
        if found is None:
            return
        ends = time.monotonic() + _ENDS_WITHIN_S

        def look() -> None:
            if not found.has_ended and time.monotonic() < ends:
                self._loop.call_later(_LOOK_S, look)
                return
            if found.has_ended:
                is_wanted = seat.is_leaving or seat.drainers or self._is_finishing
                code, states = exit_code(found.process), Counter[int]()
                for state, held in found.release():
                    known = LATE if seat.is_stuck and state == BEGUN else state
                    states[known] += 1
                    try:
                        self._resume(seat, known, held)
                    except Exception:  # the others must go on
                        logger.exception("a connection of a worker that died must go on.")
                if not is_wanted:
                    named = (seat.pid, seat.model, seat.version)
                    self._seats.on_death(Death(*named, code, seat.is_stuck, states))
            found.close()  # else a process that lives still has them

        look()

    def _resume(self, seat: Seat, state: int, held: Held) -> None:
        """Go on with a connection whose worker has died."""
        if state == HANDED:
            self._place(held.fd, held.unread, held.returns, None)
        elif state == IDLE:
            self._await_request(socket.socket(fileno=held.fd))
        elif state in (BEGUN, UNPROVEN):
            self._tell(seat, held.fd, worker_died())
        elif state == LATE:
            self._tell(seat, held.fd, too_late())
        else:  # its client has a part of a response
            _end(held.fd)
            self._failures.add_error(seat.model, seat.version, worker_died())

    def _tell(self, seat: Seat, fd: int, error: StatusError) -> None:
        """Answer a client for a worker."""
        tell(self._loop, fd, error, self._headers)
        self._failures.add_error(seat.model, seat.version, error)


def tell(loop: asyncio.AbstractEventLoop, fd: int, error: StatusError, headers: bytes) -> None:
    """Answer, and close after the client: else what it still sends would reset the connection."""
    line = socket.socket(fileno=fd)
    line.setblocking(False)
    with suppress(OSError):
        line.send(_response(error, headers))
        line.shutdown(socket.SHUT_WR)

    def drop() -> None:
        try:
            data = line.recv(_DROPPED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            close()

    def close() -> None:
        timer.cancel()
        loop.remove_reader(line.fileno())
        _end(line.detach())

    timer = loop.call_later(_DROPS_S, close)
    loop.add_reader(line.fileno(), drop)


def refuse(line: socket.socket, error: StatusError, headers: bytes) -> None:
    """Send an error and close, without reading the request."""
    with suppress(OSError):
        line.send(_response(error, headers))
    _end(line.detach())


def _response(error: StatusError, headers: bytes) -> bytes:
    reply = error_reply(error)
    status = HTTPStatus(reply.status)
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: {reply.content_type}\r\n"
        f"retry-after: 1\r\ncontent-length: {len(reply.body)}\r\nconnection: close\r\n"
    )
    return head.encode() + headers + b"\r\n" + reply.body


def _end(fd: int) -> None:
    """Close a connection, whoever else has a descriptor of it."""
    with socket.socket(fileno=fd) as line, suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _full() -> StatusError:
    return StatusError(
        503,
        "busy",
        "the worker must have a file descriptor for each client, got too many clients. Retry, or "
        "raise the limit of open files (ulimit -n).",
        retry_after_s=1,
    )
