"""Answers that are errors become the class that says what to do."""

import json

import pytest

from marship.errors import (
    InvalidInputError,
    MarshipError,
    NotFoundError,
    NotRunningError,
    RateLimitError,
    RequestError,
    ServerError,
    TokenError,
    TooLargeError,
    UnsupportedMediaError,
)
from marship.exchange.calls import Call, HttpResponse, checked, path


def answer(status: int, body: object) -> HttpResponse:
    """A response with a JSON body, or the text itself."""
    text = body if isinstance(body, str) else json.dumps(body)
    return HttpResponse(status, {"content-type": "application/json; charset=UTF-8"}, text.encode())


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"code": "invalid_input", "message": "m"}, InvalidInputError, "^m$"),
        (415, {"code": "unsupported_media", "message": "m"}, UnsupportedMediaError, "^m$"),
        (400, {"code": "of_a_later_version", "message": "m"}, RequestError, "^m$"),
        (500, {"code": "internal", "message": "m"}, ServerError, "^m$"),
        (429, {"code": "rate_limit", "message": "m"}, RateLimitError, "^m$"),
        (401, {"code": "token", "message": "m"}, TokenError, "^m$"),
        (502, {"code": "not_running", "message": "m"}, NotRunningError, "^m$"),
        (400, {"code": 400, "type": "InvalidKeyException", "message": "m"}, TokenError, "m"),
        (404, {"code": 404, "type": "ModelNotFoundException", "message": "m"}, NotFoundError, "m"),
        (409, {"code": 409, "type": "ConflictStatusException", "message": "m."}, ServerError,
         r"^m\. Unregister it first"),
        (405, {"code": 405, "type": "MethodNotAllowedException", "message": "m"}, ServerError,
         "enable_model_api=true"),
        (413, "", TooLargeError, "the server responded with status 413 and no message"),
        (502, "<html>", ServerError, "<html>"),
        (400, "[1]", ServerError, r"\[1\]"),
    ],
)  # fmt: skip
def test_errors_by_code_type_and_status(
    status: int, body: object, kind: type[MarshipError], message: str
) -> None:
    """Our stable code decides first, then TorchServe's type, then the status."""
    with pytest.raises(MarshipError, match=message) as caught:
        checked(answer(status, body))
    assert type(caught.value) is kind


def test_what_is_no_error_passes() -> None:
    """The answer itself, with its media type and its value."""
    good = checked(answer(200, {"a": 1}))
    assert good.content_type == "application/json"
    assert good.json() == {"a": 1}
    with pytest.raises(ServerError, match="must be JSON"):
        answer(200, "{").json()


def test_names_are_quoted_in_paths() -> None:
    """A name cannot lead out of its place."""
    assert path("models", "../x", "1.0?a") == "/models/..%2Fx/1.0%3Fa"


def test_a_token_is_sent_as_bearer() -> None:
    """And no header where there is none."""
    call = Call("inference", "GET", "/ping")
    assert call.with_token("t").headers == {"Authorization": "Bearer t"}
    assert call.with_token(None) is call
