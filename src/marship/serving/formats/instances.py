"""KServe v1: a list of rows as `instances`, answered by a list of as many `predictions`.

A row is what stands along the first axis of the model's only input, or an object with a row of
each input by name: `{"instances": [[1, 2], [3, 4]]}`, `{"instances": [{"a": 1, "b": [2]}]}`. A
prediction is a row of the only output, or an object of them. TensorFlow Serving's clients also send
the `signature_name` of what they call; a model here has one only.

Source: KServe, Data Plane (V1), which is TensorFlow Serving's row format.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from marship.contract import Arrays, Contract
from marship.errors import InvalidInputError
from marship.serving.formats import extent
from marship.serving.formats.encoding import dump
from marship.serving.formats.tensors import check_names, only_input, to_array

KEY = "instances"
_KEYS = {KEY, "signature_name"}


def is_request(value: Mapping[str, Any], contract: Contract) -> bool:
    """Whether a JSON object is a request of this protocol; a model may have an input named so."""
    names = {spec.name for spec in contract.inputs}
    return KEY in value and value.keys() <= _KEYS and not names.intersection(value)


def decode(value: Mapping[str, Any], contract: Contract, *, may_mix: bool = True) -> Arrays:
    """Tensors by name; `may_mix` says whether booleans may be mixed with the numbers.

    Raises:
        InvalidInputError: The rows are no list, or not what the model takes.
    """
    rows = value[KEY]
    if not isinstance(rows, list):
        raise InvalidInputError(
            f'instances must be a list of rows, got {type(rows).__name__}. Send {{"instances": '
            "[...]}, a row for each prediction."
        )
    if not any(isinstance(row, dict) for row in rows):
        spec = only_input(contract)
        return {spec.name: to_array(rows, spec, may_mix=may_mix)}
    specs = {spec.name: spec for spec in contract.inputs}
    for row in rows:
        if not isinstance(row, dict):
            raise InvalidInputError(
                "instances must all be objects where one is, got another row among them."
            )
        if row.keys() != specs.keys():
            check_names(row, specs, contract)
    return {
        name: to_array([row[name] for row in rows], spec, may_mix=may_mix)
        for name, spec in specs.items()
    }


def encode(outputs: Arrays, inputs: Arrays, limit_bytes: int) -> bytes:
    """The body of the response to the instances that these inputs are of.

    Raises:
        InvalidInputError: An output has another number of rows.
        TooLargeError: It is larger than the limit.
    """
    first = next(iter((*inputs.values(), *outputs.values())))
    count = len(first) if first.ndim else 0
    for name, array in outputs.items():
        if array.shape[:1] != (count,):
            raise InvalidInputError(
                f"instances must be sent to a model that gives a row for each, got {name} of shape "
                f"{list(array.shape)} for {count}. Send the inputs by name."
            )
    if len(outputs) == 1:
        return b'{"predictions":' + dump(next(iter(outputs.values())), limit_bytes) + b"}"
    names = [orjson.dumps(name) + b":" for name in outputs]
    rows: list[bytes] = []
    total = 0
    for place in range(count):
        row = (array[place : place + 1].reshape(array.shape[1:]) for array in outputs.values())
        texts = [name + dump(part, limit_bytes) for name, part in zip(names, row, strict=True)]
        rows.append(b"{" + b",".join(texts) + b"}")
        total += len(rows[-1]) + 1
        extent.check(total, limit_bytes)
    return b'{"predictions":[' + b",".join(rows) + b"]}"
