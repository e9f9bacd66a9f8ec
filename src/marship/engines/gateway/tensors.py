"""A prediction of gRPC as one of HTTP: KServe v2 with its binary tensor extension, and back.

Values never become JSON. Raw contents go on as they came; typed contents are packed in the raw
form, which both sides share: little endian, row-major order, a string as a 4-byte length and its
bytes. Source: Open Inference Protocol, "Tensor Contents" and the binary tensor data extension.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from marship.engines.gateway.messages import Message, kind
from marship.errors import InvalidInputError, MalformedError, MarshipError

LENGTH_HEADER = "inference-header-content-length"

_FIELDS = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    "BYTES": ("bytes_contents", ""),
}
"""The field of typed contents, and the code by which `struct` packs a value; FP16 has no field."""
_LENGTH = struct.Struct("<I")
_AT_ONCE = 1 << 14
"""Values: a call that packs a million keeps all other threads waiting."""
_MOST_DIMENSIONS = 64
"""As many as NumPy's arrays have."""


class NoTensorsError(MarshipError):
    """A model whose handler responds in a form of its own, not in tensors."""

    code = "no_tensors"


def is_typed(request: Message) -> bool:
    """Whether a request has its values in typed contents, and wants them so."""
    return bool(request.inputs) and not request.raw_input_contents


def to_body(request: Message) -> tuple[bytes, list[bytes]]:
    """The JSON of a request, and the raw tensors that follow it.

    Raises:
        MalformedError: Raw contents are not one for each input, or come with typed ones.
        InvalidInputError: Typed contents do not fit their datatype.
    """
    for tensor in request.inputs:
        _check_counts(tensor)
    raw = list(request.raw_input_contents) or [_packed(tensor) for tensor in request.inputs]
    if request.raw_input_contents:
        _check_raw(request)
    told: dict[str, Any] = {
        "parameters": {**_parameters(request), "binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {**_parameters(tensor), "binary_data_size": len(data)},
            }
            for tensor, data in zip(request.inputs, raw, strict=True)
        ],
    }
    if request.outputs:
        told["outputs"] = [
            {"name": output.name, "parameters": {**_parameters(output), "binary_data": True}}
            for output in request.outputs
        ]
    if request.id:
        told["id"] = request.id
    return orjson.dumps(told), raw


def _check_counts(tensor: Message) -> None:
    if len(tensor.shape) > _MOST_DIMENSIONS:
        raise MalformedError(
            f"the shape of {tensor.name[:100]} must have at most {_MOST_DIMENSIONS} dimensions, "
            f"got {len(tensor.shape)}."
        )


def _check_raw(request: Message) -> None:
    if len(request.raw_input_contents) != len(request.inputs):
        raise MalformedError(
            f"raw_input_contents must be one for each of the {len(request.inputs)} inputs, "
            f"got {len(request.raw_input_contents)}."
        )
    if any(tensor.contents.ListFields() for tensor in request.inputs):
        raise MalformedError("contents must be raw or typed, got both. Send raw_input_contents.")


def _parameters(message: Message) -> dict[str, object]:
    found = {}
    for name, value in message.parameters.items():
        if choice := value.WhichOneof("parameter_choice"):
            found[name] = getattr(value, choice)
    return found


def _packed(tensor: Message) -> bytes:
    """The raw form of typed contents."""
    if tensor.datatype not in _FIELDS:
        raise InvalidInputError(
            f"contents of {tensor.name[:100]} must be of {', '.join(_FIELDS)}, got "
            f"{tensor.datatype[:40]!r}. Send raw_input_contents."
        )
    field, code = _FIELDS[tensor.datatype]
    if wrong := [each.name for each, _ in tensor.contents.ListFields() if each.name != field]:
        raise InvalidInputError(
            f"contents of {tensor.name[:100]} must be in {field} as {tensor.datatype}, "
            f"got {wrong[0]}."
        )
    values = getattr(tensor.contents, field)
    if not code:
        whole = bytearray()
        for text in values:
            whole += _LENGTH.pack(len(text))
            whole += text
        return bytes(whole)
    parts = (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))
    try:
        return b"".join(struct.pack(f"<{len(part)}{code}", *part) for part in parts)
    except struct.error as error:
        raise InvalidInputError(
            f"contents of {tensor.name[:100]} must be {tensor.datatype}, got: {error}."
        ) from error


def from_body(headers: Mapping[str, str], body: bytes, *, typed: bool) -> Message:
    """The response of gRPC for one of HTTP.

    Args:
        headers: Of the HTTP response.
        body: Its JSON, with raw tensors behind it.
        typed: Whether values are wanted in typed contents; FP16 has none, so all are raw then.

    Raises:
        NoTensorsError: The model's handler does not respond in tensors.
    """
    place = int(headers.get(LENGTH_HEADER, len(body)))
    told = _parsed(body[:place])
    response = kind("ModelInferResponse")(
        model_name=told["model_name"], model_version=told["model_version"], id=told.get("id", "")
    )
    typed = typed and all(entry["datatype"] in _FIELDS for entry in told["outputs"])
    for entry in told["outputs"]:
        size = entry["parameters"]["binary_data_size"]
        data = body[place : place + size]
        place += size
        tensor = response.outputs.add(
            name=entry["name"], datatype=entry["datatype"], shape=entry["shape"]
        )
        if typed:
            field, _ = _FIELDS[tensor.datatype]
            values = getattr(tensor.contents, field)
            for part in _unpacked(tensor.datatype, data):
                values.extend(part)
        else:
            response.raw_output_contents.append(data)
    return response


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        told = orjson.loads(text)
        _ = (
            told["model_name"],
            [entry["parameters"]["binary_data_size"] for entry in told["outputs"]],
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise NoTensorsError(
            "the model must respond in tensors to be asked over gRPC, got a form of its handler's "
            "own. Ask it over HTTP."
        ) from error
    return dict(told)


def _unpacked(datatype: str, data: bytes) -> Iterator[Sequence[Any]]:
    """The values of a raw tensor, some at a time."""
    _, code = _FIELDS[datatype]
    if code:
        step = _AT_ONCE * struct.calcsize(f"<{code}")
        for start in range(0, len(data), step):
            part = data[start : start + step]
            yield struct.unpack(f"<{len(part) // struct.calcsize(f'<{code}')}{code}", part)
        return
    place = 0
    while place < len(data):
        start = place + _LENGTH.size
        place = start + _LENGTH.unpack_from(data, place)[0]
        yield (data[start:place],)
