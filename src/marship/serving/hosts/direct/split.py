"""Requests for a model on trial: each goes to one version, and those in the share to both.

While a trial runs no worker takes requests that name no version, so that their connections stay
with the acceptor. It relays each request to a worker of the version that is meant, over a pair of
sockets of which the worker gets one end as it gets any connection.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import partial

import orjson

from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.exchange import LINES_TYPE, Exchange
from marship.serving.hosts.direct.failures import Failures
from marship.serving.hosts.direct.heads import COPY, Head
from marship.serving.hosts.direct.likeness import JSON_LENGTH, MOST_BYTES, compare, known
from marship.serving.hosts.direct.limits import Limits
from marship.serving.hosts.direct.outcome import Likeness, VersionResponse
from marship.serving.hosts.direct.relay import Relay
from marship.serving.hosts.direct.seats import Seats
from marship.serving.hosts.direct.trial import RunningTrial, TrialWait
from marship.serving.message import Reply

MOST_COPIES, MOST_COPY_BYTES = 32, 1 << 26
"""Second requests under way; more are not sent. Of all trials, as is the memory that they take."""
_MOST_COMPARING, _IDLE_S = 16, 10.0
_NONE = {404, 503}
"""Of a version that is not registered, or has no worker."""
_GONE = {"no_worker", "scaled_to_zero", "not_found"}
"""Codes of responses with these statuses that no handler has written."""


class Leg:
    """A request on its way to one version: the client's own, or a copy that only is counted.

    It is what `Relay` takes for an exchange.

    Args:
        asked: The client's request.
        on_end: Called once with the outcome, or None where the client has left before; without it
            nothing is counted.
        wait: Its wait for the version, if it is counted.
        is_gone: Asked at an error: whether it is none of the version, which has gone meanwhile, and
            another leg answers the client.
        is_copy: Whether the client gets nothing of the response.
        pair: Of both versions' responses, if they are counted.
    """

    def __init__(  # noqa: PLR0913  what is optional goes by its name
        self,
        asked: Exchange,
        on_end: Callable[[VersionResponse | None], None] | None = None,
        wait: TrialWait | None = None,
        *,
        is_gone: Callable[[Reply], bool] | None = None,
        is_copy: bool = False,
        pair: "_Pair | None" = None,
    ) -> None:
        self._pair = pair
        self._asked, self._is_copy, self._on_end = asked, is_copy, on_end or _forget
        self._wait, self._is_gone = wait, is_gone
        self.head, self.body, self.trace = asked.head, asked.body, asked.trace
        more = {b"x-request-id": asked.id} if on_end is not None else {}  # both log it by one id
        if is_copy:
            more[COPY] = b"1"
        if asked.head.wants_events:  # they are made of lines here
            more[b"accept"] = LINES_TYPE.encode()
        if more or asked.head.method == "HEAD":
            self.head = _changed(asked.head, more)
        self.is_done = self._is_stream = False
        self._began, self._took_s = time.perf_counter(), 0.0

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has left before its response."""
        if self._pair is not None and self._pair.has_left:
            return True
        has_left = self._asked.is_abandoned and not self._asked.is_done
        if has_left and self._pair is not None:  # the other leg may look when this one has ended it
            self._pair.has_left = True
        return has_left

    def reply(self, reply: Reply) -> None:
        """Give the client a response or its next part, and note it."""
        self._took_s = self._took_s or time.perf_counter() - self._began
        self._is_stream |= reply.more
        has_left = self.is_abandoned
        if not (has_left or self._is_stream) and self._is_gone is not None and self._is_gone(reply):
            self.is_done = True
            if self._wait is not None:
                self._wait.drop()
            self._on_end(None)
            return
        if self._wait is not None:
            self._wait.leave() if has_left else self._wait.end()
        if not (self._is_copy or has_left):
            self._asked.reply(reply)
        if reply.more:
            return
        self.is_done = True
        is_kept = not self._is_stream and len(reply.body) <= MOST_BYTES
        body = reply.body if is_kept else None
        names = {name.lower(): value for name, value in reply.headers}
        json_bytes = names.get(JSON_LENGTH, "")
        outcome = VersionResponse(reply.status, self._took_s, reply.content_type, body, json_bytes)
        self._on_end(None if has_left else outcome)

    def abandon(self) -> None:
        """End the client's connection where the rest of a stream cannot be had."""
        has_left = self.is_abandoned
        self.is_done = True
        if self._wait is not None:
            self._wait.end()
        if not self._is_copy:
            self._asked.abandon()
        # a client that leaves a stream in the middle says nothing against the version
        self._on_end(VersionResponse(200 if has_left else 502, self._took_s))


