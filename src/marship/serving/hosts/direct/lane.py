"""Requests on their way through the model: what arrived while the last call ran is the next batch.

Nothing waits for a batch to be filled. Where a call is shorter than handing it to a thread it runs
in the event loop itself; else on a thread, while the loop reads the next requests. Which, is
decided by how long the last calls took, and by whether a core is left for the loop.
"""

import asyncio
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue

from marship.errors import RequestError
from marship.serving.formats import forms
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.journal import Journal
from marship.serving.hosts.direct.limits import busy, error_reply, too_late, worker_died
from marship.serving.message import Reply, Request, hidden, outcomes
from marship.serving.service import Service

logger = logging.getLogger(__name__)

STREAMS = 4
"""Batches of streams that take turns: a short recording does not wait for the end of a long one."""
MOST_AHEAD = 64
"""Parts of a stream that the loop has not sent yet. Only what it has sent counts to the bytes by
which a client is behind: a model that is faster than the loop would fill the memory."""
IN_LOOP_S, ON_THREAD_S = 2e-3, 5e-3
"""Batches that take less than the first run in the loop; more than the second, on a thread."""
IN_BUSY_LOOP_S, ON_BUSY_THREAD_S = 30e-3, 60e-3
"""The same where calls use all cores: two threads would only take turns on them."""
_WEIGHT = 0.1
"""How much the last batch counts in the average: one slow batch alone changes nothing."""
IN_LOOP_BYTES = 1 << 20
_LOOK_S = 0.25
_AWAY_S, _AWAY_SHARE = 1.5, 0.2
"""Without a look at batches, and the part of it in which no process that runs does less."""
SPIN_S = 2e-4
"""Busy-poll: how long the loop looks for the next request before it sleeps, where the last one came
within it and a core is left. Waking costs the lone client of a small model much of its time."""
_CORES_S = 1.0
"""How often it is looked whether a core is left: it is read from files."""


