"""Decodes request bodies into arrays, and encodes responses in the request's format.

| format | request | response |
|---|---|---|
| named JSON | `{"input": [[...]]}` | `{"output": [[...]]}` |
| bare JSON, for models with one input | `[[...]]` | `[[...]]` with one output, else named |
| KServe v1: see `instances` | `{"instances": [...]}` | `{"predictions": [...]}` |
| KServe v2, JSON or raw tensors: see `kserve` | `{"inputs": [{"name", "shape", ...}]}` | same |
| npy (NumPy's format 1.0 to 3.0), one input | `application/x-npy` | npy, one output |

All formats include the batch axis: one row is a list of one row. JSON has no NaN and no infinity:
in outputs they become null, and null is a missing value in inputs that take those. Where a model
takes them, a request in one of the first two formats may hold the words of Python's json (NaN,
Infinity, -Infinity), and so does its response then. An output whose classes have names is a list of
objects in named and bare JSON, and a plain tensor in the others.
"""

import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays, Contract
from marship.errors import InvalidInputError, MalformedError, UnsupportedMediaError
from marship.serving.formats import extent, forms, instances, kserve
from marship.serving.formats.encoding import dump
from marship.serving.formats.tensors import (
    MISSING_ADVICE,
    check_names,
    may_hold_booleans,
    only_input,
    shaped,
    to_array,
)
from marship.serving.message import JSON_TYPE as JSON_TYPE  # noqa: PLC0414  a name of codec, too
from marship.serving.message import Reply

NPY_TYPE = "application/x-npy"
OCTETS_TYPE = "application/octet-stream"
_MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, which editors put before a text (RFC 8259, 8.1: it may be ignored)."""
NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER_BYTES = 10_000
UNTYPED = ("", OCTETS_TYPE, forms.FIELDS_TYPE)
"""Types that say nothing of the body: it is JSON or npy where it reads as such."""
NOTHING = memoryview(b"")
_SHORT, _LONG = struct.Struct("<H"), struct.Struct("<I")
PLAIN = kserve.OutputRequest()


class BodyFormat(Enum):
    """The formats of request and response bodies."""

    NAMED = "named JSON"
    BARE = "bare JSON"
    INSTANCES = "KServe v1 JSON"
    KSERVE = "KServe v2 JSON"
    NPY = "npy"


Form = BodyFormat
"""The name that handlers written for earlier versions import."""


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded request: inputs by name, its format, and what KServe v2 asks of outputs.

    `has_words` says whether its JSON has words for NaN and infinity.
    """

    inputs: Arrays
    form: BodyFormat
    requested: kserve.OutputRequest = PLAIN
    has_words: bool = False

    def wants_raw(self, name: str) -> bool:
        """Whether an output is returned as KServe's raw tensor."""
        return self.form is BodyFormat.KSERVE and self.requested.binary.get(
            name, self.requested.all_binary
        )


def decode(
    body: object,
    content_type: str,
    contract: Contract,
    json_length: str | None = None,
    *,
    allow_non_finite: bool = False,
) -> Message:
    """Decode a request.

    Args:
        body: Bytes as received, or a JSON value that the host has parsed.
        content_type: The header's value; if empty, the format is detected.
        contract: The names and types of inputs.
        json_length: KServe's header for the length of the JSON before raw tensors.
        allow_non_finite: Whether JSON may have words for NaN and infinity.

    Raises:
        MalformedError: The body does not parse as its content type.
        InvalidInputError: Tensors are missing, unknown or of the wrong type.
        UnsupportedMediaError: The content type is not supported.
    """
    kind = forms.kind_of(content_type)
    if isinstance(body, (bytes, bytearray, memoryview)):
        forms.check_compression(body)
        if json_length is not None:
            text, raw = kserve.split(body, json_length)
            parsed = read_json(text, "")
            return from_json(parsed, contract, raw, may_mix=may_hold_booleans(text))
        if kind == NPY_TYPE or (kind in UNTYPED and body[:6] == NPY_MAGIC):
            return Message({only_input(contract).name: read_npy(body)}, BodyFormat.NPY)
        if allow_non_finite and (value := _read_words(body)) is not None:
            return replace(from_json(value, contract), has_words=True)
        parsed = read_json(body, content_type)
        return from_json(parsed, contract, may_mix=may_hold_booleans(body))
    return from_json(read_json(body, content_type), contract)


