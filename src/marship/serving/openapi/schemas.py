"""JSON Schemas: of tensors as JSON holds them, and of what handlers declare."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from marship.contract import Contract, TensorSpec
from marship.serving.openapi.interface import Schema

BINARY: Schema = {"type": "string", "format": "binary"}
NUMBER: Schema = {"type": "number"}
TEXT: Schema = {"type": "string"}
NULLABLE: Schema = {"anyOf": [NUMBER, {"type": "null"}]}
"""A number, or null for NaN or infinity. A list of types would say the same, but not all tools read
those."""
_MOST_COLUMNS = 1000
"""Longer axes are described by one schema for all their places."""


def record(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> dict[str, Any]:
    """An object with these fields; the optional ones may be missing.

    Example:
        >>> record(score={"type": "number"})["required"]
        ['score']
    """
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def array(items: Schema, least: int = 0, most: int | None = None) -> dict[str, Any]:
    """A list of so many values."""
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": items, **({"minItems": least} if least else {}), **limit}


def share(what: str) -> dict[str, Any]:
    """A number from 0 to 1."""
    return {"type": "number", "minimum": 0, "maximum": 1, "description": what}


def given(spec: TensorSpec, contract: Contract) -> dict[str, Any]:
    """A tensor in a request: nested lists within the contract's bounds."""
    return {**_axis(spec, contract, {}), "description": about(spec, contract)}


def row_of(spec: TensorSpec, contract: Contract) -> dict[str, Any]:
    """One row of a tensor in a request: what stands along its first axis."""
    return _axis(spec, contract, {0: None})


def returned(spec: TensorSpec, contract: Contract) -> dict[str, Any]:
    """A tensor in a response; NaN and infinity are null, and classes are given by name."""
    return {**_returned(spec, 0), "description": about(spec, contract)}


def returned_row(spec: TensorSpec) -> dict[str, Any]:
    """One row of a tensor in a response of KServe v1, in which classes have no names."""
    return _returned(spec, 1, is_plain=True)


def returned_value(spec: TensorSpec) -> dict[str, Any]:
    """One value of a tensor in a response."""
    return _returned(spec, len(spec.shape), is_plain=True)


def about(spec: TensorSpec, contract: Contract) -> str:
    """A tensor's type, shape and sizes, for people."""
    axes = [axis for axis in dict.fromkeys(spec.shape) if isinstance(axis, str)]
    rules = "".join(f"; {axis}: {contract.size_rule(axis)}" for axis in axes)
    narrow = f", of {spec.narrow} in the model" if spec.narrow else ""
    return f"{spec.form}{narrow}{rules}"


def any_value(spec: TensorSpec) -> dict[str, Any]:
    """One value of an input, wherever it stands."""
    found = _value(spec)
    return {"anyOf": [found, {"type": "null"}]} if spec.takes_missing else found


def _value(spec: TensorSpec) -> dict[str, Any]:
    if spec.dtype == "str":
        return dict(TEXT)
    if spec.dtype == "bool":
        return {"type": "boolean"}
    if spec.value_range is not None:
        low, high = spec.value_range
        kind = "number" if spec.dtype.startswith("float") else "integer"
        return {"type": kind, "minimum": low, "maximum": high}
    if spec.dtype.startswith("float"):
        return _floats(spec.dtype)
    limits = np.iinfo(spec.dtype)
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def _floats(dtype: str) -> dict[str, Any]:
    """Numbers that round to a finite value of the type: from half a step over the largest on, none.

    Source: IEEE 754-2019, 4.3.1 (roundTiesToEven).
    """
    largest = np.finfo(dtype).max
    if dtype == "float64":
        return {"type": "number", "minimum": -float(largest), "maximum": float(largest)}
    end = float(largest) + (float(largest) - float(np.nextafter(largest, 0, dtype=dtype))) / 2
    return {"type": "number", "exclusiveMinimum": -end, "exclusiveMaximum": end}


def _axis(spec: TensorSpec, contract: Contract, places: dict[int, int | None]) -> dict[str, Any]:
    """The values from an axis on, behind these places of the axes before it."""
    axis = len(places)
    if axis == len(spec.shape):
        return _narrowed(spec, places)
    size = spec.shape[axis]
    if isinstance(size, str):
        low, high = contract.bounds.get(size, (1, None))
        least = contract.least_rows if size == contract.batch_axis else low
        return array(_axis(spec, contract, {**places, axis: None}), least, high)
    if size <= _MOST_COLUMNS and axis in _own_axes(spec):
        columns = [_axis(spec, contract, {**places, axis: place}) for place in range(size)]
        return {"type": "array", "prefixItems": columns, "minItems": size, "maxItems": size}
    return array(_axis(spec, contract, {**places, axis: None}), size, size)


def _own_axes(spec: TensorSpec) -> set[int]:
    """The axes along which values have rules of their own."""
    last = {len(spec.shape) - 1} if spec.full_columns else set()
    return {column.axis for column in spec.column_ranges} | last


def _narrowed(spec: TensorSpec, places: dict[int, int | None]) -> dict[str, Any]:
    found = _value(spec)
    for column in spec.column_ranges:
        if places.get(column.axis) == column.place:
            found = {"type": found["type"], "minimum": column.low, "maximum": column.high}
    is_full = places.get(len(spec.shape) - 1) in spec.full_columns
    return {"anyOf": [found, {"type": "null"}]} if spec.takes_missing and not is_full else found


def _returned(spec: TensorSpec, axis: int, *, is_plain: bool = False) -> dict[str, Any]:
    if axis == len(spec.shape) - 1 and spec.labels and not is_plain:
        return record(**dict.fromkeys(spec.labels, NULLABLE))
    if axis < len(spec.shape):
        size = spec.shape[axis]
        most = size if isinstance(size, int) else None
        return array(_returned(spec, axis + 1, is_plain=is_plain), most or 0, most)
    if spec.dtype in ("str", "bool"):
        return {"type": "string" if spec.dtype == "str" else "boolean"}
    return dict(NULLABLE) if spec.dtype.startswith("float") else {"type": "integer"}
