"""Requests that an acceptor passes on to the engine, and errors of models that have no workers."""

import asyncio
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

import orjson

from marship.errors import (
    MarshipError,
    NotFoundError,
    RequestError,
    ScaledToZeroError,
    TooLargeError,
)
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.failures import Failures
from marship.serving.hosts.direct.limits import Limits, error_reply, unstaffed
from marship.serving.hosts.direct.relay import Relay
from marship.serving.hosts.direct.routes import Route
from marship.serving.hosts.direct.seats import Seats
from marship.serving.message import Reply

_UNAVAILABLE, _FAULT = int(HTTPStatus.SERVICE_UNAVAILABLE), 500
_CODES = {
    404: NotFoundError.code,
    405: "method",
    408: "timeout",
    413: TooLargeError.code,
    503: "no_worker",
    504: "response_timeout",
}
"""Of the engine's own errors; it says 503 of a full queue, too."""


class Relays:
    """Requests that are passed on to the engine.

    Args:
        loop: The event loop.
        limits: How long the engine may be silent.
        seats: The workers that need no engine.
        engine: Where it answers predictions; None: nowhere.
        failures: Gets each error that no worker gives.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        seats: Seats,
        engine: str | tuple[str, int] | None,
        failures: Failures,
    ) -> None:
        self._failures = failures
        self._loop, self._limits, self._seats, self._engine = loop, limits, seats, engine
        self._open: dict[Relay, Route] = {}
        self._abandoned: set[Relay] = set()  # of models that had no workers when last looked
        self._starting: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def takes(self, route: Route) -> bool:
        """Whether predictions go to the engine: it knows models before their workers."""
        return self._engine is not None and not self._seats.is_ending(route.model, route.version)

    def pass_on(self, exchange: Exchange, route: Route) -> None:
        """Pass a request on to the engine, and its response back."""
        assert self._engine is not None  # noqa: S101  check refuses without
        target = b"/predictions/" + quote(route.model, safe="").encode()
        if route.version is not None:
            target += b"/" + quote(route.version, safe="").encode()
        if exchange.head.query:
            target += b"?" + exchange.head.query
        named = (route.model, route.version)
        relay = Relay(
            exchange,
            self._limits,
            self._open.__delitem__,
            partial(self._explained, route),
            on_failure=lambda reply: self._failures.add(*named, reply, exchange),
        )
        self._open[relay] = route
        task = self._loop.create_task(relay.start(target, self._engine))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _explained(self, route: Route, reply: Reply) -> Reply:
        """The engine's response; its own errors with a code as ours have, and what to do."""
        named = (route.model, route.version)
        # one that is not known here was registered after the state was read
        is_closed = self._seats.is_registered(*named) and self._seats.is_closed(*named)
        if reply.status == _UNAVAILABLE and is_closed:
            return error_reply(no_worker(self._seats, route))
        return _named(reply) if reply.status >= HTTPStatus.BAD_REQUEST else reply

    def look(self) -> None:
        """End those that wait for a worker that nobody starts; the engine keeps them.

        What was sent after the engine's state was read may have a worker already: so each is
        looked at twice.
        """
        before, self._abandoned = self._abandoned, set()
        for relay, route in list(self._open.items()):
            if self._seats.is_closed(route.model, route.version):
                self._abandoned.add(relay)
                if relay in before:
                    relay.give_up(no_worker(self._seats, route))

    def close(self) -> None:
        """Begin no more."""
        for task in self._starting:
            task.cancel()


def _named(reply: Reply) -> Reply:
    """An error of the engine's own, whose code is its status, with the code that ours have.

    All else in it stays: clients tell by it whether a request may be sent again.
    """
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return reply
    if not isinstance(body, dict) or body.get("code") != reply.status:
        return reply  # a handler's
    fallback = MarshipError.code if reply.status >= _FAULT else RequestError.code
    code = _CODES.get(reply.status, fallback)
    return replace(reply, body=orjson.dumps({**body, "code": code}), code=code)


def no_worker(seats: Seats, route: Route) -> MarshipError:
    """The error of a model that has no worker here."""
    named = f"{route.model} version {route.version}" if route.version else route.model
    is_known = seats.is_registered(route.model, route.version)
    if seats.knows_models and not is_known:
        return NotFoundError(
            f"{named[:200]} must be registered, got no such model. See: marship models"
        )
    if seats.is_closed(route.model, route.version):
        return ScaledToZeroError.of(route.model, route.version)
    return unstaffed(route.model, route.version)
