"""KServe v2, the Open Inference Protocol over REST: JSON, and its binary tensor extension.

With the extension the body is the JSON followed by the raw bytes of those tensors whose
`parameters` have a `binary_data_size`, in order; the header Inference-Header-Content-Length is
the length of the JSON. Raw values are little endian in row-major order; a string is a 4-byte length
and its bytes. An output is returned raw if its `parameters` set `binary_data`, or the request's
set `binary_data_output`. BF16 is 2 bytes raw, and a number in JSON.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.errors import InvalidInputError, MalformedError
from marship.serving.formats import extent, tensors
from marship.serving.formats.encoding import dump
from marship.serving.formats.tensors import check_names, shaped, to_array

LENGTH_HEADER = "Inference-Header-Content-Length"

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "str",
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BFLOAT16 = "BF16"
_BITS = np.dtype("<u2")
_LENGTH = struct.Struct("<I")
_MOST_DIGITS = 19


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """How a client wants the response.

    Attributes:
        id: Returned in the response.
        all_binary: Whether outputs are raw by default.
        binary: Whether an output is raw, by name.
        names: The outputs to send, in their order; empty for all.
        bfloat16: The outputs of bfloat16, which are float32 until they are sent.
    """

    id: str | None = None
    all_binary: bool = False
    binary: dict[str, bool] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    bfloat16: frozenset[str] = frozenset()

    def raw_type(self, name: str, dtype: str) -> str:
        """The type in which an output's raw values are sent."""
        return _BITS.name if name in self.bfloat16 else dtype


def datatype(spec: TensorSpec) -> str:
    """The protocol's name of a tensor's type; it has bfloat16 of all narrow types."""
    return BFLOAT16 if spec.narrow == tensors.BFLOAT16 else NAMES[spec.dtype]


def split(body: bytes | bytearray | memoryview, length: str) -> tuple[memoryview, memoryview]:
    """The JSON and the raw tensors of a body.

    Raises:
        MalformedError: The header's length is not a number, or longer than the body.
    """
    view, length = memoryview(body), length.strip()
    is_number = length.isascii() and length.isdigit() and len(length) <= _MOST_DIGITS
    if not is_number or int(length) > len(view):
        raise MalformedError(
            f"{LENGTH_HEADER} must be the length of the JSON, at most the body's "
            f"{len(view)} bytes, got {length[:40]!r}."
        )
    return view[: int(length)], view[int(length) :]


def is_request(value: object) -> bool:
    """Whether a JSON value is a request of this protocol."""
    entries = value.get("inputs") if isinstance(value, dict) else None
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def decode(
    value: dict[str, Any], raw: memoryview, contract: Contract, *, may_mix: bool = True
) -> tuple[Arrays, OutputRequest]:
    """Tensors by name, without copying raw ones, and how to respond.

    `may_mix` says whether booleans may be mixed with the JSON's numbers.

    Raises:
        MalformedError: The number of raw bytes is not that of the tensors.
        InvalidInputError: Tensors are missing, unknown, or of the wrong type or size.
    """
    specs = {spec.name: spec for spec in contract.inputs}
    entries = value["inputs"]
    check_names([entry.get("name") for entry in entries], specs, contract)
    inputs: Arrays = {}
    for entry in entries:
        spec = specs[entry["name"]]
        shape = _shape(entry, spec)
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            array = to_array(entry.get("data"), spec, may_mix=may_mix)
        else:
            array, raw = _take(raw, size, spec)
        if array.size != (count := np.prod(shape, dtype=object)):
            raise InvalidInputError(
                f"data of {spec.name} must hold the {count} values of its shape {shape}, "
                f"got {array.size}."
            )
        inputs[spec.name] = shaped(array, shape, spec)
    if len(raw):
        raise MalformedError(
            f"the raw tensors must be as long as their binary_data_size, got {len(raw)} bytes more."
        )
    return inputs, _output_request(value, contract)


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters")
    return found if isinstance(found, dict) else {}


def _shape(entry: dict[str, Any], spec: TensorSpec) -> list[int]:
    given, shape = entry.get("datatype"), entry.get("shape")
    if given != datatype(spec):
        raise InvalidInputError(f"datatype of {spec.name} must be {datatype(spec)}, got {given!r}.")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise InvalidInputError(f"shape of {spec.name} must be a list of sizes, got {shape!r}.")
    return shape


