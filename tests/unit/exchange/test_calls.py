"""HTTP exchanges as plain data."""

import json

import pytest

from marship.errors import InvalidInputError, ServerError
from marship.exchange.calls import Call, HttpResponse, own_error, path


def answer(status: int, body: object) -> HttpResponse:
    """A response with a JSON body, or the text itself."""
    text = body if isinstance(body, str) else json.dumps(body)
    return HttpResponse(status, {"content-type": "application/json; charset=UTF-8"}, text.encode())


def test_a_value_is_the_body_as_json() -> None:
    """With its media type without parameters."""
    good = answer(200, {"a": 1})
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


@pytest.mark.parametrize("body", ["", "<html>", "[1]", '"text"', "7"])
def test_an_error_without_a_json_object_has_no_fields(body: str) -> None:
    """A proxy's page, or nothing."""
    assert answer(502, body).error == {}
    assert answer(502, body).text == body


def test_codes_of_our_errors_name_their_classes() -> None:
    """Another server's codes name none."""
    assert own_error({"code": "invalid_input"}) is InvalidInputError
    assert own_error({"code": 400, "message": "m"}) is None
    assert own_error({}) is None
