"""Converts JSON values to arrays of a model's types and back, without changing a value."""

import math
import sys
from array import array as number_array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.errors import InvalidInputError, ModelError

TEXT_KINDS = "OSUT"
"""NumPy's kinds of string types: objects, bytes, fixed and variable width."""

BFLOAT16 = "bfloat16"
_BITS = np.dtype("V2")
"""How NumPy reads arrays of bfloat16 that it saved for ml_dtypes."""

EXACT = 2.0**53
"""Integers up to this are exact as float64, so it does not matter what they are rounded from."""

MISSING_ADVICE = (
    "If the model takes missing values, package it with --missing-values allow; else send a number."
)


def conform(inputs: Mapping[str, object], contract: Contract) -> Arrays:
    """Convert one request's tensors to the contract's types and native byte order.

    All inputs of the model pass through here, in any format and by any handler: ONNX Runtime
    ignores byte order, and NumPy would truncate a string to its neighbour's length.

    Raises:
        InvalidInputError: A tensor has another type than the contract states, or text that UTF-8
            cannot encode.
        ModelError: A handler's `decode` omitted an input, or did not return an array.
    """
    found: Arrays = {}
    for spec in contract.inputs:
        value = inputs.get(spec.name)
        if not isinstance(value, (np.ndarray, np.generic)):
            raise ModelError(
                f"decode must return an array for {spec.name}, got {type(value).__name__}."
            )
        array = np.asarray(value)
        found[spec.name] = _texts(array, spec) if spec.dtype == "str" else _numbers(array, spec)
    return found


def _numbers(array: Array, spec: TensorSpec) -> Array:
    want = np.dtype(spec.dtype)
    if spec.narrow == BFLOAT16 and array.dtype == _BITS:
        return from_bfloat16(array)
    if array.dtype != want:
        if array.dtype.newbyteorder("=") != want:
            raise _wrong_type(array, spec)
        array = array.astype(want)
    # in untrusted data a byte other than 0 and 1 is an invalid bool in C++
    return np.asarray(array.view(np.uint8) != 0) if want.kind == "b" else array


def _texts(array: Array, spec: TensorSpec) -> Array:
    if array.dtype.kind not in TEXT_KINDS:
        raise _wrong_type(array, spec)
    if array.dtype.kind == "U":
        points = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view(np.uint32)
        if points.max(initial=0) > sys.maxunicode:  # Python would raise a SystemError
            raise InvalidInputError(f"{spec.name} must hold text, got no character of Unicode.")
    texts = np.empty(array.size, dtype=object)
    texts[:] = [_text(item, spec) for item in array.astype(object).flat]
    return texts.reshape(array.shape)


def _text(item: object, spec: TensorSpec) -> str:
    try:
        if isinstance(item, str):
            item.encode("utf-8")  # lone surrogates are invalid
            return item
        if isinstance(item, bytes):
            return item.decode("utf-8")
    except UnicodeError as error:
        raise InvalidInputError(f"{spec.name} must hold text in UTF-8, got: {error}.") from error
    raise InvalidInputError(f"{spec.name} must hold text, got {type(item).__name__}.")


def _wrong_type(array: Array, spec: TensorSpec) -> InvalidInputError:
    found = "str" if array.dtype.kind in TEXT_KINDS else array.dtype.name
    is_number = array.dtype.kind in "iuf" and spec.dtype not in ("str", "bool")
    advice = f' Convert it with array.astype("{spec.dtype}").' if is_number else ""
    return InvalidInputError(f"{spec.name} must be {spec.form}, got {found}.{advice}")


def may_hold_booleans(body: bytes | bytearray | memoryview) -> bool:
    """Whether a JSON text may hold booleans; searching for one letter is much faster."""
    text = bytes(body) if isinstance(body, memoryview) else body
    return (b"r" in text and b"true" in text) or (b"f" in text and b"false" in text)


