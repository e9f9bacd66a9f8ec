"""TorchServe's error responses become the class that says what to do."""

import json

import pytest

from marship.engines.torchserve.problems import checked, crash
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
    WorkerDiedError,
)
from marship.exchange.calls import HttpResponse
from marship.exchange.retries import Crash


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
        (507, {"code": 507, "type": "InternalServerException", "message": "Worker died."},
         WorkerDiedError, "^Worker died. The reason is in the worker's log"),
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


def test_a_response_without_error_is_returned() -> None:
    """Unchanged."""
    good = answer(200, {"a": 1})
    assert checked(good) is good


@pytest.mark.parametrize("status", [500, 507])
def test_a_crash_is_told_from_a_handlers_own_500(status: int) -> None:
    """By type and message, as WorkerThread.java writes them."""
    kind = "InternalServerException"
    assert crash(answer(status, {"type": kind, "message": "Worker died."})) is Crash.DIED
    scaled = {"type": kind, "message": "Worker scaled down."}
    assert crash(answer(status, scaled)) is Crash.SCALED_DOWN
    assert crash(answer(status, {"code": "internal", "message": "Worker died."})) is None
    assert crash(answer(status, {"type": kind, "message": "prediction failed"})) is None
    assert crash(answer(400, {"type": kind, "message": "Worker died."})) is None
