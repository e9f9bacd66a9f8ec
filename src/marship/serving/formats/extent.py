"""How large a response will be, told from the shapes of a model's outputs.

Least sizes are exact for raw tensors and npy, and a true lower bound for JSON, in which a number
takes from 1 to 24 characters: what is refused by them could not have been sent. Most sizes say
which arrays the JSON writer takes whole. It is never given more than the limit would hold: where
its memory ends it crashes the process instead of raising an error.
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
"""Java counts the bytes of a response in an int."""
SHIPPED_BYTES = 16 << 20
"""max_response_size of the server as shipped, in config.properties."""

_LEAST_CHARACTERS = {"f": 3, "i": 1, "u": 1, "b": 4, "O": 2}
"""Of a JSON value by NumPy's kind: 0.0, 0, true, and the quotes of a text."""
_MOST_CHARACTERS = 24
_MOST_ESCAPED = 6
"""Characters of JSON for one of text."""
_LENGTH_BYTES = 4
"""Before each text of a raw tensor."""


def _kind(dtype: str) -> str:
    return "O" if dtype == "str" else np.dtype(dtype).kind


def _lists(shape: Sequence[int]) -> int:
    return sum(math.prod(shape[:depth]) for depth in range(len(shape)))


def least_json_bytes(dtype: str, shape: Sequence[int]) -> int:
    """As nested lists: each value and the comma behind it, and two brackets for each list."""
    values = math.prod(shape) * (_LEAST_CHARACTERS[_kind(dtype)] + 1)
    return max(values + 2 * _lists(shape) - 1, 1)


def raw_bytes(dtype: str, shape: Sequence[int]) -> int:
    """As they lie in memory; of text the lengths alone."""
    width = _LENGTH_BYTES if dtype == "str" else np.dtype(dtype).itemsize
    return width * math.prod(shape)


def most_json_bytes(array: Array) -> int:
    """As nested lists, where each value is as long as it can be."""
    values = array.size * (_MOST_CHARACTERS + 1) + _MOST_ESCAPED * text_bytes(array)
    return values + 3 * _lists(array.shape)


def surely_fit(outputs: Arrays, limit_bytes: int) -> bool:
    """Whether no form of the outputs can come near the limit: most responses are that small."""
    values = 0
    for array in outputs.values():
        if array.dtype.kind in "OU":
            return False
        values += array.size
    return values * 2 * _MOST_CHARACTERS <= limit_bytes


def text_bytes(array: Array) -> int:
    """Of all texts in an array, at least; 0 where it holds numbers."""
    return sum(map(len, array.flat)) if array.dtype.kind in "OU" else 0


def of(outputs: Arrays) -> Extents:
    """Of arrays that a model gave."""
    return {
        name: ("str" if array.dtype.kind in "OU" else array.dtype.name, array.shape)
        for name, array in outputs.items()
    }


def stated(contract: Contract, inputs: Arrays) -> Extents:
    """Of the outputs whose sizes the contract tells for a request's inputs, before it is run."""
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
    """Of one row's outputs in the shortest form, with variable axes at their least."""
    total = 0
    for spec in contract.outputs:
        shape = [_least(axis, contract) for axis in spec.shape[1:]]
        total += min(raw_bytes(spec.dtype, shape), least_json_bytes(spec.dtype, shape))
    return max(total, 1)


def bounded(contract: Contract) -> Contract:
    """The contract with a bound for its batch axis, where nothing else bounds it.

    As many rows as a response can hold at all, so that no request makes a worker compute what
    the server would not send; joined calls stay within it too.
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
    """Rows that fit into a response of JSON, texts being no longer than numbers.

    None where a shape is not known before the model is run.
    """
    total = 0
    for spec in specs:
        rest = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
        if len(rest) + 1 != len(spec.shape):
            return None
        total += math.prod(rest) * (_MOST_CHARACTERS + 1) + 3 * (1 + _lists(rest))
    return limit_bytes // max(total, 1)


def check(least_bytes: int, limit_bytes: int) -> None:
    """Refuse what cannot be sent.

    Raises:
        TooLargeError: The response is larger than the server sends.
    """
    if least_bytes > limit_bytes:
        raise TooLargeError(
            f"the answer must be at most {limit_bytes} bytes, got at least {least_bytes}. "
            "Ask for fewer rows, or raise max_response_size."
        )
