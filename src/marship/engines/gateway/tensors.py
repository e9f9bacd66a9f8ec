"""A prediction of gRPC as one of HTTP: KServe v2 with its binary tensor extension, and back.

Values never become JSON. Raw contents go on as they came; typed contents are packed in the raw
form, which both sides share: little endian, row-major order, a string as a 4-byte length and its
bytes. Source: Open Inference Protocol, "Tensor Contents" and the binary tensor data extension.

Typed values may be millions, so they are packed in chunks, in turns with other requests.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from marship.engines.gateway import wire
from marship.engines.gateway.messages import Message, kind
from marship.engines.gateway.requests import MOST_FIELDS, InferRequest
from marship.engines.gateway.turns import Turns
from marship.engines.gateway.upstream import Body
from marship.errors import InvalidInputError, MalformedError, MarshipError, TooLargeError

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
"""The field of typed contents, and the code by which `struct` packs a value.

FP16 and BF16 have no field.
"""
_NUMBERS = {field.name: field.number for field in kind("InferTensorContents").DESCRIPTOR.fields}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_TYPES = {"f": wire.FIXED32, "d": wire.FIXED64}
"""How a float is written that is not packed with others; integers are VARINT."""
_LENGTH = struct.Struct("<I")
_CHUNK_BYTES = 1 << 14
"""Of integers that are packed or unpacked in one step, which takes about a millisecond."""
_OUTPUTS, _CONTENTS, _RAW = 5, 5, 6


class NoTensorsError(MarshipError):
    """A model whose handler responds in a form of its own, not in tensors."""

    code = "no_tensors"

    def __init__(self) -> None:
        super().__init__(
            "the model must respond in tensors to be called over gRPC, got a form of its handler's "
            "own. Send the request over HTTP."
        )


async def to_body(request: InferRequest, turns: Turns, most_bytes: int) -> tuple[bytes, Body]:
    """The JSON of a request, and the raw tensors that follow it.

    Args:
        request: The request.
        turns: In which typed contents are packed.
        most_bytes: The largest body.

    Raises:
        MalformedError: Raw contents are not one for each input, or come with typed ones.
        InvalidInputError: Typed contents do not fit their datatype.
        TooLargeError: Typed contents are larger than the body when they are packed.
    """
    if request.raw:
        _check_raw(request)
        data = memoryview(request.data)  # no copy: it may be large
        raw: Body = [data[start:end] for start, end in request.raw]
        sizes = [len(data) for data in raw]
    else:
        sizes = []
        raw = [await turns.join(_all_packed(request, sizes, most_bytes))]
    return orjson.dumps(_description(request.message, sizes)), raw


def _description(message: Message, sizes: list[int]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "parameters": {**_parameters(message), "binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {**_parameters(tensor), "binary_data_size": size},
            }
            for tensor, size in zip(message.inputs, sizes, strict=True)
        ],
    }
    if message.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": {**_parameters(output), "binary_data": True}}
            for output in message.outputs
        ]
    if message.id:
        document["id"] = message.id
    return document


def _check_raw(request: InferRequest) -> None:
    if len(request.raw) != len(request.message.inputs):
        raise MalformedError(
            f"raw_input_contents must be one for each of the {len(request.message.inputs)} inputs, "
            f"got {len(request.raw)}."
        )
    if any(start < end for places in request.typed for start, end in places):
        raise MalformedError("contents must be raw or typed, got both. Send raw_input_contents.")


def _all_packed(request: InferRequest, sizes: list[int], most_bytes: int) -> Iterator[bytes]:
    """The raw form of all typed contents, in parts; the sizes of the tensors become `sizes`."""
    fields = itertools.count(1)
    whole = 0
    for tensor, places in zip(request.message.inputs, request.typed, strict=True):
        before = whole
        for part in _packed(tensor, request.data, places, fields):
            whole += len(part)
            if whole > most_bytes:
                raise TooLargeError(
                    f"contents must have {most_bytes} bytes at most as raw tensors, got more."
                )
            yield part
        sizes.append(whole - before)


def _parameters(message: Message) -> dict[str, object]:
    found = {}
    for name, value in message.parameters.items():
        if choice := value.WhichOneof("parameter_choice"):
            found[name] = getattr(value, choice)
    return found


def _packed(
    tensor: Message, data: bytes, places: list[tuple[int, int]], fields: Iterator[int]
) -> Iterator[bytes]:
    """The raw form of typed contents, in parts; `fields` counts those of numbers."""
    if tensor.datatype not in _FIELDS:
        raise InvalidInputError(
            f"contents of {tensor.name[:40]} must be of {', '.join(_FIELDS)}, got "
            f"{tensor.datatype[:40]!r}. Send raw_input_contents."
        )
    name, code = _FIELDS[tensor.datatype]
    for start, end in places:
        if code:
            found = wire.fields(data, start, end)
            yield from _numbers(tensor, data, zip(found, fields, strict=False))
        else:
            for texts in wire.texts(data, start, end, _NUMBERS[name]):
                yield b"".join([_LENGTH.pack(len(text)) + text for text in texts])


def _numbers(
    tensor: Message, data: bytes, fields: Iterable[tuple[wire.Field, int]]
) -> Iterator[bytes]:
    """The raw form of numbers, in parts; all but a few must be packed, as proto3 has them."""
    name, _ = _FIELDS[tensor.datatype]
    for found, count in fields:
        if found.number != _NUMBERS[name]:
            raise InvalidInputError(
                f"contents of {tensor.name[:40]} must be in {name} as {tensor.datatype}, "
                f"got {_NAMES.get(found.number, found.number)}."
            )
        if count > MOST_FIELDS:
            raise InvalidInputError(
                f"contents must have {MOST_FIELDS} fields at most, got more. Pack the numbers."
            )
        yield from _values(tensor, data, found)


def _values(tensor: Message, data: bytes, found: wire.Field) -> Iterator[bytes]:
    """The raw form of the numbers of a field, in parts."""
    name, code = _FIELDS[tensor.datatype]
    size = found.end - found.value
    if found.type not in (wire.BYTES, _TYPES.get(code, wire.VARINT)) or (
        code in _TYPES and size % struct.calcsize(code)
    ):
        raise MalformedError(f"{name} must be written as its type, got other bytes.")
    if code in _TYPES:  # they are written as in raw tensors
        yield data[found.value : found.end]
    elif found.type == wire.BYTES:
        for chunk in wire.cut_varints(data, found.value, found.end, _CHUNK_BYTES):
            yield _integers(tensor, wire.head(found.number, len(chunk)) + chunk)
    else:
        yield _integers(tensor, data[found.start : found.end])


def _integers(tensor: Message, contents: bytes) -> bytes:
    """The raw form of a few integers, which protobuf writes with as many bytes as each needs."""
    name, code = _FIELDS[tensor.datatype]
    try:
        values = getattr(kind("InferTensorContents").FromString(contents), name)
        return struct.pack(f"<{len(values)}{code}", *values)
    except (DecodeError, struct.error) as error:
        raise InvalidInputError(
            f"contents of {tensor.name[:40]} must be {tensor.datatype}, got: {error}."
        ) from error


async def from_body(
    headers: Mapping[str, str], whole: bytes, turns: Turns, *, typed: bool
) -> bytes:
    """The response of gRPC for one of HTTP, as it is sent.

    Args:
        headers: Of the HTTP response.
        whole: Its JSON, with raw tensors behind it.
        turns: In which values are unpacked.
        typed: Whether values are wanted in typed contents; FP16 and BF16 have none: all raw then.

    Raises:
        NoTensorsError: The model's handler does not respond in tensors.
    """
    body = memoryview(whole)
    place = int(headers.get(LENGTH_HEADER, 0))
    document = _parsed(body[:place])
    response = kind("ModelInferResponse")(
        model_name=document["model_name"],
        model_version=document["model_version"],
        id=document.get("id", ""),
    )
    typed = typed and all(entry["datatype"] in _FIELDS for entry in document["outputs"])
    if not typed:
        return b"".join(
            [response.SerializeToString(), *_raw_outputs(document["outputs"], body, place)]
        )
    sizes: list[int] = []
    contents = await turns.join(_all_contents(document["outputs"], body, place, sizes))
    parts, place = [response.SerializeToString()], 0
    for entry, size in zip(document["outputs"], sizes, strict=True):
        found = contents[place : place + size]
        place += size
        parts += _output(entry, wire.head(_CONTENTS, size) + found if found else b"")
    return b"".join(parts)


def _raw_outputs(
    entries: list[dict[str, Any]], body: memoryview, place: int
) -> Iterator[bytes | memoryview]:
    """The outputs' fields of a response, and their raw contents."""
    for entry in entries:
        yield from _output(entry, b"")
    for entry in entries:
        data = body[place : place + entry["parameters"]["binary_data_size"]]
        place += len(data)
        yield from (wire.head(_RAW, len(data)), data)


