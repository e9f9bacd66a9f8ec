"""What a prediction's request carries, and what its answer holds, by their content types."""

from typing import Any

import numpy as np
import orjson

from marship.errors import UsageError
from marship.exchange.calls import Answer
from marship.serving.formats.codec import JSON_TYPE, NPY_TYPE, OCTETS_TYPE, read_npy


def encoded(inputs: Any, content_type: str | None) -> tuple[bytes, str]:  # noqa: ANN401  any that a request may be
    """The body and its type: bytes as they are, anything else as JSON, arrays by their values.

    Raises:
        UsageError: It cannot be sent.
    """
    if isinstance(inputs, bytes | bytearray | memoryview):
        return bytes(inputs), content_type or OCTETS_TYPE
    try:
        body = orjson.dumps(inputs, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise UsageError(f"inputs must be JSON, arrays or bytes, got {error}.") from error
    return body, content_type or JSON_TYPE


def decoded(answer: Answer) -> Any:  # noqa: ANN401  by content type
    """A JSON value for application/json, an array for application/x-npy, else bytes."""
    if answer.content_type == JSON_TYPE:
        return answer.json()
    if answer.content_type == NPY_TYPE:
        return read_npy(answer.body)
    return answer.body


def _plain(value: object) -> Any:  # noqa: ANN401  any JSON value
    """What orjson does not take by itself: arrays that are not contiguous, or of text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__}")
