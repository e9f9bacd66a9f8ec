"""What a model takes and gives: made from its contract, or declared by its handler."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Schema = Mapping[str, Any]
"""A JSON Schema."""

TENSORS, PICTURE, RECORDING, TEXT, HISTORY, ENCRYPTED, OTHER = (
    "tensors", "picture", "recording", "text", "history", "encrypted", "other",
)  # fmt: skip
KINDS = (TENSORS, PICTURE, RECORDING, TEXT, HISTORY, ENCRYPTED, OTHER)
"""What a person has to give for a request: forms on a page are made by it."""


@dataclass(frozen=True, slots=True)
class BodyForm:
    """One form of the body of a request or a response.

    Attributes:
        content_type: Its media type.
        schema: Of its value.
        title: What the form is called; several of one media type need one each.
        examples: Values by name.
    """

    content_type: str
    schema: Schema
    title: str = ""
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interface:
    """What a model takes and gives.

    Attributes:
        kind: One of the kinds above.
        requests: The forms of a request.
        responses: The forms of a response with status 200.
        parameters: Of the query, each a Parameter Object of OpenAPI.
        codes: Codes of errors that few models have, by status.
        about: What a person should know of it, in CommonMark.

    Example:
        >>> Interface("text", (BodyForm("text/plain", {"type": "string"}),), ()).kind
        'text'
    """

    kind: str
    requests: tuple[BodyForm, ...]
    responses: tuple[BodyForm, ...]
    parameters: tuple[Mapping[str, Any], ...] = ()
    codes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    about: str = ""

    def facts(self) -> dict[str, Any]:
        """The same as a JSON value."""
        return asdict(self)


def opaque(advice: object) -> Interface:
    """The interface of a handler that declares none: any body, and what it advises."""
    said = f" It expects: {advice}" if advice is not None else ""
    return Interface(
        OTHER,
        (BodyForm("application/json", {}), BodyForm("application/octet-stream", {})),
        (BodyForm("application/json", {}), BodyForm("application/octet-stream", {})),
        about=f"The model's handler does not declare what it takes and gives.{said}",
    )