def to_array(value: object, spec: TensorSpec, *, may_mix: bool = True) -> Array:
    """A nested list as an array of the spec's type; no value is changed by the conversion.

    A number for a float input is rounded to the nearest value of its type, as every parser does;
    null is NaN for one that takes missing values.

    Args:
        value: A JSON value.
        spec: The input.
        may_mix: Whether booleans may be mixed with the numbers.

    Raises:
        InvalidInputError: The nesting is uneven, or a value is of another type or out of range.
    """
    if spec.dtype == "str":
        return _strings(value, spec)
    if spec.dtype in ("float32", "float64") and not may_mix:
        floats = _floats(value, np.dtype(spec.dtype).char)
        if floats is not None:
            return floats
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"{spec.name} must be evenly nested lists, got rows of different lengths or depth. "
            "Send one request for each length."
        ) from error
    if array.size == 0:
        return _empty(array, spec).astype(spec.dtype)
    if spec.takes_missing and array.dtype == object:
        array = _with_missing(array)
    want = np.dtype(spec.dtype)
    if want.kind == "f" and array.dtype == object and _has_gaps(array):
        raise InvalidInputError(
            f"{spec.name} must hold values of type {spec.dtype}, got null. {MISSING_ADVICE}"
        )
    if array.dtype.kind == "f" and want.kind == "u":
        array = _unsigned(value, array)
    if not keeps_values(array, want) or (may_mix and _mixes(value, array)):
        raise InvalidInputError(
            f"{spec.name} must hold values of type {spec.dtype}, got "
            f"{_offender(value, array, want)}."
        )
    return _cast(array, spec)


def _with_missing(array: Array) -> Array:
    """Numbers with NaN for null as float64; other objects as they are."""
    if not _has_gaps(array):
        return array
    numbers = [math.nan if item is None else item for item in array.flat]
    return np.array(numbers, np.float64).reshape(array.shape)


def _has_gaps(array: Array) -> bool:
    """Whether objects are numbers and null alone; other objects are rows of other lengths."""
    return set(map(type, array.flat)) <= {int, float, NoneType}


def _floats(value: object, kind: str) -> Array | None:
    """Evenly nested lists of numbers as an array, or None for anything else.

    `np.asarray` takes 1.5 times as long, as it asks each value for its type and length.

    Args:
        value: A JSON value without booleans.
        kind: `f` for float32, `d` for float64.
    """
    rows: list[Any] = [value]
    shape: list[int] = []
    while True:
        if set(map(type, rows)) != {list} or len(sizes := set(map(len, rows))) != 1:
            return None
        shape += sizes
        if not shape[-1]:
            return None
        if type(rows[0][0]) is not list:
            break
        rows = list(chain.from_iterable(rows))
    numbers = number_array(kind)
    try:
        for row in rows:
            numbers.fromlist(row)
        floats = np.frombuffer(numbers, kind).reshape(shape)
    except (TypeError, ValueError, OverflowError):
        return None
    # Larger integers would be rounded twice, first to float64, and infinity must be an error.
    # The sum of squares is faster than the maximum, and no smaller.
    return floats if np.vdot(floats, floats) < EXACT**2 else None


def _cast(array: Array, spec: TensorSpec) -> Array:
    if array.dtype == spec.dtype:
        return array
    try:
        with np.errstate(over="raise"):
            return array.astype(spec.dtype, copy=False)
    except FloatingPointError as error:  # it would be infinity, which JSON does not have
        raise InvalidInputError(
            f"{spec.name} must hold finite {spec.dtype} values, got one too large for the type."
        ) from error


def _unsigned(value: object, array: Array) -> Array:
    """Keep integers: NumPy converts a mix of values below and above 2**63 to floats."""
    if _types(value, array.ndim) == {int}:
        with suppress(OverflowError):  # a negative one among them
            return np.asarray(value, np.uint64)
    return array


def _mixes(value: object, array: Array) -> bool:
    """Whether booleans are mixed with the numbers, which NumPy would convert to 1 or 0."""
    return array.dtype.kind != "b" and bool in _types(value, array.ndim)


