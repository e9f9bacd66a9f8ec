"""Encodes arrays as JSON within a limit, and names the values of classes."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from marship.contract import Array
from marship.serving.formats import extent

CHUNK_VALUES = 1 << 16
"""Values of a large array that are encoded as JSON at a time."""


def plain(array: Array) -> Any:  # noqa: ANN401  what orjson takes
    """The array, or nested lists if orjson does not support its type."""
    if array.dtype.kind in "OU":
        return array.tolist()
    if array.ndim == 0:  # orjson knows no numpy.longlong, and writes float32 in fewer digits
        return array[()] if array.dtype.kind == "f" else array.item()
    if array.dtype.char == "e":  # its name is made anew each time
        return array.astype("float32", order="C")
    return array if array.flags.c_contiguous else array.copy(order="C")


def dump(array: Array, limit_bytes: int, labels: Sequence[str] = ()) -> bytes:
    """An array as JSON; if it may exceed the limit it is encoded in chunks, until it does.

    Args:
        array: The array.
        limit_bytes: The limit.
        labels: Of the last axis, whose values become an object by these names.

    Raises:
        TooLargeError: It is larger than the limit.
    """
    if labels:
        return _labelled(array, limit_bytes, labels)
    if (array.size and extent.surely_fit({"": array}, limit_bytes)) or (
        extent.most_json_bytes(array) <= limit_bytes
    ):
        return orjson.dumps(plain(array), option=orjson.OPT_SERIALIZE_NUMPY)
    parts, total = [], 0
    for part in _chunks(array):
        parts.append(part)
        total += len(part)
        extent.check(total, limit_bytes)
    return b"".join(parts)


def _labelled(array: Array, limit_bytes: int, labels: Sequence[str]) -> bytes:
    """Objects of numbers by label: an array of them, or one for an array of rank 1."""
    names = [orjson.dumps(label) + b":" for label in labels]
    rows = array.reshape(-1, len(labels))
    extent.check(len(rows) * sum(map(len, names)), limit_bytes)
    numbers = dump(rows.reshape(-1), limit_bytes)[1:-1].split(b",") if rows.size else []
    width = len(names)
    objects = [
        b"{%b}" % b",".join(map(bytes.__add__, names, numbers[start : start + width]))
        for start in range(0, len(numbers), width)
    ]
    return objects[0] if array.ndim == 1 else b"[%b]" % b",".join(objects)


def _chunks(array: Array) -> Iterator[bytes]:
    """The JSON of an array in chunks, split between values."""
    if array.size <= CHUNK_VALUES:
        yield orjson.dumps(plain(array), option=orjson.OPT_SERIALIZE_NUMPY)
        return
    step = CHUNK_VALUES * len(array) // array.size
    for start in range(0, len(array), max(step, 1)):
        yield b"," if start else b"["
        if step:
            part = plain(array[start : start + step])
            yield orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        else:
            yield from _chunks(array[start])
    yield b"]"