def read_json(body: object, content_type: str) -> Any:  # noqa: ANN401  any JSON value
    """Parse a JSON body; a value that the host has parsed already is returned as is.

    Raises:
        MalformedError: It is empty, compressed, or not JSON.
        UnsupportedMediaError: The content type is not JSON.
    """
    kind = forms.kind_of(content_type)
    if isinstance(body, (bytes, bytearray, memoryview)):
        forms.check_compression(body)
    if kind not in (JSON_TYPE, *UNTYPED) and not kind.endswith("+json"):
        raise UnsupportedMediaError(f"Content-Type must be {JSON_TYPE}, got {kind}.")
    if not isinstance(body, (bytes, bytearray, memoryview, str)):
        return body
    if not body:
        raise MalformedError("the body must hold a request, got none.")
    try:
        return orjson.loads(body[len(_MARK) :] if body[: len(_MARK)] == _MARK else body)
    except orjson.JSONDecodeError as error:
        if kind == forms.FIELDS_TYPE:
            raise forms.untyped() from error
        raise MalformedError(f"the body must be JSON, got: {error}.{_of_words(body)}") from error


def _of_words(body: bytes | bytearray | memoryview | str) -> str:
    """What to do where Python's words for NaN and infinity may be what is no JSON."""
    text = body.encode() if isinstance(body, str) else bytes(body)
    if b"NaN" not in text and b"Infinity" not in text:
        return ""
    return f" JSON has no NaN and no infinity. {MISSING_ADVICE}"


def _read_words(body: bytes | bytearray | memoryview) -> Any:  # noqa: ANN401  any JSON value
    """A JSON value with words for NaN and infinity; None for any other body."""
    text = bytes(body)
    if b"NaN" not in text and b"Infinity" not in text:
        return None
    try:
        return json.loads(text, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} that is too large")
    return value


def from_json(
    value: object, contract: Contract, raw: memoryview = NOTHING, *, may_mix: bool = True
) -> Message:
    """Convert a JSON value of any of the JSON formats to tensors.

    Args:
        value: The parsed JSON.
        contract: The names and types of inputs.
        raw: The bytes after the JSON, of KServe's raw tensors.
        may_mix: Whether booleans may be mixed with its numbers.

    Raises:
        MalformedError: The raw bytes do not match their JSON description.
        InvalidInputError: Tensors are missing, unknown or of the wrong type.
    """
    if isinstance(value, dict) and kserve.is_request(value):
        inputs, requested = kserve.decode(value, raw, contract, may_mix=may_mix)
        return Message(inputs, BodyFormat.KSERVE, requested)
    if len(raw):
        raise InvalidInputError("raw tensors must be described by inputs, got none.")
    if isinstance(value, dict) and instances.is_request(value, contract):
        inputs = instances.decode(value, contract, may_mix=may_mix)
        return Message(inputs, BodyFormat.INSTANCES)
    if not isinstance(value, dict):
        spec = only_input(contract)
        return Message({spec.name: to_array(value, spec, may_mix=may_mix)}, BodyFormat.BARE)
    specs = {spec.name: spec for spec in contract.inputs}
    check_names(value.keys(), specs, contract)
    inputs = {name: to_array(value[name], spec, may_mix=may_mix) for name, spec in specs.items()}
    return Message(inputs, BodyFormat.NAMED)


def read_npy(body: bytes | bytearray | memoryview) -> Array:
    """Read an npy file without copying its data.

    Raises:
        MalformedError: It is not an npy file, is truncated, or holds Python objects.
    """
    start = _npy_data_start(body)
    shape, fortran, dtype = _npy_header(bytes(body[:start]))
    if dtype.hasobject:
        raise MalformedError(
            "the npy file must hold numbers or text, got Python objects. Convert text with "
            "array.astype(str)."
        )
    if dtype.subdtype is not None or dtype.itemsize == 0:
        raise MalformedError(f"the npy file must hold numbers or text, got {dtype}.")
    if not all(type(size) is int for size in shape):  # NumPy's parser accepts True
        raise MalformedError(f"the npy file must have a shape of whole numbers, got {shape}.")
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if min(shape, default=0) < 0 or len(body) - start != expected:
        raise MalformedError(
            f"the npy file must hold the {expected} bytes that its header claims, "
            f"got {len(body) - start}."
        )
    array = np.frombuffer(body, dtype, offset=start)
    return shaped(array, shape[::-1]).T if fortran else shaped(array, shape)


def _npy_data_start(body: bytes | bytearray | memoryview) -> int:
    """Where the data begins: magic, version, length of the header, header (NEP 1)."""
    length = _SHORT if body[6:7] == b"\x01" else _LONG
    opening = len(NPY_MAGIC) + 2 + length.size
    if body[: len(NPY_MAGIC)] != NPY_MAGIC or len(body) < opening:
        raise MalformedError("the body must be an npy file, got no npy header.")
    start: int = opening + length.unpack_from(body, opening - length.size)[0]
    if start > min(len(body), opening + NPY_HEADER_BYTES):
        raise MalformedError(f"the npy header must be in the file, got one of {start} bytes.")
    return start


