"""One HTTP exchange with TorchServe as plain data: no sockets, so that every client shares it.

A *flow* is a generator that yields calls and pauses, is sent the answers, and returns what the
caller asked for. A client runs flows on a transport of its own; a transport's error is thrown
into the flow at the place where it waits, so a flow can undo what it began.
"""

import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import orjson

from marship.errors import (
    MarshipError,
    NotFoundError,
    NotRunningError,
    RequestError,
    ServerError,
    TokenError,
    TooLargeError,
    UsageError,
    WorkerDiedError,
    kinds,
)

T = TypeVar("T")
Side = Literal["inference", "management", "metrics"]
"""Which of the server's addresses."""

LINES_TYPE = "application/jsonl"
OK, BAD_REQUEST, NOT_FOUND, TOO_LARGE, SERVER_FAULT = 200, 400, 404, 413, 500
REFUSED_TOKEN = "InvalidKeyException"  # noqa: S105  the type that TorchServe gives a refusal
_NO_SUCH_PATH = "ResourceNotFoundException"
_SHOWN_BYTES = 300
_DIED = "Worker died"
_DEATHS = (_DIED, "Worker scaled down")  # WorkerThread.java, with status 500 or 507
_ADVICE = {  # what to do, by the type that TorchServe gives its errors
    "ConflictStatusException": "Unregister it first, or package another version.",
    "InvalidModelVersionException": "Make another version the default first.",
    "InternalServerException": "The reason is in the worker's log: marship logs",
    "MethodNotAllowedException": "Set enable_model_api=true in config.properties.",
    "ServiceUnavailableException": "Its workers may also be busy: retry, or scale it up.",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request: where to, what, and with which token."""

    side: Side
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    streams: bool = False  # whether the answer's lines are wanted as they come
    repeats: bool = False  # whether it may be retried

    def with_token(self, token: str | None) -> "Call":
        """The same call that proves who asks."""
        if token is None:
            return self
        return replace(self, headers={**self.headers, "Authorization": f"Bearer {token}"})


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long before going on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Blocking local work, run in a thread by asyncio."""

    run: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. The headers' names are in lower case.

    A stream has no body but lines, to be iterated as the transport is used: blocking or awaiting.
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
        """Whether the body is lines of JSON: a model that does not stream answers as ever."""
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
                f"the server's answer must be JSON, got {self.body[:_SHOWN_BYTES]!r}."
            ) from error


Step = Call | Pause | Work
Flow = Generator[Step, Any, T]
"""Yields steps, is sent an `Answer` for each call and what work came to, returns a result."""


class Destination(Protocol):
    """The server that calls go to.

    Attributes:
        tls: Whom to trust; None is whom the system trusts.
    """

    tls: ssl.SSLContext | None

    def url(self, call: Call) -> str:
        """The address of a call, without its parameters."""

    def check_peer(self, base: str, line: Any) -> None:  # noqa: ANN401  a socket or asyncio's
        """Make sure that a new connection ends at the server that is meant."""

    def not_reachable(self, url: str) -> NotRunningError:
        """The error for a connection that could not be made."""


def path(*parts: str) -> str:
    """A path of these parts, each quoted.

    Raises:
        UsageError: A part cannot be sent: it has half of a surrogate pair.
    """
    try:
        return "".join(f"/{quote(part, safe='')}" for part in parts)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a name or a version must be text that UTF-8 can hold, got {error.object!r}."
        ) from error


class Lines:
    """Lines of a body that arrives in chunks."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in the next chunk."""
        if b"\n" not in data:
            self._pieces.append(data)
            return []
        *lines, rest = b"".join([*self._pieces, data]).split(b"\n")
        self._pieces = [rest]
        return [line for line in lines if line]

    def end(self) -> list[bytes]:
        """What no line end follows."""
        return self.feed(b"\n")


def line_value(line: bytes) -> Any:  # noqa: ANN401  any JSON value
    """The value of a stream's line.

    Raises:
        MarshipError: It tells an error, or is not JSON.
    """
    value = Answer(OK, {}, line).json()
    if isinstance(value, dict) and isinstance(value.get("code"), str) and "message" in value:
        raise _error_class(SERVER_FAULT, value)(str(value["message"]))
    return value


def is_token_refused(answer: Answer) -> bool:
    """Whether the token was not accepted: TorchServe answers 400 for that, the proxy 401."""
    problem = _problem(answer)
    if answer.status == TokenError.status:
        return problem.get("code") == TokenError.code
    return answer.status == BAD_REQUEST and problem.get("type") == REFUSED_TOKEN


def is_of_another_api(answer: Answer, side: Side) -> bool:
    """Whether nobody at the address knows such a path, as told from a model that is not known.

    Of a prediction a handler, too, may say "not found", with a code of its own.
    """
    if answer.status != NOT_FOUND:
        return False
    kind = _problem(answer).get("type")
    return kind == _NO_SUCH_PATH or (side != "inference" and not isinstance(kind, str))


def is_death(answer: Answer) -> bool:
    """Whether the worker crashed while handling the request; a handler's own 500 does not count."""
    return answer.status >= SERVER_FAULT and _tells_death(_problem(answer))


def may_be_timeout(answer: Answer) -> bool:
    """Whether TorchServe may have ended the worker for being too slow.

    It says then what it says of a worker that crashed: the time that it took must tell.
    """
    return is_death(answer) and str(_problem(answer).get("message")).startswith(_DIED)


def _tells_death(problem: Mapping[str, Any]) -> bool:
    said = str(problem.get("message"))
    return problem.get("type") == "InternalServerException" and said.startswith(_DEATHS)


def checked(answer: Answer) -> Answer:
    """Return the response, or raise the error it carries.

    Raises:
        MarshipError: Of the class that the answer's code or status names.
    """
    if answer.status < BAD_REQUEST:
        return answer
    problem = _problem(answer)
    said = problem.get("message") or problem.get("error") or _text(answer.body)
    message = str(said or f"the server answered {answer.status} and no message")
    advice = _ADVICE.get(str(problem.get("type")))
    if advice:
        message = f"{message.rstrip('.')}. {advice}"
    error = _error_class(answer.status, problem)(message)
    error.status = answer.status
    raise error


def _text(body: bytes) -> str:
    return body[:_SHOWN_BYTES].decode("utf-8", "replace")


def _problem(answer: Answer) -> dict[str, Any]:
    try:
        problem = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _error_class(status: int, problem: Mapping[str, Any]) -> type[MarshipError]:
    code = problem.get("code")
    if isinstance(code, str):  # our own, of a handler or the proxy; TorchServe repeats the status
        for kind in (*kinds(RequestError), *kinds(ServerError)):
            if kind.code == code:
                return kind
    if problem.get("type") == REFUSED_TOKEN:
        return TokenError
    if _tells_death(problem):
        return WorkerDiedError
    if status == NOT_FOUND:
        return NotFoundError
    if status == TOO_LARGE:
        return TooLargeError
    return RequestError if status < SERVER_FAULT and isinstance(code, str) else ServerError
