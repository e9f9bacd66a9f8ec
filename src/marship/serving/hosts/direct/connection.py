"""One client's connection: HTTP/1.1 within limits, responses in the order of their requests.

httptools reads the protocol. Only where a request's head ends is found here, so that a request
which belongs to another process is not begun: the connection is passed on as it came.
"""

import asyncio
from collections import deque

from marship.errors import MalformedError, MarshipError
from marship.serving.hosts.direct import request_line
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import Head
from marship.serving.hosts.direct.limits import too_slow
from marship.serving.hosts.direct.reader import RequestReader
from marship.serving.hosts.direct.site import Site
from marship.serving.hosts.direct.slots import States
from marship.serving.hosts.direct.wait_limit import WaitLimit
from marship.serving.hosts.direct.writer import Writer

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_AT_ONCE = 32
"""Requests of one connection, before others have their turn."""


class Connection(asyncio.Protocol):
    """A connection to a client.

    Args:
        site: The server.
        unread: What another process has read of it already.
        slot: Its number among those of the worker; None where it has none.
        states: Where to note what is done with it, by its number.
    """

    def __init__(
        self, site: Site, unread: bytes = b"", slot: int | None = None, states: States | None = None
    ) -> None:
        self._site, self._limits, self.headers = site, site.limits, site.headers
        self.writer = Writer(states, slot)
        self._unread = unread
        self.transport: asyncio.Transport | None = None
        self._reader = RequestReader(self, self._limits, site.heads, site.check)
        self._waiting: deque[Exchange] = deque()
        self._is_paused = self._is_moving = self._is_going = self._has_eof = False
        self._is_ending = self._drops = False  # no more is read; some of it may still come
        self._is_done = False  # all responses are written
        self._owes_continue = False
        self.due = WaitLimit(self._limits)
        self._is_stalled = self._goes_later = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with what has been read before."""
        self.transport = transport  # type: ignore[assignment]
        self.writer.open(self.transport, is_begun=bool(self._unread))  # type: ignore[arg-type]
        self._site.opened(self)
        if self._unread:  # asyncio begins to read behind this call, and would end a pause
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self.due.idle()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """The client is gone; its requests may still run."""
        self.transport, self._unread = None, b""
        self._waiting.clear()  # they know this connection: both would wait for Python's collector
        self._reader.forget()
        self.writer.close()
        self._site.closed(self)

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self._is_ending:
            self._drops = True  # read and dropped: else the client gets a reset, not its response
            return
        self.writer.begin()
        if self._unread:
            data = self._unread + data
        elif self._take_whole(data):
            return
        self._unread = data
        self._go_on()

    def eof_received(self) -> bool:
        """The client sends no more; it still reads what it waits for."""
        self._has_eof = True
        self._go_on()
        is_moving = self._is_moving and not self._is_ending  # the next process sees the end, too
        return is_moving or bool(self._waiting or self._unread)

    def pause_writing(self) -> None:
        """The client reads too slowly for now."""
        self._is_stalled = True
        self.writer.mark()
        self.due.writing()

    def resume_writing(self) -> None:
        """It has read most of what waited."""
        self._is_stalled = False
        self._settle()
        self._go_on()

    # Reading.

    def _go_on(self, is_later: bool = False) -> None:
        """Read requests as long as there are bytes, and room for their responses."""
        self._goes_later &= not is_later
        if self._is_going:
            return  # a request was answered at once: the loop below it goes on
        self._is_going = True
        try:
            is_left = self._read_some()
        finally:
            self._is_going = False
        if is_left and not self._goes_later:
            self._goes_later = True
            asyncio.get_running_loop().call_soon(self._go_on, True)
        if self._has_eof and self._may_read() and not is_left:
            self._end_at_eof()
        must_wait = self._unread and (is_left or self._is_full())
        must_move = self._is_moving and not self._reader.is_in_body
        self._pause(not self._is_ending and bool(must_move or must_wait))
        if self.is_idle and not self._unread:
            self._settle()
        self._set_deadline()
        self._move_if_done()

    def _read_some(self) -> bool:
        """Read what others need not wait for; whether there may be more."""
        for _ in range(_AT_ONCE):
            if not (self._unread and self._may_read()):
                return False
            data, self._unread = self._unread, b""
            if not (self._read_body if self._reader.is_in_body else self._read_head)(data):
                return False
        return bool(self._unread) and self._may_read()

    def _may_read(self) -> bool:
        is_leaving = self._is_moving and not self._reader.is_in_body
        return not (self._is_ending or is_leaving or self._is_full())

    def _is_full(self) -> bool:
        """Whether the client must take responses before more of it is read."""
        return len(self._waiting) >= self._limits.pipelined or self._is_stalled

    def _end_at_eof(self) -> None:
        """End behind the last response."""
        if self._reader.is_in_body or self._unread:
            self._refuse_and_close(MalformedError("a request must be whole, got a part of it."))
        elif self._waiting:
            self._waiting[-1].keeps_alive = False
            self._is_ending = True
        else:
            self._close()

    def _take_whole(self, data: bytes) -> bool:
        """Pass on a request that came in one piece behind a head that is known, as most do."""
        if self._reader.is_in_body:
            return False
        stop = data.find(request_line.END) + 4
        head, trace = self._site.heads.find(data[:stop])
        if (
            head is None
            or len(data) != stop + head.length
            or self._is_moving
            or self._is_full()
            or self._site.is_elsewhere(head.path)
        ):
            return False
        exchange = Exchange(self, head, trace)
        self._waiting.append(exchange)
        self._is_ending = not head.keeps_alive
        if not self._is_stalled:
            self.due.response()
        try:
            self._site.check(exchange)
        except MarshipError as error:
            self._site.refuse(exchange, error)
        else:
            exchange.body = data[stop:]
            self._site.handle(exchange)
        return True

    def _pause(self, must_wait: bool) -> None:
        if self.transport is None or must_wait == self._is_paused:
            return
        self._is_paused = must_wait
        (self.transport.pause_reading if must_wait else self.transport.resume_reading)()

    def _read_head(self, data: bytes) -> bool:
        """Read a request's head, if it is all there; False where there is nothing more to do."""
        try:
            data, head = request_line.split(data, self._limits)
        except MarshipError as error:
            self._refuse_and_close(error)
            return False
        known = self._site.heads.get(head)
        target = known.path if known else request_line.target_of(head)
        if not head or self._site.is_elsewhere(target):
            self._unread = data
            self._is_moving |= bool(head)
            return False
        self._unread = data[len(head) :]
        try:
            self._reader.read_head(head, known)
        except MarshipError as error:
            self._refuse_and_close(error)
            return False
        self._waiting.append(self._reader.exchange)  # type: ignore[arg-type]
        self._owes_continue = self._reader.wants_continue
        self._say_continue()
        return self._take()

    def _say_continue(self) -> None:
        """Let the client send its body, as soon as that stands in no other response."""
        if self._owes_continue and self._waiting and self._waiting[0] is self._reader.exchange:
            self._owes_continue = False
            self.writer.write(_CONTINUE, is_whole=True)

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
        self.due.renew()
        if self._reader.has_overrun:
            exchange.keeps_alive = False
        if not exchange.keeps_alive:  # nothing behind it is a request
            self._is_ending = True
            self._drops |= bool(self._unread) or self._reader.has_overrun
            self._unread = b""
        if refusal is not None:
            self._site.refuse(exchange, refusal)
        else:
            self._site.handle(exchange)

    # Writing.

    def send(self, exchange: Exchange, data: bytes, *, is_last: bool) -> None:
        """Write a part of a response, or keep it until it is its turn."""
        waiting = self._waiting
        if self.transport is None or self._is_done:
            return
        if waiting[0] is not exchange:
            exchange.early += data
            return
        is_only = is_last and len(waiting) == 1
        is_sent = self.writer.write(data, is_whole=is_only and not exchange.has_begun)
        if not is_last:
            return
        waiting.popleft()
        is_resting = is_only and not (self._unread or self._is_moving or self._has_eof)
        if is_resting and is_sent and exchange.keeps_alive:  # as most do
            self.writer.rest()
            self.due.idle()
        else:
            self._advance(closes=not exchange.keeps_alive)

    def _settle(self) -> None:
        """Note what this process is doing with the connection, if all that was written is sent."""
        waiting = self._waiting
        self.writer.settle(
            is_partly=bool(waiting) and waiting[0].has_begun,
            is_begun=bool(waiting or self._unread or self._reader.is_in_body),
        )

    def _advance(self, *, closes: bool) -> None:
        """Write the responses that were ready before their turn, and go on."""
        waiting = self._waiting
        while waiting and not closes:
            if waiting[0].early:
                self.writer.write(bytes(waiting[0].early))
                waiting[0].early.clear()
            if not waiting[0].is_done:
                break
            closes = not waiting.popleft().keeps_alive
        if closes:
            self._close()
            return
        self._settle()
        self._say_continue()
        if self._is_moving:  # as soon as the loop has written it
            asyncio.get_running_loop().call_soon(self._move_if_done)
        (self._go_on if self._unread or self._has_eof else self._set_deadline)()

    def _refuse_and_close(self, error: MarshipError) -> None:
        """Answer a request that cannot be read to its end, behind those before it."""
        exchange = self._reader.exchange
        if exchange is None:
            exchange = Exchange(self, Head("GET", self._reader.target, {}, keeps_alive=False))
        if exchange not in self._waiting:
            self._waiting.append(exchange)
        exchange.keeps_alive = False
        self._unread, self._is_ending, self._drops = b"", True, True
        self._site.refuse(exchange, error)

    def _close(self) -> None:
        """End the connection when all is written; what still comes is dropped for a while."""
        self._waiting.clear()
        self._unread, self._is_ending, self._is_done = b"", True, True
        if self.transport is None:
            return
        self.writer.mark()
        (self.due.writing if self.writer.buffered else self.due.closing)()
        if self._drops and not self._has_eof:
            self.transport.write_eof()
            self._pause(False)
        else:
            self.transport.close()

    @property
    def is_closed(self) -> bool:
        """Whether the client is gone."""
        return self.transport is None

    def abandon(self) -> None:
        """Close without the rest of a response."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes of responses that the kernel has not taken yet, those before their turn too."""
        return self.writer.buffered + sum(len(exchange.early) for exchange in self._waiting)

    # Moving and ending.

    def move(self) -> None:
        """Pass the connection on to another process once no request is in flight."""
        self._is_moving = True
        self._go_on()

    @property
    def is_idle(self) -> bool:
        """Whether it is between requests."""
        return not (self._waiting or self._reader.is_in_body or self._is_ending)

    def _move_if_done(self) -> None:
        is_done = self.is_idle and not self.writer.buffered
        if not (self._is_moving and is_done) or self.transport is None:
            return
        unread, self._unread = self._unread, b""
        self._is_moving, self._is_ending = False, True  # once: two readers would share the bytes
        self._site.pass_on(self, unread)

    def expire(self, now: float) -> None:
        """End what takes longer than the limits allow; called every second or so."""
        if self.writer.is_unsettled:
            self._settle()
        self._move_if_done()
        if now < self.due.at or self.transport is None:
            return
        if self._is_stalled or self.writer.buffered:
            if self.writer.taken < self._limits.body_rate:
                self.abandon()
            self.writer.mark()
            self.due.writing()
        elif self._is_done:
            self.abandon()
        elif self.is_idle and not self._unread:
            self.transport.close()
        elif self.is_receiving or not self._waiting:
            self._refuse_and_close(self._reader.refusal or too_slow())

    @property
    def is_receiving(self) -> bool:
        """Whether the rest of a request is waited for."""
        return self._reader.is_in_body and not self._is_ending

    def _set_deadline(self) -> None:
        """From what is waited for now: a head, a body, a response, or the next request."""
        if self._is_done or self._is_stalled:
            return
        waits_for_us = self._is_full() or self._owes_continue or self._goes_later
        if self.is_receiving and not waits_for_us:
            self.due.body(self._reader.size, is_wanted=self._reader.refusal is None)
        elif self._unread and not waits_for_us:
            self.due.head()
        elif self._waiting or waits_for_us:
            self.due.response()
        else:
            self.due.idle()
        if self.due.is_unproven and len(self._waiting) == self._reader.is_in_body:
            self.writer.doubt()