class Lane:
    """Passes requests to a service, a batch at a time.

    Args:
        service: The model, loaded.
        loop: Where responses are written.
        most: The most requests of a batch.
        queue: The most requests that wait.
        on_stuck: Called on a thread of its own when a batch takes longer than the service may.
        journal: Writes requests down; None is nothing.
    """

    def __init__(  # noqa: PLR0913  keyword-only
        self,
        service: Service,
        loop: asyncio.AbstractEventLoop,
        *,
        most: int,
        queue: int,
        on_stuck: Callable[[], None] = lambda: os._exit(1),
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._service, self._loop, self._most, self._queue = service, loop, most, queue
        self._on_stuck = on_stuck
        self._pending: deque[Exchange] = deque()
        self._is_scheduled = self._is_stuck = False
        self._slots = STREAMS if service.streams else 1
        self._running: dict[int, tuple[float, list[Exchange]]] = {}  # since when, by a batch's id
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for number in range(self._slots):  # as daemons they work on while the process ends
            threading.Thread(target=self._run, name=f"model-{number}", daemon=True).start()
        self._rests_at, self._waited_s = 0.0, math.inf
        self._may_spin = self._is_busy = self._in_loop = False
        self._cores_at = -math.inf
        self._batch_s = service.call_s(most)  # processor time: other processes do not count
        self._decide()
        self._read = partial(
            forms.request_of,
            most_fields=service.max_fields,
            most_bytes=service.max_request_bytes,
        )
        if service.timeout_s is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def load(self) -> int:
        """How many requests wait or run."""
        return len(self._pending) + sum(len(batch) for _, batch in self._running.values())

    def put(self, exchange: Exchange) -> None:
        """Take a request; it is refused where too many wait, or the worker is about to end."""
        if self._is_stuck:
            exchange.reply(error_reply(worker_died()))
            return
        if len(self._pending) >= self._queue:
            self._service.metrics.add_error("busy")
            refusal = error_reply(busy(self._queue))
            if self._journal is not None:
                self._journal.refused(exchange, refusal)
            exchange.reply(refusal)
            return
        exchange.came_s = now = time.perf_counter()
        self._pending.append(exchange)
        if self._rests_at:
            self._waited_s, self._rests_at = now - self._rests_at, 0.0
        if not self._is_scheduled and len(self._running) < self._slots:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Run what waits: what the loop has read in this turn is one batch."""
        self._is_scheduled = False
        while self._pending and len(self._running) < self._slots:
            batch = self._take()
            if not batch:
                return
            if self._in_loop and (
                self._is_busy or sum(len(exchange.body) for exchange in batch) <= IN_LOOP_BYTES
            ):
                self._run_here(batch)
                if self._pending and not self._is_scheduled:  # others have their turn first
                    self._is_scheduled = True
                    self._loop.call_soon(self._flush)
                return
            self._running[id(batch)] = (time.monotonic(), batch)
            run = self._stream if self._service.streams else self._run_there
            self._work.put(partial(run, batch))

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except RuntimeError:
                if not self._loop.is_closed():
                    raise
                return  # the server has stopped, and nobody waits for the response
            del work  # its bodies are free while the next batch is waited for

    def _take(self) -> list[Exchange]:
        """The next batch, without those whose clients are gone; perhaps empty."""
        most = self._most if self._service.joining_pays else 1
        batch: list[Exchange] = []
        while self._pending and len(batch) < most:
            exchange = self._pending.popleft()
            if not exchange.is_abandoned:
                batch.append(exchange)
        return batch

    def _run_here(self, batch: list[Exchange]) -> None:
        self._running[id(batch)] = (time.monotonic(), batch)
        began = time.thread_time()
        try:
            replies, timing = self._reply(batch)
        finally:
            del self._running[id(batch)]
        self._learn(time.thread_time() - began)
        _send_all(zip(batch, replies, strict=True), timing)
        if not self._pending:
            self._rest()

    def _rest(self) -> None:
        """Nothing is left to do: look for the next request a while before the loop sleeps."""
        now = self._rests_at = time.perf_counter()
        if self._may_spin and self._waited_s < SPIN_S:
            self._loop.call_soon(self._spin, now)

    def _spin(self, since: float) -> None:
        if self._rests_at == since and time.perf_counter() - since < SPIN_S:
            self._loop.call_soon(self._spin, since)

    def _run_there(self, batch: list[Exchange]) -> None:
        began = time.thread_time()
        replies, timing = self._reply(batch)
        self._loop.call_soon_threadsafe(
            self._done, batch, replies, timing, time.thread_time() - began
        )

    def _done(
        self, batch: list[Exchange], replies: Sequence[Reply], timing: str, took_s: float
    ) -> None:
        self._running.pop(id(batch), None)
        if not self._is_scheduled:
            self._flush()  # the model first: responses are written while it runs
        _send_all(zip(batch, replies, strict=True), timing)
        self._learn(took_s)

    def _learn(self, took_s: float) -> None:
        if self._batch_s == math.inf:
            self._batch_s = took_s
        self._batch_s += _WEIGHT * (took_s - self._batch_s)
        self._decide()

    def _decide(self) -> None:
        """Whether batches run in the loop, and whether it may busy-poll."""
        now = time.perf_counter()
        if now - self._cores_at > _CORES_S:
            settings, self._cores_at = self._service.session.settings, now
            self._may_spin, self._is_busy = settings.has_spare_cores, settings.uses_all_cores
        shorter, longer = (
            (IN_BUSY_LOOP_S, ON_BUSY_THREAD_S) if self._is_busy else (IN_LOOP_S, ON_THREAD_S)
        )
        if self._batch_s > longer or self._service.streams or self._service.waits_for_others:
            self._in_loop = False
        elif self._batch_s < shorter:
            self._in_loop = True

    def _reply(self, batch: list[Exchange]) -> tuple[list[Reply], str]:
        """Each request's response; nothing is raised."""
        began_s = time.perf_counter()
        requests, refused = self._requests(batch)
        replies, timing = self._service.reply(requests) if requests else ([], "")
        if refused:
            ready = iter(replies)
            replies = [refused[i] if i in refused else next(ready) for i in range(len(batch))]
        came_s = [each.came_s for each in batch]
        self._service.metrics.add_times(came_s, began_s, outcomes(replies))
        if self._journal is not None:
            self._journal.add(batch, replies, began_s, timing)
        return replies, timing

    def _requests(self, batch: list[Exchange]) -> tuple[list[Request], dict[int, Reply]]:
        """What can be read, and the responses to what cannot, by their places in the batch."""
        requests: list[Request] = []
        refused: dict[int, Reply] = {}
        for index, exchange in enumerate(batch):
            try:
                requests.append(exchange.request(self._read))
            except RequestError as error:
                refused[index] = self._service.refusal(error)
            except Exception:  # a fault in reading one request must not reach its neighbours
                refused[index] = self._service.refusal(hidden("read"))
        return requests, refused

    def _stream(self, batch: list[Exchange]) -> None:
        """Send what is ready after each turn."""
        began_s = time.perf_counter()
        requests, refused = self._requests(batch)
        self._loop.call_soon_threadsafe(self._send, batch, refused, "")
        left = [index for index in range(len(batch)) if index not in refused]
        last = [refused.get(i, Reply(b"")) for i in range(len(batch))]
        timing = ""
        ahead = threading.Semaphore(MOST_AHEAD)
        try:
            for ready, timing in self._service.replies(requests) if requests else ():
                while not ahead.acquire(timeout=_LOOK_S):
                    if self._loop.is_closed():
                        break
                if all(exchange.is_abandoned for exchange in batch):
                    break
                found = {left[place]: reply for place, reply in ready.items()}
                for index, reply in found.items():
                    last[index] = reply
                self._running[id(batch)] = (time.monotonic(), batch)
                self._loop.call_soon_threadsafe(self._send, batch, found, timing)
                self._loop.call_soon_threadsafe(ahead.release)
        finally:
            self._service.metrics.add_times(
                [each.came_s for each in batch], began_s, outcomes(last)
            )
            if self._journal is not None:
                self._journal.add(batch, last, began_s, timing)
            self._loop.call_soon_threadsafe(self._streamed, batch)

    def _streamed(self, batch: list[Exchange]) -> None:
        self._running.pop(id(batch), None)
        unfinished = [each for each in batch if not each.is_done and not each.is_abandoned]
        if unfinished:
            refusal = self._service.refusal(hidden("answer"))
            _send_all((exchange, refusal) for exchange in unfinished)
        if not self._is_scheduled:
            self._flush()

    @staticmethod
    def _send(batch: list[Exchange], ready: Mapping[int, Reply], timing: str) -> None:
        _send_all(((batch[index], reply) for index, reply in sorted(ready.items())), timing)

    def _watch(self) -> None:
        """End the worker where a batch takes too long: its host starts another one."""
        limit_s = self._service.timeout_s or 0.0
        pauses: list[tuple[float, float]] = []  # when they ended, and how long they were
        before, worked_s = time.monotonic(), time.process_time()
        while True:
            time.sleep(_LOOK_S)
            if self._loop.is_closed():
                return  # the server has stopped, and nobody waits for the batch
            now, works_s = time.monotonic(), time.process_time()
            if now - before > _AWAY_S and works_s - worked_s < _AWAY_SHARE * (now - before):
                pauses.append((now, now - before))  # the process was stopped: it does not count
            before, worked_s = now, works_s
            running = list(self._running.values())
            late = [
                batch
                for began, batch in running
                if now - began - sum(s for at, s in pauses if at > began) > limit_s
            ]
            if not running:
                pauses.clear()
            if late:
                logger.error(
                    "a batch exceeded its timeout of %g s. This worker exits.",
                    limit_s,
                )
                self._loop.call_soon_threadsafe(self._give_up, late, limit_s)
                time.sleep(_LOOK_S)
                for exchange in (each for batch in late for each in batch if not each.is_done):
                    exchange.report_timeout()  # the batch runs in the loop, which cannot write now
                self._on_stuck()
                return

    def _give_up(self, late: Sequence[list[Exchange]], limit_s: float) -> None:
        self._is_stuck = True
        for batch in late:
            for exchange in batch:
                _send_all([(exchange, error_reply(too_late(limit_s)))])
        while self._pending:
            _send_all([(self._pending.popleft(), error_reply(worker_died()))])


def _send_all(replies: Iterable[tuple[Exchange, Reply]], timing: str = "") -> None:
    """Send what is ready; a connection that fails must not keep its neighbours from theirs.

    All are made before the first is sent: clients that share the processor would wake up for each.
    """
    made: list[tuple[Exchange, bytes]] = []
    for exchange, reply in replies:
        if exchange.is_done:
            continue
        try:
            made.append((exchange, exchange.render(reply, timing)))
        except Exception:
            _fail(exchange)
    for exchange, data in made:
        try:
            exchange.send(data)
        except Exception:
            _fail(exchange)


def _fail(exchange: Exchange) -> None:
    logger.exception("a response must be written, got an error; its connection ends.")
    exchange.abandon()
