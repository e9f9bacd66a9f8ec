"""Request and response bodies of predictions, by content type."""

from typing import Any

import numpy as np
import orjson

from marship.errors import UsageError
from marship.exchange.calls import HttpResponse
from marship.serving.formats.codec import JSON_TYPE, NPY_TYPE, OCTETS_TYPE, read_npy


def encoded(inputs: Any, content_type: str | None) -> tuple[bytes, str]:  # noqa: ANN401  any that a request may be
    """The body and its content type: bytes are sent unchanged, all else as JSON, arrays as lists.

    Raises:
        UsageError: The inputs cannot be encoded as JSON.
    """
    if isinstance(inputs, bytes | bytearray | memoryview):
        return bytes(inputs), content_type or OCTETS_TYPE
    try:
        body = orjson.dumps(inputs, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise UsageError(f"inputs must be JSON, arrays or bytes, got {error}.") from error
    return body, content_type or JSON_TYPE


def decoded(response: HttpResponse) -> Any:  # noqa: ANN401  by content type
    """A JSON value for application/json, an array for application/x-npy, else bytes."""
    if response.content_type == JSON_TYPE:
        return response.json()
    if response.content_type == NPY_TYPE:
        return read_npy(response.body)
    return response.body


def _plain(value: object) -> Any:  # noqa: ANN401  any JSON value
    """Convert what orjson does not support: arrays that are not contiguous, or of strings."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__}")