@lru_cache(256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, column order and type; cached, as parsing takes longer than a small model."""
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        return read_header(stream, max_header_size=NPY_HEADER_BYTES)
    except Exception as error:  # NumPy uses Python's tokenizer and parser
        raise MalformedError(f"the body must be an npy file, got: {error}.") from error


def check_size(
    message: Message, extents: extent.Extents, limit_bytes: int, text_bytes: int = 0
) -> None:
    """Reject a response that is too large, before it is encoded or even computed.

    Outputs that were not asked for do not count.

    Raises:
        TooLargeError: It is larger than the server's limit, in the request's format.
    """
    total = text_bytes
    for name in message.requested.names or extents:
        if name not in extents:
            continue  # its size follows from values
        dtype, shape = extents[name]
        if message.form is BodyFormat.NPY or message.wants_raw(name):
            total += extent.raw_bytes(message.requested.raw_type(name, dtype), shape)
        elif message.form is BodyFormat.KSERVE:
            total += extent.least_json_bytes(dtype, (math.prod(shape),))
        else:
            total += extent.least_json_bytes(dtype, shape)
    extent.check(total, limit_bytes)


def encode(  # noqa: PLR0913, PLR0917  the facts of a response
    outputs: Arrays,
    message: Message,
    model: str,
    version: str,
    limit_bytes: int = extent.LARGEST_BYTES,
    labels: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Reply:
    """Encode outputs as a response in the request's format.

    Args:
        outputs: The model's outputs.
        message: The request.
        model: The model's name, for KServe's format.
        version: The model's version, likewise.
        limit_bytes: The largest response that the server sends.
        labels: By output, the labels of its last axis, if it has some.

    Raises:
        InvalidInputError: npy was requested of a model with several outputs, or predictions for
            each instance of one that gives others.
        TooLargeError: The response is larger than the limit.
    """
    if not extent.surely_fit(outputs, limit_bytes):
        sent = message.requested.names or outputs
        text_bytes = sum(extent.text_bytes(outputs[name]) for name in sent)
        check_size(message, extent.of(outputs), limit_bytes, text_bytes)
    if message.form is BodyFormat.NPY:
        if len(outputs) != 1:
            raise InvalidInputError(
                f"npy must be requested from a model with one output, got {len(outputs)} outputs. "
                "Send JSON."
            )
        return Reply(write_npy(_npy_texts(next(iter(outputs.values())), limit_bytes)), NPY_TYPE)
    if message.form is BodyFormat.KSERVE:
        body, length = kserve.encode(outputs, message.requested, model, version, limit_bytes)
        if length is None:
            return Reply(body)
        return Reply(body, OCTETS_TYPE, headers=((kserve.LENGTH_HEADER, str(length)),))
    if message.form is BodyFormat.INSTANCES:
        return Reply(instances.encode(outputs, message.inputs, limit_bytes))
    write = _dump_words if message.has_words else dump
    texts = {
        name: dump(array, limit_bytes, labels[name])
        if name in labels
        else write(array, limit_bytes)
        for name, array in outputs.items()
    }
    if message.form is BodyFormat.BARE and len(outputs) == 1:
        return Reply(next(iter(texts.values())))
    return Reply(b"{%b}" % b",".join(orjson.dumps(k) + b":" + text for k, text in texts.items()))


def _dump_words(array: Array, limit_bytes: int) -> bytes:
    """An array as JSON with words for NaN and infinity, in place of null.

    Raises:
        TooLargeError: It is larger than the limit.
    """
    text = dump(array, limit_bytes)
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return text
    words = [json.dumps(value).encode() for value in array[~np.isfinite(array)].tolist()]
    first, *rest = text.split(b"null")
    return first + b"".join(word + part for word, part in zip(words, rest, strict=True))


def _npy_texts(array: Array, limit_bytes: int) -> Array:
    """Strings as NumPy's fixed-width text, in which each is as wide as the longest; else the array.

    Raises:
        InvalidInputError: A string ends with NUL, which NumPy would cut off.
        TooLargeError: The array would be larger than the limit.
    """
    if array.dtype.kind != "O":
        return array
    texts = [str(text) for text in array.flat]
    if any(text.endswith("\0") for text in texts):
        raise InvalidInputError(
            "npy must be requested for text that does not end with NUL, got one that does. "
            "Send JSON."
        )
    width = max(map(len, texts), default=0)
    extent.check(4 * width * len(texts), limit_bytes)
    return np.array(texts, dtype=f"<U{max(width, 1)}").reshape(array.shape)


def write_npy(array: Array) -> bytes:
    """The array as an npy file, copied once."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return b"".join([header.getvalue(), array.data if array.size else b""])