def _types(value: object, axes: int) -> set[type]:
    """The types of the values in nested lists of this depth."""
    values: Any = value if axes else (value,)
    for _ in range(axes - 1):
        values = chain.from_iterable(values)
    return set(map(type, values))


def keeps_values(array: Array, want: np.dtype[Any]) -> bool:
    """Whether a conversion to the wanted type is lossless, except for rounding floats."""
    have = array.dtype
    if have == want:
        return True
    if have.kind == "b" or want.kind == "b":
        return have.kind == want.kind
    if want.kind == "f":
        return have.kind in "iuf"
    if have.kind not in "iu" or want.kind not in "iu":
        return False
    limits = np.iinfo(want)
    return bool(int(array.min()) >= limits.min and int(array.max()) <= limits.max)


def _offender(value: object, array: Array, want: np.dtype[Any]) -> str:
    if array.dtype.kind in "iuf" and _mixes(value, array):
        return "true or false among numbers"
    if array.dtype.kind == "f" and _types(value, array.ndim) == {int}:
        return "integers of which one is out of range"
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
    return _empty(array, spec)


def _empty(array: Array, spec: TensorSpec) -> Array:
    """The array with its last axes, of fixed size, that lists without values cannot show."""
    rest = spec.shape[array.ndim :]
    sizes = [size for size in rest if isinstance(size, int)]
    if array.size or not array.ndim or len(sizes) < len(rest):
        return array
    return array.reshape(*array.shape, *sizes)


def from_bfloat16(bits: Array) -> Array:
    """The values of bfloat16 as float32, of which it is the upper half.

    Args:
        bits: Any type of 2 bytes, little endian.

    Example:
        >>> from_bfloat16(np.array([0x3F80, 0xC000], "<u2")).tolist()
        [1.0, -2.0]
    """
    halves = np.asarray(bits.view("<u2").astype(np.uint32) << 16)  # NumPy makes scalars of no axes
    return halves.view(np.float32)


def to_bfloat16(array: Array) -> Array:
    """The bits of float32 values that bfloat16 holds: little endian, 2 bytes each."""
    return (array.view(np.uint32) >> 16).astype("<u2")


def shaped(array: Array, shape: Sequence[int], spec: TensorSpec | None = None) -> Array:
    """The array reshaped to a client's shape of as many values.

    Raises:
        InvalidInputError: NumPy does not support the shape.
    """
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        name = spec.name if spec else "the npy file"
        raise InvalidInputError(
            f"{name} must have a shape of sizes that an array can have, got {list(shape)}."
        ) from error


def only_input(contract: Contract) -> TensorSpec:
    """The model's only input.

    Raises:
        InvalidInputError: It has several inputs.
    """
    if len(contract.inputs) != 1:
        names = ", ".join(spec.name for spec in contract.inputs)
        raise InvalidInputError(
            f"inputs must be sent by name to a model with several, which are {names}. "
            f"{_advice(contract)}"
        )
    return contract.inputs[0]


def check_names(given: Any, specs: dict[str, TensorSpec], contract: Contract) -> None:  # noqa: ANN401
    """Check a request's names against the model's inputs.

    Raises:
        InvalidInputError: One is missing, unknown or given twice.
    """
    names = list(given)
    if all(isinstance(name, str) for name in names) and sorted(names) == sorted(specs):
        return
    missing = [name for name in specs if name not in names]
    other = [str(name) for name in names if name not in list(specs)]
    found = f"without {missing[0]}" if missing else f"with {(other or names)[0]!r} too"
    wanted = ", ".join(specs) or "none"
    raise InvalidInputError(
        f"the inputs must be {wanted}, got a request {found}. {_advice(contract)}"
    )


def _advice(contract: Contract) -> str:
    example = ", ".join(
        f'"{s.name}": {"[" * len(s.shape)}...{"]" * len(s.shape)}' for s in contract.inputs
    )
    return f"Send {{{example}}} as application/json."
