"""The statuses and codes of errors: what any model's server may refuse, and with what."""

from collections.abc import Mapping, Sequence
from typing import Any

from marship.serving.openapi.interface import Schema

ANY: Mapping[str, tuple[str, Sequence[str]]] = {
    "401": ("The inference token is missing, wrong or expired.", ("token",)),
    "404": ("No such path, model or version.", ("not_found",)),
    "405": ("The path does not have this method.", ("method", "bad_request")),
    "408": ("The request came too slowly.", ("timeout",)),
    "413": ("A request, or the response to it, is too large.", ("too_large",)),
    "414": ("The path is too long.", ("too_large",)),
    "417": ("Expect must be 100-continue.", ("bad_request",)),
    "431": ("The headers are too large, or too many.", ("too_large",)),
    "500": ("A fault of the server; its log has the reason.", ("internal",)),
    "501": ("What this server does not do.", ("unsupported", "bad_request")),
    "503": (
        "No worker can take the request at the moment.",
        ("busy", "no_worker", "worker_died", "scaled_to_zero"),
    ),
    "504": ("The model took longer than its timeout.", ("response_timeout",)),
    "505": ("HTTP must be 1.1.", ("bad_request",)),
}
"""By status, of any request."""
PREDICTION: Mapping[str, tuple[str, Sequence[str]]] = {
    "400": ("The request violates the contract.", ("malformed", "invalid_input", "bad_request")),
    "415": ("Another media type or encoding than the model takes.", ("unsupported_media",)),
}
"""By status, of requests with a body."""
_MALFORMED = {"400": ("The request is no HTTP that this server takes.", ("malformed",))}

SCHEMA: Schema = {
    "type": "object",
    "description": "Branch on the code, never on the message.",
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "expects": {"description": "What a request should look like."},
        "error": {"type": "string", "description": "The message again, at paths of KServe."},
    },
    "required": ["code", "message"],
}


def components() -> dict[str, Any]:
    """The responses that operations refer to."""
    named = {**ANY, **PREDICTION}
    return {
        **{f"Refused{status}": response(*what) for status, what in named.items()},
        "Malformed": response(*_MALFORMED["400"]),
    }


def response(about: str, codes: Sequence[str]) -> dict[str, Any]:
    """One response with an error."""
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Error"},
            {"properties": {"code": {"enum": list(codes)}}},
        ]
    }
    shown = f"{about} Codes: {', '.join(codes)}."
    return {"description": shown, "content": {"application/json": {"schema": schema}}}


def of_reading() -> dict[str, Any]:
    """The errors of paths that take no body."""
    found = {status: {"$ref": f"#/components/responses/Refused{status}"} for status in ANY}
    return {**found, "400": {"$ref": "#/components/responses/Malformed"}}


def of_prediction(more: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The errors of predictions.

    Args:
        more: Codes that a model has beside those of all, by status.
    """
    known = {**ANY, **PREDICTION}
    found: dict[str, Any] = {
        status: {"$ref": f"#/components/responses/Refused{status}"} for status in known
    }
    for status, codes in more.items():
        about, usual = known.get(status, ("The model refuses the request.", ()))
        found[status] = response(about, (*usual, *codes))
    return found
