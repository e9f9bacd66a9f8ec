"""Bounds on the size of a response, from the shapes of a model's outputs.

Minimum sizes are exact for raw tensors and npy, and a lower bound for JSON, in which a number takes
1 to 24 characters: a response that they reject could not have been sent. Maximum sizes decide
which arrays are encoded to JSON at once. The JSON encoder never gets more than the limit: out of
memory it crashes the process instead of raising an error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.errors import TooLargeError

Extents = Mapping[str, tuple[str, Sequence[int]]]
"""Type and shape of tensors, by name."""

LARGEST_BYTES = 2**31 - 1
"""Java stores the size of a response in an int."""
SHIPPED_BYTES = 16 << 20
"""max_response_size of the server as shipped, in config.properties."""

_LEAST_CHARACTERS = {"f": 3, "i": 1, "u": 1, "b": 4, "O": 2}
"""Of a JSON value by NumPy's kind: 0.0, 0, true, and the quotes of a text."""
_MOST_CHARACTERS = 24
_MOST_ESCAPED = 6
"""Maximum characters of JSON for one character of text."""
_LENGTH_BYTES = 4
"""Before each text of a raw tensor."""


def _kind(dtype: str) -> str:
    return "O" if dtype == "str" else np.dtype(dtype).kind


def _lists(shape: Sequence[int]) -> int:
    return sum(math.prod(shape[:depth]) for depth in range(len(shape)))


def least_json_bytes(dtype: str, shape: Sequence[int]) -> int:
    """The minimum size as nested lists: values, commas, and two brackets for each list."""
    values = math.prod(shape) * (_LEAST_CHARACTERS[_kind(dtype)] + 1)
    return max(values + 2 * _lists(shape) - 1, 1)


def raw_bytes(dtype: str, shape: Sequence[int]) -> int:
    """The size of raw values; for text the length prefixes only."""
    width = _LENGTH_BYTES if dtype == "str" else np.dtype(dtype).itemsize
    return width * math.prod(shape)


def most_json_bytes(array: Array) -> int:
    """The maximum size as nested lists."""
    values = array.size * (_MOST_CHARACTERS + 1) + _MOST_ESCAPED * text_bytes(array)
    return values + 3 * _lists(array.shape)


def surely_fit(outputs: Arrays, limit_bytes: int) -> bool:
    """Whether the outputs are below the limit in any format, as most responses are."""
    values = 0
    for array in outputs.values():
        if array.dtype.kind in "OU":
            return False
        values += array.size
    return values * 2 * _MOST_CHARACTERS <= limit_bytes


def text_bytes(array: Array) -> int:
    """The minimum size of all strings in an array; 0 for numbers."""
    return sum(map(len, array.flat)) if array.dtype.kind in "OU" else 0


def of(outputs: Arrays) -> Extents:
    """The extents of a model's outputs."""
    return {
        name: ("str" if array.dtype.kind in "OU" else array.dtype.name, array.shape)
        for name, array in outputs.items()
    }


def stated(contract: Contract, inputs: Arrays) -> Extents:
    """The extents of outputs whose sizes follow from a request's inputs, before it is run."""
    sizes = {
        axis: size
        for spec in contract.inputs
        for axis, size in zip(spec.shape, inputs[spec.name].shape, strict=False)
    }
    found = {}
    for spec in contract.outputs:
        shape = [axis if isinstance(axis, int) else sizes.get(axis) for axis in spec.shape]
        known = [size for size in shape if size is not None]
        if len(known) == len(shape):
            found[spec.name] = (spec.dtype, known)
    return found


def row_bytes(contract: Contract) -> int:
    """The minimum size of one row's outputs in the shortest format."""
    total = 0
    for spec in contract.outputs:
        shape = [_least(axis, contract) for axis in spec.shape[1:]]
        total += min(raw_bytes(spec.dtype, shape), least_json_bytes(spec.dtype, shape))
    return max(total, 1)


def bounded(contract: Contract) -> Contract:
    """The contract with an upper bound for its batch axis, if it has none.

    The bound is the number of rows that fit into any response, so that no request makes a worker
    compute what the server would not send; batches of requests stay within it, too.
    """
    axis = contract.batch_axis
    low, high = contract.bounds.get(axis or "", (1, None))
    if axis is None or high is not None:
        return contract
    most = max(SHIPPED_BYTES // row_bytes(contract), low)
    return replace(contract, bounds={**contract.bounds, axis: (low, most)})


def _least(axis: int | str, contract: Contract) -> int:
    return axis if isinstance(axis, int) else contract.bounds.get(axis, (1, None))[0]


def most_rows(specs: Sequence[TensorSpec], limit_bytes: int) -> int | None:
    """The number of rows that fit into a JSON response, if strings are no longer than numbers.

    None if a shape is unknown before the model is run.
    """
    total = 0
    for spec in specs:
        rest = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
        if len(rest) + 1 != len(spec.shape):
            return None
        total += math.prod(rest) * (_MOST_CHARACTERS + 1) + 3 * (1 + _lists(rest))
        total += sum(_MOST_ESCAPED * len(label) + 3 for label in spec.labels)
    return limit_bytes // max(total, 1)


def check(least_bytes: int, limit_bytes: int) -> None:
    """Reject a response that is too large.

    Raises:
        TooLargeError: The response is larger than the server's limit.
    """
    if least_bytes > limit_bytes:
        raise TooLargeError(
            f"the response must be at most {limit_bytes} bytes, got at least {least_bytes}. "
            "Ask for fewer rows, or raise max_response_size."
        )
