"""Bytes to arrays and back, in the form the client chose.

| form | request | answer |
|---|---|---|
| named JSON | `{"input": [[...]]}` | `{"output": [[...]]}` |
| bare JSON, for models with one input | `[[...]]` | `[[...]]` with one output, else named |
| KServe v2 JSON (Open Inference Protocol, REST) | `{"inputs": [{"name", "shape", ...}]}` | alike |
| npy (NumPy's format 1.0 to 3.0), one input | `application/x-npy` | npy, one output |

Every form carries the batch axis: one row is a list of one row. JSON has no NaN and no
infinity: where a model answers one, JSON says null.
"""

import io
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.errors import InvalidInputError, MalformedError, UnsupportedMediaError
from marship.serving.transport import JSON_TYPE as JSON_TYPE  # noqa: PLC0414  a name of codec, too

NPY_TYPE = "application/x-npy"
OCTETS_TYPE = "application/octet-stream"
NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER_BYTES = 10_000

KSERVE_TYPES = {
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
_KSERVE_NAMES = {dtype: name for name, dtype in KSERVE_TYPES.items()}


class Form(Enum):
    """The forms of a request, and of its answer."""

    NAMED = "named JSON"
    BARE = "bare JSON"
    KSERVE = "KServe v2 JSON"
    NPY = "npy"


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded request: tensors by input name, its form, and the client's id if it gave one."""

    inputs: Arrays
    form: Form
    id: str | None = None


def decode(body: object, content_type: str, contract: Contract) -> Message:
    """Read a request.

    Args:
        body: Bytes as received, or what TorchServe's own JSON reader made of them.
        content_type: The header's value; where it is empty, the bytes decide.
        contract: Says which tensors are asked for, and of which type.

    Raises:
        MalformedError: The bytes are not what their type says.
        InvalidInputError: Tensors are missing, unknown or of the wrong type.
        UnsupportedMediaError: The content type is none of the above.
    """
    kind = _kind(content_type)
    if isinstance(body, (bytes, bytearray, memoryview)) and (
        kind == NPY_TYPE or (kind in ("", OCTETS_TYPE) and bytes(body[:6]) == NPY_MAGIC)
    ):
        return Message({_only_input(contract).name: read_npy(bytes(body))}, Form.NPY)
    return from_json(read_json(body, content_type), contract)


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def read_json(body: object, content_type: str) -> Any:  # noqa: ANN401  any JSON value
    """Parse a JSON body; what TorchServe has parsed already is handed through.

    Raises:
        MalformedError: There is nothing, or it is not JSON.
        UnsupportedMediaError: The content type says that it is something else.
    """
    kind = _kind(content_type)
    if kind not in ("", JSON_TYPE, OCTETS_TYPE) and not kind.endswith("+json"):
        raise UnsupportedMediaError(f"Content-Type must be {JSON_TYPE}, got {kind}.")
    if not isinstance(body, (bytes, bytearray, memoryview, str)):
        return body
    if not body:
        raise MalformedError("the body must hold a request, got none.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body must be JSON, got: {error}.") from error


def from_json(value: object, contract: Contract) -> Message:
    """Turn a JSON value of any of the three JSON forms into tensors.

    Raises:
        InvalidInputError: Tensors are missing, unknown or of the wrong type.
    """
    if not isinstance(value, dict):
        spec = _only_input(contract)
        return Message({spec.name: to_array(value, spec)}, Form.BARE)
    entries = value.get("inputs")
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return _from_kserve(value, entries, contract)
    specs = {spec.name: spec for spec in contract.inputs}
    _check_names(value.keys(), specs, contract)
    return Message({name: to_array(value[name], spec) for name, spec in specs.items()}, Form.NAMED)


def _from_kserve(value: dict[str, Any], entries: list[Any], contract: Contract) -> Message:
    specs = {spec.name: spec for spec in contract.inputs}
    _check_names([entry.get("name") for entry in entries], specs, contract)
    inputs: Arrays = {}
    for entry in entries:
        spec = specs[entry["name"]]
        datatype, shape = entry.get("datatype"), entry.get("shape")
        if KSERVE_TYPES.get(str(datatype)) != spec.dtype:
            raise InvalidInputError(
                f"datatype of {spec.name} must be {_KSERVE_NAMES[spec.dtype]}, got {datatype!r}."
            )
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise InvalidInputError(f"shape of {spec.name} must be a list of sizes, got {shape!r}.")
        array = to_array(entry.get("data"), spec)
        if array.size != np.prod(shape, dtype=object):
            raise InvalidInputError(
                f"data of {spec.name} must hold the {np.prod(shape, dtype=object)} values of its "
                f"shape {shape}, got {array.size}."
            )
        inputs[spec.name] = array.reshape(shape)
    request_id = value.get("id")
    return Message(inputs, Form.KSERVE, None if request_id is None else str(request_id))


def to_array(value: object, spec: TensorSpec) -> Array:
    """A nested list as an array of the spec's type; no value is changed by the conversion.

    Raises:
        InvalidInputError: The nesting is uneven, or a value is of another type or out of range.
    """
    if spec.dtype == "str":
        return _strings(value, spec)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"{spec.name} must be evenly nested lists, got rows of different lengths or depth. "
            "Send one request for each length."
        ) from error
    if array.size == 0:
        return array.astype(spec.dtype)
    want = np.dtype(spec.dtype)
    if not keeps_values(array, want):
        raise InvalidInputError(
            f"{spec.name} must hold values of type {spec.dtype}, got {_offender(array, want)}."
        )
    with np.errstate(over="ignore"):  # a float too large becomes infinite, and is refused as such
        return array.astype(want, copy=False)


