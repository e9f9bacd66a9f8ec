"""One client's connection: HTTP/1.1 within limits, responses in the order of their requests.

httptools reads the protocol. Only where a request's head ends is found here, so that a request
which belongs to another process is not begun: the connection is passed on as it came.
"""

import asyncio
import math
import os
import time
from collections import deque

from marship.errors import MalformedError, MarshipError
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Head
from marship.serving.hosts.direct.limits import Limits, StatusError, error_reply
from marship.serving.hosts.direct.reader import END, RequestReader, target_of
from marship.serving.hosts.direct.site import Site
from marship.serving.hosts.direct.slots import BEGUN, IDLE, PARTLY, States

_SMALL_BYTES = 1 << 14
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """A connection to a client.

    Args:
        site: The server.
        unread: What another process has read of it already.
        slot: Its number among those of the worker; None where it has none.
        states: Where to note what is done with it, by its number.
    """

    def __init__(
        self,
        site: Site,
        unread: bytes = b"",
        slot: int | None = None,
        states: States | None = None,
    ) -> None:
        self._site, self._limits = site, site.limits
        self.slot, self._place = slot, slot or 0
        self._states = bytearray(1) if slot is None or states is None else states
        self._unread = unread
        self.transport: asyncio.Transport | None = None
        self._reader = RequestReader(self, self._limits, site.heads, site.check)
        self._is_paused = self._is_moving = self._is_ending = False
        self._waiting: deque[Exchange] = deque()
        self.deadline = time.monotonic() + self._limits.head_s
        self._stalled_bytes: int | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with what has been read before."""
        self.transport = transport  # type: ignore[assignment]
        self._fd = transport.get_extra_info("socket").fileno()
        self._states[self._place] = BEGUN if self._unread else IDLE
        self._site.opened(self)
        if self._unread:  # asyncio begins to read behind this call, and would end a pause
            asyncio.get_running_loop().call_soon(self._go_on)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """The client is gone; what it asked for may still run."""
        self.transport = None
        self._site.closed(self)

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self._is_ending:
            return  # read and dropped: else the client gets a reset and not its response
        if not self._waiting:
            self._states[self._place] = BEGUN
        if self._unread:
            data = self._unread + data
        elif self._take_whole(data):
            return
        self._unread = data
        self._go_on()

    def eof_received(self) -> bool:
        """The client sends no more; it still reads what it waits for."""
        self._go_on()  # what another process has read may not have been looked at yet
        if self._reader.is_in_body or (self._unread and not self._is_moving):
            self._refuse_and_close(MalformedError("a request must be whole, got a part of it."))
        if self._is_moving:
            return True  # the next process sees the end, too
        if self._waiting:
            self._waiting[-1].keeps_alive = False
        return bool(self._waiting)

    def pause_writing(self) -> None:
        """The client reads too slowly for now."""
        self._stalled_bytes = self._buffered()
        self.deadline = time.monotonic() + self._limits.stalled_s

    def resume_writing(self) -> None:
        """It has read what waited."""
        self._stalled_bytes = None
        self._set_deadline()
        self._go_on()

    # Reading.

    def _go_on(self) -> None:
        """Read requests as long as there are bytes, and room for their responses."""
        while self._unread and not (self._is_moving or self._is_ending or self._is_full()):
            data, self._unread = self._unread, b""
            if not (self._read_body(data) if self._reader.is_in_body else self._read_head(data)):
                break
        self._pause(bool(self._unread) and (self._is_moving or self._is_full()))
        if not self._is_ending and self._stalled_bytes is None:
            self._set_deadline()

    def _take_whole(self, data: bytes) -> bool:
        """Pass on a request that came in one piece behind a head that is known, as most do."""
        if self._reader.is_in_body:
            return False
        stop = data.find(END) + 4
        head = self._site.heads.get(data[:stop])
        if (
            head is None
            or len(data) != stop + head.length
            or self._is_moving
            or self._is_full()
            or self._site.is_elsewhere(head.path)
        ):
            return False
        exchange = Exchange(self, head)
        self._waiting.append(exchange)
        self._phase, self.deadline = "response", math.inf
        try:
            self._site.check(exchange)
        except MarshipError as error:
            exchange.reply(error_reply(error))
        else:
            exchange.body = data[stop:]
            self._site.handle(exchange)
        return True

    def _is_full(self) -> bool:
        """Whether the client must take responses before more of it is read."""
        return len(self._waiting) >= self._limits.pipelined or self._stalled_bytes is not None

    def _pause(self, must_wait: bool) -> None:
        if self.transport is None or must_wait == self._is_paused:
            return
        self._is_paused = must_wait
        (self.transport.pause_reading if must_wait else self.transport.resume_reading)()

    def _read_head(self, data: bytes) -> bool:
        """Read a request's head, if it is all there; False where there is nothing more to do."""
        while data.startswith(b"\r\n"):
            data = data[2:]  # RFC 9112, 2.2: empty lines before a request
        stop = data.find(END) + 4
        if stop < 4:  # noqa: PLR2004  END was not found
            self._unread = data
            if data.count(b"\n") != data.count(b"\r\n"):
                self._refuse_and_close(MalformedError("lines must end with CR LF, got LF alone."))
            elif len(data) > self._limits.head_bytes:
                self._refuse_and_close(_head_too_large(self._limits))
            return False
        head, rest = (data, b"") if stop == len(data) else (data[:stop], data[stop:])
        known = self._site.heads.get(head)
        if self._site.is_elsewhere(known.path if known else target_of(head)):
            self._unread = data
            self.move()
            return False
        if stop > self._limits.head_bytes:
            self._refuse_and_close(_head_too_large(self._limits))
            return False
        self._unread = rest
        try:
            self._reader.read_head(head, known)
        except MarshipError as error:
            self._refuse_and_close(error)
            return False
        assert self._reader.exchange is not None  # noqa: S101  else it raises
        self._waiting.append(self._reader.exchange)
        if self._reader.wants_continue:
            self._write(_CONTINUE)
            self._states[self._place] = BEGUN
        return self._take()

    def _read_body(self, data: bytes) -> bool:
        try:
            self._unread = self._reader.read_body(data)
        except MarshipError as error:
            self._refuse_and_close(error)
            return False
        return self._take()

    def _take(self) -> bool:
        """Pass a request on that is complete; whether the next one may be read."""
        reader = self._reader
        if reader.is_complete:
            self._dispatch()
        elif reader.refusal is not None and reader.exchange and not reader.exchange.keeps_alive:
            self._refuse_and_close(reader.refusal)
        return not self._is_ending

    def _dispatch(self) -> None:
        exchange, refusal = self._reader.take()
        if self._reader.has_overrun:
            exchange.keeps_alive = False
            self._is_ending = True
        if refusal is not None:
            exchange.reply(error_reply(refusal))
        else:
            self._site.handle(exchange)

    # Writing.

    def send(self, exchange: Exchange, data: bytes, *, is_last: bool) -> None:
        """Write a part of a response, or keep it until it is its turn."""
        if self.transport is None:
            return
        waiting = self._waiting
        if waiting[0] is not exchange:
            exchange.parts.append(data)
            return
        self._write(data, is_whole=is_last and len(waiting) == 1 and not exchange.has_begun)
        if not is_last:
            return
        waiting.popleft()
        self._settle()
        if exchange.keeps_alive and not (waiting or self._is_moving or self._unread):
            if self._stalled_bytes is None:
                self._set_deadline()
        else:
            self._send_next(closes=not exchange.keeps_alive)

    def _write(self, data: bytes, *, is_whole: bool = False) -> None:
        """Send at once what the kernel takes: what the loop keeps would die with the process.

        A small response is sent whole or not at all. Where this process is killed before that is
        noted, the client gets a status: for this request, or else for its next one.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if not is_whole or len(data) > _SMALL_BYTES:
            self._states[self._place] = PARTLY
        if not transport.get_write_buffer_size():
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                transport.abort()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._states[self._place] = PARTLY
        transport.write(data)

    def _settle(self) -> None:
        """Note that it is between requests, if all responses are sent."""
        if not self._waiting and not self._buffered():
            self._states[self._place] = BEGUN if self._unread else IDLE

    def _send_next(self, *, closes: bool) -> None:
        """Write the responses that were ready before their turn, and go on."""
        waiting = self._waiting
        assert self.transport is not None  # noqa: S101  send returns before
        while waiting and not closes:
            for part in waiting[0].parts:
                self._write(part)
            waiting[0].parts.clear()
            if not waiting[0].is_done:
                break
            closes = not waiting.popleft().keeps_alive
        self._settle()
        if closes:
            self._close()
        elif self._is_moving:  # as soon as the loop has written it
            asyncio.get_running_loop().call_soon(self._move_if_done)
        elif self._unread:
            self._go_on()
        elif self._stalled_bytes is None:
            self._set_deadline()

    def _refuse_and_close(self, error: MarshipError) -> None:
        """Answer a request that cannot be read to its end, behind those before it."""
        exchange = self._reader.exchange
        if exchange is None:
            exchange = Exchange(self, Head("GET", self._reader.target, {}, keeps_alive=False))
        if exchange not in self._waiting:
            self._waiting.append(exchange)
        exchange.keeps_alive = False
        self._unread, self._is_ending = b"", True
        exchange.reply(error_reply(error))

    def _close(self) -> None:
        """End the connection when all is written; what still comes is dropped for a while."""
        self._waiting.clear()
        if self.transport is None:
            return
        is_read = not (self._reader.is_in_body or self._is_ending or self._unread)
        self._unread, self._is_ending = b"", True
        if is_read:
            self.transport.close()
            return
        self.deadline = time.monotonic() + self._limits.linger_s
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._pause(False)

    @property
    def is_closed(self) -> bool:
        """Whether the client is gone."""
        return self.transport is None

    def abandon(self) -> None:
        """Close without the rest of a response."""
        if self.transport is not None:
            self.transport.abort()

    # Moving and ending.

    def move(self) -> None:
        """Pass the connection on to another process as soon as nothing of it is under way."""
        self._is_moving = True
        self._pause(True)
        self._move_if_done()

    @property
    def is_idle(self) -> bool:
        """Whether it is between requests."""
        return not (self._waiting or self._reader.is_in_body or self._is_ending)

    def _move_if_done(self) -> None:
        if not self._is_moving or not self.is_idle or self.transport is None or self._buffered():
            return
        unread, self._unread = self._unread, b""
        self._is_moving, self._is_ending = False, True  # once: two readers would share the bytes
        self._site.pass_on(self, unread)

    def expire(self, now: float) -> None:
        """End what takes longer than the limits allow; called every second or so."""
        if self._is_moving and self._stalled_bytes is None:
            self._move_if_done()
        if now < self.deadline or self.transport is None:
            return
        if self._stalled_bytes is not None:
            buffered = self._buffered()
            if self._stalled_bytes - buffered >= self._limits.body_rate:
                self._stalled_bytes, self.deadline = buffered, now + self._limits.stalled_s
                return
            self.transport.abort()
        elif self._is_ending or (self.is_idle and not self._unread):
            self.transport.abort() if self._is_ending else self.transport.close()
        elif not self._waiting or self._reader.is_in_body:
            self._refuse_and_close(
                StatusError(
                    408, "timeout", "a request must be sent without long pauses, got a part of it."
                )
            )

    def _set_deadline(self) -> None:
        """From what is waited for now: a head, a body, a response, or the next request."""
        reader, limits = self._reader, self._limits
        if reader.is_in_body:
            if self._phase != "body":  # from its first byte on
                left = 0 if math.isinf(reader.left) else reader.left
                self._wait("body", limits.body_s + left / limits.body_rate)
        elif self._unread:
            if self._phase != "head":
                self._wait("head", limits.head_s)
        elif self._waiting:
            self._phase, self.deadline = "response", math.inf
        else:
            self._wait("idle", limits.idle_s)

    def _wait(self, phase: str, seconds: float) -> None:
        self._phase, self.deadline = phase, time.monotonic() + seconds

    _phase = "head"

    def _buffered(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport else 0


def _head_too_large(limits: Limits) -> StatusError:
    return StatusError(
        431,
        "too_large",
        f"the request line and headers must have {limits.head_bytes} bytes at most, got more.",
    )
