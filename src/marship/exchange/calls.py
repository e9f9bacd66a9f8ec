"""One HTTP exchange as plain data, without I/O, shared by the blocking and asyncio clients.

A *flow* is a generator that yields calls and pauses, is sent the responses, and returns a result.
Each client runs flows on its own transport; a transport's error is thrown into the flow where it
is suspended, so that a flow can clean up.
"""

import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import orjson

from marship.errors import (
    MarshipError,
    NotRunningError,
    RequestError,
    ServerError,
    UsageError,
    kinds,
)

T = TypeVar("T")
Side = Literal["inference", "management", "metrics"]
"""Which of the server's APIs."""

LINES_TYPE = "application/jsonl"
OK, BAD_REQUEST, SERVER_FAULT = 200, 400, 500
_SHOWN_BYTES = 300


@dataclass(frozen=True, slots=True)
class Call:
    """A request: API, method, path, parameters, headers and body."""

    side: Side
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    streams: bool = False  # whether to stream the response's lines
    is_retryable: bool = False  # whether it may be retried

    def with_token(self, token: str | None) -> "Call":
        """The same call with a bearer token."""
        if token is None:
            return self
        return replace(self, headers={**self.headers, "Authorization": f"Bearer {token}"})


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long before continuing."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Blocking local work, run in a thread by asyncio."""

    run: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response. Header names are in lower case.

    A streamed response has lines in place of a body: an iterator, or an async iterator.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    lines: Any = None

    @property
    def content_type(self) -> str:
        """The media type without its parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def has_lines(self) -> bool:
        """Whether the body is JSON lines: a model that does not stream sends a plain response."""
        return self.status < BAD_REQUEST and self.content_type == LINES_TYPE

    def json(self) -> Any:  # noqa: ANN401  any JSON value
        """The decoded body.

        Raises:
            ServerError: It is not JSON.
        """
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise ServerError(
                f"the server's response must be JSON, got {self.body[:_SHOWN_BYTES]!r}."
            ) from error

    @property
    def error(self) -> dict[str, Any]:
        """The JSON object in the body of an error; empty for any other body."""
        try:
            content = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def text(self) -> str:
        """The start of the body as text."""
        return self.body[:_SHOWN_BYTES].decode("utf-8", "replace")


Step = Call | Pause | Work
Flow = Generator[Step, Any, T]
"""Yields steps, is sent each call's `HttpResponse` or the work's result, and returns a result."""


class Destination(Protocol):
    """The server that calls are sent to.

    Attributes:
        tls: The trusted CA certificates; None is the system's.
    """

    tls: ssl.SSLContext | None

    def url(self, call: Call) -> str:
        """The URL of a call, without its query parameters."""

    def check_peer(self, base: str, line: Any) -> None:  # noqa: ANN401  a socket or asyncio's
        """Make sure that a new connection is to the intended server."""

    def not_reachable(self, url: str) -> NotRunningError:
        """The error for a connection that failed."""


def path(*parts: str) -> str:
    """A path of these segments, each percent-encoded.

    Raises:
        UsageError: A segment has a lone surrogate, which UTF-8 cannot encode.
    """
    try:
        return "".join(f"/{quote(part, safe='')}" for part in parts)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a name or a version must be text that UTF-8 can hold, got {error.object!r}."
        ) from error


class Lines:
    """Splits a body that arrives in chunks into lines."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that the next chunk completes."""
        if b"\n" not in data:
            self._chunks.append(data)
            return []
        *lines, rest = b"".join([*self._chunks, data]).split(b"\n")
        self._chunks = [rest]
        return [line for line in lines if line]

    def end(self) -> list[bytes]:
        """The last line, if it has no line end."""
        return self.feed(b"\n")


def line_value(line: bytes) -> Any:  # noqa: ANN401  any JSON value
    """The value of a line of a streamed response.

    Raises:
        MarshipError: The line is an error message, or is not JSON.
    """
    value = HttpResponse(OK, {}, line).json()
    if isinstance(value, dict) and isinstance(value.get("code"), str) and "message" in value:
        raise (own_error(value) or ServerError)(str(value["message"]))
    return value


def own_error(content: Mapping[str, Any]) -> type[MarshipError] | None:
    """The class of our own errors with the code in an error's JSON; None for another's."""
    for kind in (*kinds(RequestError), *kinds(ServerError)):
        if kind.code == content.get("code"):
            return kind
    return None