def _take(raw: memoryview, size: object, spec: TensorSpec) -> tuple[Array, memoryview]:
    if type(size) is not int or not 0 <= size <= len(raw):
        raise MalformedError(
            f"binary_data_size of {spec.name} must be at most the {len(raw)} bytes that are "
            f"left of the body, got {size!r}. Is {LENGTH_HEADER} right?"
        )
    part, rest = raw[:size], raw[size:]
    if spec.dtype == "str":
        return _texts(part, spec), rest
    is_bfloat16 = datatype(spec) == BFLOAT16
    dtype = _BITS if is_bfloat16 else np.dtype(spec.dtype)
    if size % dtype.itemsize:
        raise MalformedError(
            f"binary_data_size of {spec.name} must be a multiple of {dtype.itemsize}, got {size}."
        )
    array = np.frombuffer(part, dtype.newbyteorder("<"))
    return tensors.from_bfloat16(array) if is_bfloat16 else array, rest


def _texts(part: memoryview, spec: TensorSpec) -> Array:
    texts = []
    place = 0
    try:
        while place < len(part):
            (size,) = _LENGTH.unpack_from(part, place)
            place += _LENGTH.size + size
            if place > len(part):
                raise ValueError("it ends within a text")
            texts.append(bytes(part[place - size : place]).decode("utf-8"))
    except (struct.error, ValueError) as error:
        raise MalformedError(
            f"{spec.name} must be texts with their lengths, got: {error}."
        ) from error
    return np.array(texts, dtype=object)


def _output_request(value: dict[str, Any], contract: Contract) -> OutputRequest:
    """How the client wants the response.

    Raises:
        InvalidInputError: It asks for an output that the model does not have, or for one twice,
            or says in another form what it wants.
    """
    entries = [] if value.get("outputs") is None else value["outputs"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidInputError('outputs must be a list such as [{"name": "output"}], got another.')
    names = tuple(str(entry.get("name")) for entry in entries)
    known = [spec.name for spec in contract.outputs]
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise InvalidInputError(
            f"outputs must name some of {', '.join(known)}, each once, "
            f"got {', '.join(names)[:200]}."
        )
    wanted = {
        name: _truth("binary_data", is_binary)
        for name, entry in zip(names, entries, strict=True)
        if (is_binary := _parameters(entry).get("binary_data")) is not None
    }
    all_binary = _parameters(value).get("binary_data_output")
    request_id = value.get("id")
    if isinstance(request_id, dict | list | bool):
        raise InvalidInputError(f"id must be text, got {request_id!r:.100}.")
    return OutputRequest(
        id=None if request_id is None else str(request_id),
        all_binary=all_binary is not None and _truth("binary_data_output", all_binary),
        binary=wanted,
        names=names,
        bfloat16=frozenset(spec.name for spec in contract.outputs if datatype(spec) == BFLOAT16),
    )


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} must be true or false, got {value!r:.100}.")
    return value


def encode(
    outputs: Arrays,
    requested: OutputRequest,
    model: str,
    version: str,
    limit_bytes: int = extent.LARGEST_BYTES,
) -> tuple[bytes, int | None]:
    """The body of the response, and the length of its JSON if raw tensors follow it.

    Raises:
        TooLargeError: A tensor's JSON is larger than the limit.
    """
    entries = []
    raw: list[bytes] = []
    for name in requested.names or outputs:
        array = outputs[name]
        is_text = array.dtype.kind in "OU"
        is_bfloat16 = name in requested.bfloat16
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": BFLOAT16 if is_bfloat16 else NAMES["str" if is_text else array.dtype.name],
        }
        if requested.binary.get(name, requested.all_binary):
            if is_bfloat16:
                array = tensors.to_bfloat16(array)
            raw.append(_raw_texts(array) if is_text else _raw(array))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = orjson.Fragment(dump(array.reshape(-1), limit_bytes))
        entries.append(entry)
    value: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if requested.id is not None:
        value["id"] = requested.id
    text = orjson.dumps(value)
    return (b"".join([text, *raw]), len(text)) if raw else (text, None)


def _raw(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _raw_texts(array: Array) -> bytes:
    texts = [str(text).encode("utf-8") for text in array.flat]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
