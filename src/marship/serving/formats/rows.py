"""The fast path: parses many small JSON requests as one array, and splits the outputs.

It handles batches in which every request is plain JSON rows for a model with one input, and leaves
everything else to `codec` and `batch`, request by request. Its responses are the same bytes;
errors in a request are never reported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.serving.formats.tensors import keeps_values, may_hold_booleans, outside
from marship.serving.message import JSON_TYPE, Reply, Request

SMALL_BYTES = 1 << 14
"""Larger bodies gain nothing from being parsed together."""

_CERTAIN = 2.0**53
"""Numbers up to this are rounded to a float independently of others in the array."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The concatenated rows of all requests.

    Attributes:
        array: Valid for the contract's only input.
        counts: The number of rows of each request.
        sizes: Sizes of the variable axes: of the batch only.
        named: Whether the requests, and so the responses, are named JSON.
    """

    array: Array
    counts: list[int]
    sizes: dict[str, int]
    named: bool


def fits(contract: Contract) -> bool:
    """Whether requests of this model can use the fast path."""
    specs = (*contract.inputs, *contract.outputs)
    return (
        len(contract.inputs) == 1
        and contract.batch_axis is not None
        and contract.inputs[0].dtype not in ("str", "bool", "float16")
        and all(isinstance(size, int) for size in contract.inputs[0].shape[1:])
        and all(spec.shape[:1] == (contract.batch_axis,) for spec in specs)
    )


def gather(requests: Sequence[Request], contract: Contract) -> Rows | None:
    """All requests' rows as one valid array; None if one needs the general path."""
    (spec,) = contract.inputs
    rows: list[object] = []
    counts = []
    forms: set[type] = set()
    for request in requests:
        value = _plain_rows(request)
        forms.add(type(value))
        found = value.get(spec.name) if type(value) is dict and len(value) == 1 else value
        if type(found) is not list or not found:
            return None
        rows += found
        counts.append(len(found))
    low, high = contract.bounds.get(str(spec.shape[0]), (1, None))
    if min(counts) < low or (high is not None and len(rows) > high):
        return None
    array = _certain(rows, spec)
    if array is None or len(forms) != 1:  # responses of several formats differ
        return None
    return Rows(array, counts, {str(spec.shape[0]): len(array)}, named=forms == {dict})


def _certain(rows: list[object], spec: TensorSpec) -> Array | None:
    """The rows in the model's type, if the values certainly equal those parsed one by one."""
    try:
        array = np.array(rows)
    except (ValueError, OverflowError):
        return None
    want = np.dtype(spec.dtype)
    if array.shape[1:] != spec.shape[1:] or not keeps_values(array, want):
        return None
    with np.errstate(over="ignore"):
        array = array.astype(want, copy=False)
    # NaN and infinity too; beyond the limit an integer beside a fraction would be rounded twice,
    # first to float64. The sum of squares is faster than the maximum, and no smaller.
    if want.kind == "f" and not np.vdot(array, array) <= _CERTAIN**2:
        return None
    return array if outside(array, spec) is None else None


def _plain_rows(request: Request) -> object:
    body = request.body
    if request.content_type != JSON_TYPE or type(body) is not bytes or len(body) > SMALL_BYTES:
        return None
    if request.header("content-encoding"):
        return None
    if may_hold_booleans(body):  # mixed with numbers, true would silently become 1
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def scatter(outputs: Arrays, rows: Rows) -> list[Reply]:
    """Each request's response, equal to that of `codec.encode`."""
    columns = [(orjson.dumps(name), _texts(array, rows.counts)) for name, array in outputs.items()]
    if not rows.named and len(columns) == 1:
        return [Reply(text) for text in columns[0][1]]
    return [
        Reply(b"{" + b",".join(name + b":" + texts[i] for name, texts in columns) + b"}")
        for i in range(len(rows.counts))
    ]


def _texts(array: Array, counts: Sequence[int]) -> list[bytes]:
    """Each request's part of an array as JSON; numbers are encoded at once."""
    if array.dtype.name == "float16":
        array = array.astype("float32")
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        return [_dump(part) for part in np.split(array, np.cumsum(counts)[:-1])]
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