def _changed(head: Head, more: Mapping[bytes, bytes]) -> Head:
    """A head with other headers, of a request whose response has a body."""
    other = copy(head)
    for derived in ("headers", "wants_events"):
        other.__dict__.pop(derived, None)
    other.raw = {**head.raw, **more}
    other.method = "GET" if head.method == "HEAD" else head.method
    return other


def _tells_of_no_version(reply: Reply) -> bool:
    """Whether a response is the server's own; the engine's have their status as code."""
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(body, dict) and body.get("code") in (*_GONE, reply.status)


def _forget(_outcome: VersionResponse | None) -> None:
    """Count nothing: the request is not in the share."""


class Split:
    """Answers the requests of models on trial.

    Args:
        loop: The event loop.
        limits: How long a worker may be silent.
        seats: The workers, and the trials.
        place: Takes a connection's descriptor, and what was read of it, to whom it belongs.
        failures: Gets each error that no worker gives.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        seats: Seats,
        place: Callable[[int, bytes], None],
        failures: Failures,
    ) -> None:
        self._loop, self._limits, self._seats, self._place = loop, limits, seats, place
        self._failures = failures
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: dict[tuple[str, str], list[tuple[Relay, float]]] = {}  # the oldest first
        self._copies = self._copy_bytes = self._comparing = 0
        self._thread = ThreadPoolExecutor(1, "likeness")  # starts with the first comparison

    def takes(self, route: routes.Route) -> bool:
        """Whether a request is answered here: it names no version, and its model is on trial."""
        return route.version is None and self._seats.trials.of(route.model) is not None

    def answer(self, exchange: Exchange, route: routes.Route) -> None:
        """Answer a request that `takes` takes."""
        trial = self._seats.trials.of(route.model)
        assert trial is not None  # noqa: S101  takes found it in this turn
        given, other = trial.order.default, None
        if route.kind == routes.PREDICT:
            given, other = trial.way(exchange.head.raw)
        if other is None:
            self._send(Leg(exchange), (route.model, given))
        elif not self._seats.is_served(route.model, trial.order.version):
            trial.figures.absent += 1
            self._send(Leg(exchange), (route.model, trial.order.default))
        else:
            pair = _Pair(trial, exchange, given, self._compare)
            gone = partial(self._is_gone, trial, exchange) if given != trial.order.default else None
            ways = [partial(self._give, exchange, pair, (route.model, given), gone)]
            if trial.is_level(given, other) and self._has_room(exchange):
                ways.append(partial(self._copy, exchange, pair, (route.model, other)))
            else:
                trial.figures.dropped += 1
            if random.random() < 0.5:  # noqa: S311, PLR2004  the later one waits for the processor
                ways.reverse()
            for send in ways:
                send()

    def _is_gone(self, trial: RunningTrial, exchange: Exchange, reply: Reply) -> bool:
        """Whether the new version has gone meanwhile; then the default one answers its client."""
        order = trial.order
        if reply.status not in _NONE:
            return False
        # what the engine has removed just now is not known here yet
        if not _tells_of_no_version(reply) and self._seats.is_served(order.model, order.version):
            return False
        trial.figures.absent += 1
        self._send(Leg(exchange), (order.model, order.default))
        return True

    def _give(
        self,
        exchange: Exchange,
        pair: "_Pair",
        named: tuple[str, str],
        gone: Callable[[Reply], bool] | None,
    ) -> None:
        wait = pair.trial.begin(named[1])
        leg = Leg(exchange, pair.ended(named[1]), wait, is_gone=gone, pair=pair)
        self._send(leg, named)

    def _has_room(self, exchange: Exchange) -> bool:
        size = self._copy_bytes + len(exchange.body)
        return self._copies < MOST_COPIES and size <= MOST_COPY_BYTES

    def _copy(self, exchange: Exchange, pair: "_Pair", named: tuple[str, str]) -> None:
        size, noted = len(exchange.body), pair.ended(named[1])
        self._copies, self._copy_bytes = self._copies + 1, self._copy_bytes + size

        def ended(outcome: VersionResponse | None) -> None:
            self._copies, self._copy_bytes = self._copies - 1, self._copy_bytes - size
            noted(outcome)

        pair.waits = 2
        wait = pair.trial.begin(named[1])
        self._send(Leg(exchange, ended, wait, is_copy=True, pair=pair), named)

    def _send(self, leg: Leg, named: tuple[str, str]) -> None:
        """Send a request to a worker of a model's version."""
        head = leg.head
        target = routes.versioned(head.path, named[1])
        if head.query:
            target += b"?" + head.query
        if idle := self._idle.get(named):
            relay, _ = idle.pop()
            relay.again(leg, target)
            return
        failed = partial(self._failures.add, *named)
        relay = Relay(leg, self._limits, partial(self._rest, named), keeps=True, on_failure=failed)
        task = self._loop.create_task(relay.start_here(target, self._place))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _rest(self, named: tuple[str, str], relay: Relay) -> None:
        """Keep a connection for the next request, or forget it."""
        idle = self._idle.setdefault(named, [])
        if relay.is_lost:
            idle[:] = [one for one in idle if one[0] is not relay]
        else:
            idle.append((relay, self._loop.time()))

    def expire(self) -> None:
        """Close connections that were idle for long."""
        before = self._loop.time() - _IDLE_S
        for named, idle in list(self._idle.items()):
            for relay, since in list(idle):
                if since < before:
                    relay.close()
            self._idle[named] = [one for one in idle if one[1] >= before]
            if not self._idle[named]:
                del self._idle[named]

    def _compare(
        self,
        trial: RunningTrial,
        asked: Exchange,
        default: VersionResponse,
        new: VersionResponse,
    ) -> None:
        """Compare, on a thread where bodies are parsed: that must not make other clients wait."""
        name = asked.id.decode("latin-1")
        at_once = known(new, default)
        if at_once is None and self._comparing >= _MOST_COMPARING:
            at_once = Likeness(None)
        if at_once is not None:
            trial.figures.note_likeness(name, at_once)
            return
        self._comparing += 1

        def note(found: Likeness) -> None:
            self._comparing -= 1
            trial.figures.note_likeness(name, found)

        def done(compared: "Future[Likeness]") -> None:
            failed = compared.cancelled() or compared.exception() is not None
            found = Likeness(None) if failed else compared.result()
            self._loop.call_soon_threadsafe(note, found)

        kind = asked.head.raw.get(b"content-type", b"").decode("latin-1")
        told = partial(compare, request=asked.body, request_type=kind)
        self._thread.submit(told, new, default, trial.order).add_done_callback(done)

    def close(self) -> None:
        """Begin no more."""
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Pair:
    """The responses of both versions to one request.

    Args:
        trial: Counts them.
        asked: The request.
        given: The version whose response the client gets.
        compare: Compares them.
    """

    def __init__(
        self,
        trial: RunningTrial,
        asked: Exchange,
        given: str,
        compare: Callable[[RunningTrial, Exchange, VersionResponse, VersionResponse], None],
    ) -> None:
        self.trial, self._asked, self._given, self._compare = trial, asked, given, compare
        self._outcomes: dict[str, VersionResponse | None] = {}
        self.waits, self.has_left = 1, False

    def ended(self, version: str) -> Callable[[VersionResponse | None], None]:
        """What notes a version's response."""

        def note(outcome: VersionResponse | None) -> None:
            self._outcomes[version] = outcome
            self.waits -= 1
            if not self.waits:
                self._note()

        return note

    def _note(self) -> None:
        order = self.trial.order
        default, new = map(self._outcomes.get, (order.default, order.version))
        self.trial.figures.note(default, new)
        if default is not None and new is not None:
            self._compare(self.trial, self._asked, default, new)
