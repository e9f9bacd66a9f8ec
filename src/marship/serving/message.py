"""Requests and replies, exchanged between hosts and handlers."""

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from marship.errors import MarshipError, UnsupportedError

logger = logging.getLogger(__name__)

JSON_TYPE = "application/json"
OK = "ok"
"""The outcome of a request that got what it asked for."""
_WELL = 200  # a member of an enum takes longer to find
MAX_FORM_FIELDS = 1000
"""Each field costs the worker about a microsecond, in which it is blocked."""

MAX_REQUEST_BYTES = MAX_RESPONSE_BYTES = 6_553_500
"""The default limit of requests and responses for hosts without limits of their own."""


@dataclass(slots=True)
class Request:
    """One request.

    Attributes:
        body: The bytes; a host may have parsed JSON already.
        content_type: The body's content type; empty if none was sent.
        name: The body's name: `body`, or the multipart field's.
        fields: Query parameters and further multipart fields, by name; repeated ones are
            `<name>#2` and so on.
        field_count: The number of parameters received, including the body. If it exceeds the
            limit none is kept, and the request must be rejected.
        id: The host's id of the request.
        headers: The HTTP headers, names in lower case.
        explains: Whether an explanation of the prediction is wanted.
    """

    body: Any
    content_type: str = ""
    name: str = "body"
    fields: Mapping[str, Any] = field(default_factory=dict)
    field_count: int = 1
    id: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    explains: bool = False

    def parameter(self, name: str) -> str | None:
        """A query parameter, or a form's field of that name, as text; None if it was not sent."""
        value = self.fields.get(name)
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value).decode("utf-8", "replace")
        return None if value is None else str(value)

    def header(self, name: str) -> str | None:
        """One HTTP header, case-insensitive; None if it was not sent."""
        return self.headers.get(name.lower())


@dataclass(slots=True)
class Reply:
    """One response, or a part of one that is streamed; an error is one too.

    Attributes:
        body: The bytes.
        content_type: The body's content type.
        status: The HTTP status.
        headers: Further headers.
        more: Whether another part of the same response follows.
        code: Of an error, its stable code.
    """

    body: bytes
    content_type: str = JSON_TYPE
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    more: bool = False
    code: str = ""

    @property
    def outcome(self) -> str:
        """What metrics count it as: `OK`, an error's code, or a handler's own status."""
        return self.code or (OK if self.status < HTTPStatus.BAD_REQUEST else f"http_{self.status}")

    def all_headers(self, timing: str) -> dict[str, str]:
        """The headers, including those of every response."""
        return {"content-type": self.content_type, "Server-Timing": timing, **dict(self.headers)}


def failures(replies: Sequence[Reply]) -> list[str]:
    """The outcomes that are errors."""
    return [code for code in outcomes(replies) if code != OK]


def outcomes(replies: Sequence[Reply]) -> list[str]:
    """The outcome of each; empty where all are well, which is found out sooner."""
    for reply in replies:
        if reply.status != _WELL:
            return [each.outcome for each in replies]
    return []


def checked(reply: Reply) -> Reply:
    """Find a handler's mistake here, where it is one request's: a host would fail on the batch."""
    body = reply.body if isinstance(reply, Reply) else None
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"encode must return a Reply whose body is bytes, got {reply!r:.200}")
    return reply


def no_explanation() -> UnsupportedError:
    """The refusal of a request for an explanation."""
    return UnsupportedError(
        "a request must be for a prediction, got one for an explanation, which models here do not "
        "give. Send it to /predictions/MODEL."
    )


def hidden(step: str, error: MarshipError | None = None) -> MarshipError:
    """Log an internal error, or the current exception; the client only gets a reference id."""
    reference = uuid.uuid4().hex[:12]
    logger.error("request failed to %s, reference %s", step, reference, exc_info=error or True)
    return MarshipError(
        f"the server must {step} every valid request, and failed. "
        f"Its log has the reason under reference {reference}."
    )