def _all_contents(
    entries: list[dict[str, Any]], body: memoryview, place: int, sizes: list[int]
) -> Iterator[bytes]:
    """Typed contents of all outputs, in parts; the sizes of each become `sizes`."""
    for entry in entries:
        data = body[place : place + entry["parameters"]["binary_data_size"]]
        place += len(data)
        sizes.append(0)
        for part in _contents(entry["datatype"], data):
            sizes[-1] += len(part)
            yield part


def _output(entry: dict[str, Any], contents: bytes | bytearray) -> list[bytes]:
    """The field of an output."""
    tensor = kind("ModelInferResponse.InferOutputTensor")(
        name=entry["name"], datatype=entry["datatype"], shape=entry["shape"]
    ).SerializeToString()
    return [wire.head(_OUTPUTS, len(tensor) + len(contents)), tensor, bytes(contents)]


def _parsed(text: memoryview) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
        _ = (
            document["model_name"],
            [entry["parameters"]["binary_data_size"] for entry in document["outputs"]],
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise NoTensorsError from error
    return dict(document)


def _contents(datatype: str, data: memoryview) -> Iterator[bytes]:
    """Typed contents as they are sent, in parts."""
    name, code = _FIELDS[datatype]
    if not code:
        yield from _texts(data, _NUMBERS[name])
    elif code in _TYPES:
        yield wire.head(_NUMBERS[name], len(data)) + data if data else b""
    else:
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = data[start : start + _CHUNK_BYTES]
            values = struct.unpack(f"<{len(chunk) // struct.calcsize(f'<{code}')}{code}", chunk)
            yield kind("InferTensorContents")(**{name: values}).SerializeToString()


def _texts(data: memoryview, number: int) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        start = place + _LENGTH.size
        place = start + _LENGTH.unpack_from(data, place)[0]
        yield wire.head(number, place - start) + data[start:place]