def keeps_values(array: Array, want: np.dtype[Any]) -> bool:
    """Whether a conversion to the wanted type changes no value but by rounding a float."""
    have = array.dtype
    if have.kind == "b" or want.kind == "b":
        return have.kind == want.kind
    if want.kind == "f":
        return have.kind in "iuf"
    if have.kind not in "iu" or want.kind not in "iu":
        return False
    limits = np.iinfo(want)
    return bool(int(array.min()) >= limits.min and int(array.max()) <= limits.max)


def _offender(array: Array, want: np.dtype[Any]) -> str:
    if array.dtype.kind in "iu" and want.kind in "iu":
        return f"values from {array.min()} to {array.max()}"
    kinds = {"b": "true or false", "i": "integers", "u": "integers", "f": "fractions", "U": "text"}
    return kinds.get(array.dtype.kind, "null, objects or mixed types")


def _strings(value: object, spec: TensorSpec) -> Array:
    try:
        array = np.asarray(value, dtype=object)
    except ValueError as error:
        raise InvalidInputError(f"{spec.name} must be evenly nested lists of text.") from error
    if not all(isinstance(item, str) for item in array.flat):
        raise InvalidInputError(f"{spec.name} must hold text, got other values.")
    return array


def read_npy(body: bytes) -> Array:
    """Read an npy file without copying its data.

    Raises:
        MalformedError: It is no npy file, truncated, or holds Python objects.
    """
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(stream, max_header_size=NPY_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise MalformedError(f"the body must be an npy file, got: {error}.") from error
    if dtype.hasobject:
        raise MalformedError("the npy file must hold numbers, got Python objects.")
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    start = stream.tell()
    if min(shape, default=0) < 0 or len(body) - start != expected:
        raise MalformedError(
            f"the npy file must hold the {expected} bytes that its header claims, "
            f"got {len(body) - start}."
        )
    array = np.frombuffer(body, dtype, offset=start)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def encode(outputs: Arrays, message: Message, model: str, version: str) -> tuple[bytes, str]:
    """The answer's bytes and content type, in the form of the request.

    Raises:
        InvalidInputError: npy was asked of a model with several outputs.
    """
    if message.form is Form.NPY:
        if len(outputs) != 1:
            raise InvalidInputError(
                f"npy must be asked of a model with one output, this one gives {len(outputs)}. "
                "Send JSON."
            )
        return write_npy(next(iter(outputs.values()))), NPY_TYPE
    if message.form is Form.KSERVE:
        return _dump(_to_kserve(outputs, message, model, version)), JSON_TYPE
    if message.form is Form.BARE and len(outputs) == 1:
        return _dump(_plain(next(iter(outputs.values())))), JSON_TYPE
    return _dump({name: _plain(array) for name, array in outputs.items()}), JSON_TYPE


def write_npy(array: Array) -> bytes:
    """The array as an npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _to_kserve(outputs: Arrays, message: Message, model: str, version: str) -> dict[str, Any]:
    entries = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": _KSERVE_NAMES["str" if array.dtype.kind in "OU" else array.dtype.name],
            "data": _plain(array.reshape(-1)),
        }
        for name, array in outputs.items()
    ]
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    return answer if message.id is None else {**answer, "id": message.id}


def _plain(array: Array) -> Any:  # noqa: ANN401  what orjson takes
    """What orjson writes: most arrays as they are, the types it does not know as lists."""
    if array.dtype.kind in "OU":
        return array.tolist()
    return array if array.dtype.name != "float16" else array.astype("float32")


def _dump(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # an array that orjson cannot take whole, not contiguous say
        return orjson.dumps(value, default=lambda array: array.tolist())


def _only_input(contract: Contract) -> TensorSpec:
    if len(contract.inputs) != 1:
        names = ", ".join(spec.name for spec in contract.inputs)
        raise InvalidInputError(
            f"inputs must be sent by name to a model with several, which are {names}. "
            f"{_advice(contract)}"
        )
    return contract.inputs[0]


def _check_names(given: Any, specs: dict[str, TensorSpec], contract: Contract) -> None:  # noqa: ANN401
    names = list(given)
    if sorted(map(str, names)) == sorted(specs):
        return
    missing = [name for name in specs if name not in names]
    other = [str(name) for name in names if name not in specs]
    found = f"without {missing[0]}" if missing else f"with {(other or names)[0]!r} too"
    raise InvalidInputError(
        f"the inputs must be {', '.join(specs)}, got a request {found}. {_advice(contract)}"
    )


def _advice(contract: Contract) -> str:
    example = ", ".join(
        f'"{s.name}": {"[" * len(s.shape)}...{"]" * len(s.shape)}' for s in contract.inputs
    )
    return f"Send {{{example}}} as {JSON_TYPE}."
