"""JSON Schemas of tensors: what they take is what the codec takes."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from marship.contract import ColumnRange, Contract, TensorSpec
from marship.errors import RequestError
from marship.serving.formats import codec
from marship.serving.formats.tensors import conform
from marship.serving.openapi import schemas

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([65504.0, 65519.9, 65520.0, 3.4028235677973362e38, 3.4028235677973366e38]),
    st.sampled_from([True, False, None, "a", -1, 0, 127, 128, 255, 256]),
)
DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int64", "uint64", "bool", "str")


def contract(**facts: Any) -> Contract:
    """A model with one input, rows of two values."""
    spec = TensorSpec(**{"name": "x", "dtype": "float32", "shape": ("batch", 2), **facts})
    output = TensorSpec("y", "float32", ("batch",))
    return Contract((spec,), (output,), ("model.onnx",), "", 17, batch_axis="batch")


def takes(found: Contract, value: Any) -> bool:
    """Whether the codec takes a JSON value for the input."""
    try:
        message = codec.decode(orjson.dumps(value), "application/json", found)
        conform(message.inputs, found)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("dtype", DTYPES)
@given(row=st.lists(NUMBERS, min_size=2, max_size=2))
def test_a_row_is_valid_where_the_codec_takes_it(dtype: str, row: list[Any]) -> None:
    """For each type, at its limits, too; whole numbers written 3.0 are JSON Schema's alone."""
    found = contract(dtype=dtype)
    schema = Draft202012Validator(schemas.given(found.inputs[0], found))
    is_written_whole = "int" in dtype and any(
        isinstance(value, float) and value.is_integer() for value in row
    )
    is_large = dtype == "float64" and any(isinstance(v, int) and abs(v) > 2**53 for v in row)
    if not (is_written_whole or is_large):
        assert schema.is_valid([row]) == takes(found, [row])


def test_columns_have_their_own_ranges() -> None:
    """A column that indexes a table, and one that may be missing beside one that may not."""
    ranged = contract(dtype="int64", column_ranges=(ColumnRange(1, 1, 0, 9),))
    schema = Draft202012Validator(schemas.given(ranged.inputs[0], ranged))
    assert schema.is_valid([[100, 9]])
    assert not schema.is_valid([[9, 10]])
    missing = contract(takes_missing=True, full_columns=(0,))
    schema = Draft202012Validator(schemas.given(missing.inputs[0], missing))
    assert schema.is_valid([[1, None]])
    assert not schema.is_valid([[None, 1]])
