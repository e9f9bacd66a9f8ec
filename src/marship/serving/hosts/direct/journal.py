"""What is written down of requests: a line of the request log, spans, and samples of them."""

import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus

from marship.serving.hosts.direct import http_span, request_log, traces
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.request_log import RequestLog
from marship.serving.hosts.direct.samples import SampleWriter
from marship.serving.hosts.direct.traces import Attributes, Parent, TimedStep, Tracer
from marship.serving.message import Reply

_TIMES = re.compile(r"(\w+);dur=([\d.]+)")


class Journal:
    """Writes requests of one worker down.

    Args:
        model: The model's name.
        version: Its version.
        log: Gets a line for each; None is none.
        tracer: Gets spans of some; None is none.
        sampler: Keeps some of those that are done; None is none.

    Attributes:
        handed: When the acceptor got the first request of a connection, and when it handed that
            over; until the request is done. The first is None where it has a span of its own.
    """

    def __init__(
        self,
        model: str,
        version: str,
        log: RequestLog | None,
        tracer: Tracer | None,
        sampler: SampleWriter | None = None,
    ) -> None:
        self._facts = {"model": model, "version": version}
        self._log, self._tracer, self._sampler = log, tracer, sampler
        self.handed: dict[object, tuple[float | None, float]] = {}

    def add(
        self, batch: Sequence[Exchange], replies: Sequence[Reply], began_s: float, timing: str
    ) -> None:
        """Write down a batch that is done.

        Args:
            batch: Its requests.
            replies: The response to each, or the last part of it.
            began_s: When it began, by `time.perf_counter`.
            timing: The Server-Timing of its steps; empty where there was none.
        """
        if self._sampler is not None:
            self._sampler.add(batch, replies)
        if self._log is None and self._tracer is None:
            return
        now = time.perf_counter()
        steps_ms = {name: float(ms) for name, ms in _TIMES.findall(timing)}
        for exchange, reply in zip(batch, replies, strict=True):
            arrival = self.handed.pop(exchange.outlet, None) if self.handed else None
            state = exchange.head.raw.get(b"tracestate", b"")
            parent = self._tracer.parent(exchange.trace, state) if self._tracer else None
            if parent is not None:
                steps = _steps(exchange.came_s, began_s, steps_ms, arrival)
                self._trace(parent, exchange, reply, steps, arrival, now, len(batch))
            if self._log is not None:
                self._write(parent, exchange, reply, began_s, now, steps_ms, len(batch))

    def refused(self, exchange: Exchange, reply: Reply) -> None:
        """Write down a request that no batch has had."""
        exchange.came_s = now = exchange.came_s or time.perf_counter()
        self.add([exchange], [reply], now, "")

    def lost(self, reply: Reply) -> None:
        """Write down a request of which only the error is known: a worker had read it, or nobody.

        Args:
            reply: What its client got.
        """
        if self._log is not None:
            self._log.add({**self._began(), "status": reply.status, "code": reply.outcome})

    def _began(self) -> dict[str, object]:
        return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **self._facts}

    def _trace(  # noqa: PLR0913, PLR0917  what is known of a request
        self,
        parent: Parent,
        exchange: Exchange,
        reply: Reply,
        steps: Sequence[TimedStep],
        arrival: tuple[float | None, float] | None,
        now: float,
        size: int,
    ) -> None:
        assert self._tracer is not None  # noqa: S101  else nothing has a parent
        name, facts = http_span.name_of(exchange), http_span.facts_of(exchange, reply)
        own: Attributes = {"marship.batch.size": size}
        failed = reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        came_s, handed_s = arrival or (None, 0.0)
        whole = TimedStep(name, steps[0].began_s, now)
        if came_s is None:
            self._tracer.add(parent, whole, steps, {**facts, **own}, failed=failed)
            return
        # The acceptor's: it does not see the response, and sends no span of what it hands over.
        seat = TimedStep("seat", came_s, handed_s)
        above = self._tracer.add(parent, TimedStep(name, came_s, now), [seat], facts, failed=failed)
        whole = TimedStep("worker", whole.began_s, now)
        self._tracer.add(above, whole, steps, own, failed=failed, kind=traces.INTERNAL)

    def _write(  # noqa: PLR0913, PLR0917  what is known of a request
        self, parent: Parent | None, exchange: Exchange, reply: Reply, began_s: float, now: float,
        steps_ms: dict[str, float], size: int,
    ) -> None:  # fmt: skip
        assert self._log is not None  # noqa: S101  else it is not called
        row: dict[str, object] = {
            **self._began(),
            "id": exchange.id.decode("latin-1"),
            "method": exchange.head.method,
            "path": exchange.head.path.decode("latin-1"),
            "status": reply.status,
            "code": reply.outcome,
            "request_bytes": len(exchange.body),
            "response_bytes": len(reply.body),
            "batch": size,
            "queue_ms": round(1e3 * (began_s - exchange.came_s), 3),
            **{f"{name}_ms": ms for name, ms in steps_ms.items()},
            "total_ms": round(1e3 * (now - exchange.came_s), 3),
        }
        if parent is not None:
            row["trace"] = parent.trace
        if self._log.has_bodies:
            row |= {
                "request": request_log.shown(exchange.body),
                "response": request_log.shown(reply.body),
            }
        self._log.add(row)


def _steps(
    came_s: float,
    began_s: float,
    steps_ms: dict[str, float],
    arrival: tuple[float | None, float] | None,
) -> list[TimedStep]:
    """The parts of a request: from the acceptor, if it is a connection's first, to encoding."""
    steps = [] if arrival is None else [TimedStep("accept", arrival[1], came_s)]
    steps.append(TimedStep("queue", came_s, began_s))
    for name, ms in steps_ms.items():
        ended_s = began_s + ms / 1e3
        steps.append(TimedStep(name, began_s, ended_s))
        began_s = ended_s
    return steps


def told(model: str, version: str, sampler: SampleWriter | None = None) -> Journal | None:
    """The journal that the environment asks for; None where nothing is written down."""
    resource: Attributes = {
        "service.name": "marship",
        "marship.model.name": model,
        "marship.model.version": version,
        "process.pid": os.getpid(),
    }
    log, tracer = request_log.told(os.environ), traces.told(os.environ, resource)
    return Journal(model, version, log, tracer, sampler) if log or tracer or sampler else None
