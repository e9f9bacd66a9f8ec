"""Spans of traced requests that an acceptor answers itself, or passes on one by one.

What it hands over with its connection it does not see any more: the worker sends that span, too.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from http import HTTPStatus

from marship.serving.hosts.direct import http_span, routes, traces
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.seats import Seats
from marship.serving.hosts.direct.traces import Attributes, Parent, TimedStep, Tracer
from marship.serving.message import Reply

_TRACED = (routes.PREDICT, routes.EXPLAIN)


class Spans:
    """Sends spans of an acceptor.

    Args:
        seats: Knows which version is meant.
    """

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._tracer: Tracer | None = None

    def share(self, variables: Mapping[str, str]) -> None:
        """Trace as the workers do.

        Args:
            variables: Of their environment.
        """
        resource: Attributes = {"service.name": "marship", "process.pid": os.getpid()}
        self._tracer = traces.told(variables, resource)

    def begin(self, exchange: Exchange) -> None:
        """Begin the span of a request; whoever gets it from here does its part below that."""
        is_traced = exchange.route is None or exchange.route.kind in _TRACED
        if self._tracer is None or not is_traced:  # chance would choose what probes ask
            return
        parent = self._tracer.parent(exchange.trace, exchange.head.raw.get(b"tracestate", b""))
        if parent is None:
            return
        own = replace(parent, span=traces.new_id())
        exchange.trace = own.header
        exchange.on_end = partial(self._end, exchange, parent, own.span, time.perf_counter())

    def _end(
        self, exchange: Exchange, parent: Parent, own: str, came_s: float, reply: Reply | None
    ) -> None:
        assert self._tracer is not None  # noqa: S101  it began
        reply = reply or Reply(b"", status=HTTPStatus.BAD_GATEWAY, code="no_answer")
        facts = dict(http_span.facts_of(exchange, reply))
        if exchange.route is not None:
            model, version = self._seats.named(exchange.route.model, exchange.route.version)
            facts |= {"marship.model.name": model, "marship.model.version": version}
        if exchange.is_abandoned:  # nobody has got this status
            facts.pop("http.response.status_code")
            facts["error.type"] = "client_left"
        failed = reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not exchange.is_abandoned
        whole = TimedStep(http_span.name_of(exchange), came_s, time.perf_counter())
        self._tracer.add(parent, whole, (), facts, failed=failed, own=own)
