"""Requests and replies as every host hands them to a handler and takes them from it."""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from marship.errors import MarshipError

logger = logging.getLogger(__name__)

JSON_TYPE = "application/json"
MAX_FORM_FIELDS = 1000
"""Each field costs the worker about a microsecond, in which it answers nobody else."""

MAX_REQUEST_BYTES = MAX_RESPONSE_BYTES = 6_553_500
"""The largest request and response where a host states no limits of its own."""


@dataclass(slots=True)
class Request:
    """One request.

    Attributes:
        body: The bytes; a host may have parsed JSON already.
        content_type: Of the body; empty where none was sent.
        name: Of the body: `body`, or the multipart field's.
        fields: Query parameters and further multipart fields, by name; where one comes again, it
            is `<name>#2` and so on.
        field_count: How many parameters came, the body among them. Of more than the limit none
            is kept, and the request must be refused.
        id: The host's name for the request.
        headers: The HTTP headers, names in lower case.
    """

    body: Any
    content_type: str = ""
    name: str = "body"
    fields: Mapping[str, Any] = field(default_factory=dict)
    field_count: int = 1
    id: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def header(self, name: str) -> str | None:
        """One HTTP header, whatever its case; None where it was not sent."""
        return self.headers.get(name.lower())


@dataclass(slots=True)
class Reply:
    """One response, or a part of one that is streamed; an error is one too.

    Attributes:
        body: The bytes.
        content_type: Of the body.
        status: HTTP's.
        headers: Further ones.
        more: Whether another part of the same response follows.
    """

    body: bytes
    content_type: str = JSON_TYPE
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    more: bool = False

    def all_headers(self, timing: str) -> dict[str, str]:
        """With those that every response has."""
        return {"content-type": self.content_type, "Server-Timing": timing, **dict(self.headers)}


def hidden(step: str, error: MarshipError | None = None) -> MarshipError:
    """Log the error, or the exception being handled; the client gets a reference to it alone."""
    reference = uuid.uuid4().hex[:12]
    logger.error("request failed to %s, reference %s", step, reference, exc_info=error or True)
    return MarshipError(
        f"the server must {step} every valid request, and failed. "
        f"Its log has the reason under reference {reference}."
    )
