"""Spans of requests, sent to a collector by OTLP over HTTP.

Form: OpenTelemetry Protocol 1.5, JSON Protobuf encoding; W3C Trace Context, 3.2. A request is
traced if its client says so, or, where it says nothing, by chance. All else costs a comparison.
"""

import http.client
import json
import logging
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

TRACES_VARIABLE = "MARSHIP_TRACES"
"""JSON: the collector's URL, the share of requests that are traced, and headers for the collector;
set by the host."""
_PARENT = re.compile(
    rb"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})"  # only a later version may have more behind it
    rb"-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
INTERNAL, SERVER = 1, 2
"""Kinds of spans."""
_FAILED = 2
_MOST_WAITING, _MOST_SENT, _SEND_S, _TIMEOUT_S = 4096, 512, 1.0, 5.0
_CLOCK_NS = time.time_ns() - time.perf_counter_ns()
"""What turns `time.perf_counter` into Unix time."""

Attributes = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Parent:
    """A trace that a request belongs to.

    Attributes:
        trace: Its id, 32 hexadecimal digits.
        span: The id of the span above; empty where the trace begins here.
        state: What tracing systems of the client say of it (tracestate).
    """

    trace: str
    span: str = ""
    state: str = ""

    @property
    def header(self) -> bytes:
        """The traceparent for what is done below its span."""
        return f"00-{self.trace}-{self.span}-01".encode()


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A part of a span.

    Attributes:
        name: What was done.
        began_s: By `time.perf_counter`.
        ended_s: Likewise.
    """

    name: str
    began_s: float
    ended_s: float


class Tracer:
    """Sends spans from a thread of its own; what cannot be sent is dropped.

    Args:
        url: The collector's, such as http://127.0.0.1:4318/v1/traces.
        share: Of requests whose clients say nothing, from 0 to 1.
        resource: What sends: its attributes.
        headers: Of each request to the collector.
    """

    def __init__(
        self, url: str, share: float, resource: Attributes, headers: Mapping[str, str] | None = None
    ) -> None:
        self._url, self._share = urlsplit(url), share
        self._headers = {**(headers or {}), "Content-Type": "application/json"}
        self._resource = {"attributes": _attributes(resource)}
        self._waiting: deque[dict[str, object]] = deque(maxlen=_MOST_WAITING)
        self._failed = False
        threading.Thread(target=self._run, name="traces", daemon=True).start()

    def parent(self, given: bytes, state: bytes = b"") -> Parent | None:
        """The trace of a request with this traceparent; None where it is not traced."""
        if given and (match := _PARENT.fullmatch(given)):
            if not int(match[3], 16) & 1:
                return None
            return Parent(match[1].decode(), match[2].decode(), state.decode("latin-1"))
        if self._share and random.random() < self._share:  # noqa: S311  no secret
            return Parent(os.urandom(16).hex())
        return None

    def add(  # noqa: PLR0913  each is a field of a span
        self,
        parent: Parent,
        whole: TimedStep,
        steps: Sequence[TimedStep],
        facts: Attributes,
        *,
        failed: bool,
        own: str = "",
        kind: int = SERVER,
    ) -> Parent:
        """Add a request.

        Args:
            parent: Its trace.
            whole: All of it.
            steps: Its parts.
            facts: Attributes, by OpenTelemetry's names where they have one.
            failed: Whether the fault is the server's.
            own: The span's id; a new one where it is empty.
            kind: SERVER, or INTERNAL below another span of the same server.

        Returns:
            What is above others that are done for it.
        """
        below = replace(parent, span=own or new_id())
        self._put(parent, below.span, whole, kind, facts, failed=failed)
        for step in steps:
            self._put(below, new_id(), step, INTERNAL, {}, failed=False)
        return below

    def _put(  # noqa: PLR0913  each is a field of a span
        self, above: Parent, own: str, step: TimedStep, kind: int, facts: Attributes,
        *, failed: bool,
    ) -> None:  # fmt: skip
        span: dict[str, object] = {
            "traceId": above.trace,
            "spanId": own,
            "name": step.name,
            "kind": kind,
            "startTimeUnixNano": _unix(step.began_s),
            "endTimeUnixNano": _unix(step.ended_s),
            "attributes": _attributes(facts),
            "status": {"code": _FAILED} if failed else {},
        }
        more = {"parentSpanId": above.span, "traceState": above.state}
        self._waiting.append(span | {name: text for name, text in more.items() if text})

    def _run(self) -> None:
        while True:
            time.sleep(_SEND_S)
            while self._waiting:
                count = min(_MOST_SENT, len(self._waiting))
                self._send([self._waiting.popleft() for _ in range(count)])

    def _send(self, spans: Sequence[object]) -> None:
        scope = {"scope": {"name": "marship"}, "spans": spans}
        body = {"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        line = kinds[self._url.scheme](self._url.netloc, timeout=_TIMEOUT_S)
        try:
            path = self._url.path or "/v1/traces"
            line.request("POST", path, json.dumps(body), self._headers)
            status = line.getresponse().status
            problem = f"status {status}" if status != HTTPStatus.OK else ""
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        finally:
            line.close()
        if problem and not self._failed:
            where = self._url.netloc
            logger.warning("spans must reach %s, got %s. They are dropped.", where, problem)
        self._failed = bool(problem)


def told(variables: Mapping[str, str], resource: Attributes) -> Tracer | None:
    """The tracer that an environment asks for, if it does.

    Args:
        variables: Of the environment.
        resource: What sends.
    """
    given = variables.get(TRACES_VARIABLE)
    if not given:
        return None
    asked = json.loads(given)
    return Tracer(asked["url"], float(asked["share"]), resource, asked.get("headers"))


def new_id() -> str:
    """The id of a span."""
    return os.urandom(8).hex()


def _unix(perf_s: float) -> str:
    """Nanoseconds since 1970, as a string, which JSON's numbers cannot hold."""
    return str(_CLOCK_NS + int(perf_s * 1e9))


def perf_s(unix_s: float) -> float:
    """A time of the clock on the wall as one of `time.perf_counter`."""
    return unix_s - _CLOCK_NS / 1e9


def _attributes(facts: Attributes) -> list[dict[str, object]]:
    return [
        {
            "key": name,
            "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value},
        }
        for name, value in facts.items()
    ]
