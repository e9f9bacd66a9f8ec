"""Tensors as raw bytes (Open Inference Protocol, binary tensor data extension)."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = {
    "BOOL": "|b1",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
"""Types of the Open Inference Protocol as NumPy's; BYTES and BF16 are written as they are below."""
_LENGTH = struct.Struct("<I")
Array = npt.NDArray[Any]


def packed(name: str, value: Array, datatype: str) -> bytes:
    """The bytes of a tensor, in the model's type.

    Args:
        name: Of the input, for errors.
        value: An array, or what NumPy makes one of.
        datatype: Of the protocol, such as FP32.

    Raises:
        TypeError: The type does not hold all values.
    """
    array = np.asarray(value)
    if datatype == "BYTES":
        return _packed_texts(name, array)
    wanted = np.dtype(DTYPES.get(datatype, "<f4"))
    are_whole = {array.dtype.kind, wanted.kind} <= set("iu")  # of any size: values decide
    if not (are_whole or np.can_cast(array.dtype, wanted, "same_kind")):
        raise TypeError(f"{name} must be {wanted.name}, got {array.dtype}. Convert it with astype.")
    with np.errstate(over="ignore", invalid="ignore"):  # what is lost is looked for
        numbers = array.astype(wanted)
        if datatype == "BF16":
            numbers = _rounded(numbers)
        lost = np.atleast_1d(array)[np.atleast_1d(_is_lost(array, numbers))]
    if lost.size:
        kind = "bfloat16" if datatype == "BF16" else wanted.name
        raise TypeError(f"{name} must hold values that {kind} has, got {lost[0]}.")
    if datatype == "BF16":
        return (numbers.view("<u4") >> 16).astype("<u2").tobytes()
    return numbers.tobytes()


def _packed_texts(name: str, array: Array) -> bytes:
    for text in array.flat:
        if not isinstance(text, str):
            raise TypeError(f"{name} must hold str, got {type(text).__name__}.")
    texts = [text.encode() for text in array.flat]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _is_lost(array: Array, numbers: Array) -> Array:
    """Where a conversion changes an integer, or makes infinity of a number."""
    if numbers.dtype.kind in "iu" and array.dtype.kind in "iu":
        limits = np.iinfo(numbers.dtype)
        low, high = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
        return (array < max(low, limits.min)) | (array > min(high, limits.max))
    if array.dtype.kind in "iu":  # back from beyond its range, an integer may be any
        is_beyond = ~np.isfinite(numbers) | (numbers >= float(np.iinfo(array.dtype).max + 1))
        is_lost: Array = is_beyond | (array != numbers.astype(array.dtype))
        return is_lost
    return np.isfinite(array) & ~np.isfinite(numbers)


def _rounded(numbers: Array) -> Array:
    """float32 to the nearest bfloat16, ties to even (IEEE 754-2019, 4.3.1), as float32."""
    bits = numbers.view("<u4")
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    found: Array = nearest.astype("<u4").view("<f4")
    return np.where(np.isnan(numbers), np.float32("nan"), found)


def unpacked(data: bytes, datatype: str) -> Array:
    """The values of a tensor's bytes, along one axis; strings as objects."""
    if datatype == "BYTES":
        texts: list[str] = []
        place = 0
        while place < len(data):
            (size,) = _LENGTH.unpack_from(data, place)
            place += _LENGTH.size + size
            texts.append(data[place - size : place].decode())
        found = np.empty(len(texts), object)
        found[:] = texts
        return found
    if datatype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, DTYPES[datatype])
