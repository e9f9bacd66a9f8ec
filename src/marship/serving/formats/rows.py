"""The fast path: parses many small JSON requests as one array, and splits the outputs.

It handles batches in which every request is plain JSON rows of fixed sizes, and leaves everything
else to `codec` and `batch`, request by request. Its responses are the same bytes; errors in a
request are never reported here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.serving.formats import extent
from marship.serving.formats.encoding import dump
from marship.serving.formats.ranges import outside
from marship.serving.formats.tensors import EXACT, keeps_values, may_hold_booleans
from marship.serving.message import JSON_TYPE, Reply, Request

SMALL_BYTES = 1 << 14
"""Larger bodies gain nothing from being parsed together."""

MANY_REQUESTS, WIDE_VALUES = 8, 64
"""From so many requests and below so many values a row, one call for all outputs is faster."""


@dataclass(slots=True)
class Rows:
    """The concatenated rows of all requests.

    Attributes:
        arrays: The contract's inputs, valid.
        counts: The number of rows of each request.
        sizes: Sizes of the variable axes: of the batch only.
        named: Whether the requests, and so the responses, are named JSON.
    """

    arrays: Arrays
    counts: list[int]
    sizes: dict[str, int]
    named: bool


def fits(contract: Contract) -> bool:
    """Whether requests of this model can use the fast path."""
    specs = (*contract.inputs, *contract.outputs)
    return (
        contract.batch_axis is not None
        and contract.batch_axis not in contract.steps
        and all(spec.dtype not in ("str", "bool", "float16") for spec in contract.inputs)
        and all(isinstance(size, int) for spec in contract.inputs for size in spec.shape[1:])
        and all(spec.shape[:1] == (contract.batch_axis,) for spec in specs)
    )


def gather(requests: Sequence[Request], contract: Contract) -> Rows | None:
    """All requests' rows as valid arrays; None if one needs the general path."""
    names = [spec.name for spec in contract.inputs]
    values = [_plain_rows(request) for request in requests]
    forms = set(map(type, values))
    if len(forms) != 1:  # responses of several formats differ
        return None
    columns = _columns(values, names)
    if columns is None:
        return None
    counts = [len(rows) for rows in columns[0]]
    batch = str(contract.inputs[0].shape[0])
    low, high = contract.bounds.get(batch, (1, None))
    if min(counts) < max(low, 1) or (high is not None and sum(counts) > high):
        return None
    arrays: Arrays = {}
    for spec, column in zip(contract.inputs, columns, strict=True):
        if column is not columns[0] and [len(rows) for rows in column] != counts:
            return None
        array = _certain([row for rows in column for row in rows], spec)
        if array is None:
            return None
        arrays[spec.name] = array
    return Rows(arrays, counts, {batch: sum(counts)}, named=forms == {dict})


def _columns(values: Sequence[Any], names: Sequence[str]) -> list[list[list[object]]] | None:
    """The rows of each input, of each request; None if a request is not of lists alone."""
    if type(values[0]) is dict:
        if any(value.keys() != set(names) for value in values):
            return None
        columns = [[value[name] for value in values] for name in names]
    else:
        columns = [list(values)] if len(names) == 1 else []
    are_lists = all(type(rows) is list for column in columns for rows in column)
    return columns if columns and are_lists else None


def _certain(rows: list[object], spec: TensorSpec) -> Array | None:
    """The rows in the model's type, if the values certainly equal those parsed one by one."""
    try:
        array = np.array(rows)
    except (ValueError, OverflowError):
        return None
    want = np.dtype(spec.dtype)
    if array.shape[1:] != spec.shape[1:] or not keeps_values(array, want):
        return None
    if want.kind == "f":
        if array.dtype.kind != "f":
            array = array.astype(want)
        # NaN and infinity too; beyond the limit an integer beside a fraction would be rounded
        # twice, first to float64. The sum of squares is faster than the maximum, and no smaller.
        if not np.vdot(array, array) <= EXACT**2:
            return None
    if array.dtype != want:
        array = array.astype(want)
    return array if outside(array, spec) is None else None


def _plain_rows(request: Request) -> object:
    body = request.body
    if request.content_type != JSON_TYPE or type(body) is not bytes or len(body) > SMALL_BYTES:
        return None
    if request.explains or request.header("content-encoding"):
        return None
    if may_hold_booleans(body):  # mixed with numbers, true would silently become 1
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def scatter(
    outputs: Arrays, rows: Rows, labels: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> list[Reply]:
    """Each request's response, equal to that of `codec.encode`."""
    columns = [
        (orjson.dumps(name), _texts(array, rows.counts, labels.get(name, ())))
        for name, array in outputs.items()
    ]
    if not rows.named and len(columns) == 1:
        return [Reply(text) for text in columns[0][1]]
    return [
        Reply(b"{" + b",".join(name + b":" + texts[i] for name, texts in columns) + b"}")
        for i in range(len(rows.counts))
    ]


def _texts(array: Array, counts: Sequence[int], labels: Sequence[str]) -> list[bytes]:
    """Each request's part of an array as JSON; many small ones are encoded at once."""
    if array.dtype.char == "e":
        array = array.astype("float32")
    is_small = len(counts) >= MANY_REQUESTS and array.size < WIDE_VALUES * len(array)
    if labels or not is_small or array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        ends = list(accumulate(counts))
        parts = [array[end - n : end] for n, end in zip(counts, ends, strict=True)]
        return [
            dump(part, extent.LARGEST_BYTES, labels) if labels else _dump(part) for part in parts
        ]
    border, separator = (b"[[", b"],[") if array.ndim > 1 else (b"[", b",")
    width = len(border)
    numbers = _dump(np.ascontiguousarray(array))[width:-width].split(separator)
    closing = border.replace(b"[", b"]")
    texts = []
    start = 0
    for count in counts:
        texts.append(border + separator.join(numbers[start : start + count]) + closing)
        start += count
    return texts


def _dump(array: Array) -> bytes:
    if array.dtype.kind in "OU":
        return orjson.dumps(array.tolist())
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
