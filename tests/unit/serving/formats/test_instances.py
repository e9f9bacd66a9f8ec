"""KServe v1: rows in, predictions out, with the values of the named form."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import InvalidInputError, TooLargeError
from marship.serving.formats import codec
from marship.serving.formats.codec import BodyFormat

DTYPES = ("float32", "float64", "int64", "uint8", "bool", "str")
LETTERS = st.text(st.characters(codec="utf-8"), max_size=4)


def contract(inputs: Arrays, outputs: Arrays) -> Contract:
    """A contract that these arrays fit."""

    def specs(arrays: Arrays) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name, "str" if a.dtype == object else a.dtype.name, ("batch", *a.shape[1:])
            )
            for name, a in arrays.items()
        )  # fmt: skip

    return Contract(specs(inputs), specs(outputs), ("m",), "", 20, "batch")


@st.composite
def tensors(draw: st.DrawFn, count: int, names: str) -> Arrays:
    """Arrays of so many rows, of any types and shapes."""
    made: Arrays = {}
    for name in names[: draw(st.integers(1, len(names)))]:
        shape = (count, *draw(st.lists(st.integers(1, 3), max_size=2)))
        dtype = draw(st.sampled_from(DTYPES))
        if dtype == "str":
            size = int(np.prod(shape))
            flat = draw(st.lists(LETTERS, min_size=size, max_size=size))
            made[name] = np.array(flat, dtype=object).reshape(shape)
        else:
            finite = {"allow_nan": False, "allow_infinity": False}
            values = hnp.from_dtype(np.dtype(dtype), **(finite if dtype[0] == "f" else {}))
            made[name] = draw(hnp.arrays(dtype, shape, elements=values))
    return made


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(tensors(n, "abc"), tensors(n, "xyz"))))
def test_instances_mean_what_the_named_form_means(made: tuple[Arrays, Arrays]) -> None:
    """The same inputs of the same types, and predictions that are the rows of the outputs."""
    inputs, outputs = made
    model, count = contract(*made), len(next(iter(inputs.values())))
    named = {name: array.tolist() for name, array in inputs.items()}
    rows: list[Any] = [{name: v[i] for name, v in named.items()} for i in range(count)]
    bodies = [rows] if len(inputs) > 1 else [rows, named["a"]]
    wanted = codec.decode(json.dumps(named).encode(), codec.JSON_TYPE, model)
    text = json.loads(codec.encode(outputs, wanted, "m", "1").body)
    for instances in bodies:
        body = json.dumps({"instances": instances}).encode()
        got = codec.decode(body, codec.JSON_TYPE, model)
        assert got.form is BodyFormat.INSTANCES
        for name, array in wanted.inputs.items():
            assert got.inputs[name].dtype == array.dtype
            np.testing.assert_array_equal(got.inputs[name], array)
        reply = json.loads(codec.encode(outputs, got, "m", "1").body)
        (only, *more) = text
        predictions = [{name: v[i] for name, v in text.items()} for i in range(count)]
        assert reply == {"predictions": predictions if more else text[only]}


ONE = contract({"x": np.ones((1, 2), np.float32)}, {"y": np.ones((1, 2), np.float32)})
TWO = contract({"a": np.ones(1), "b": np.ones(1)}, {"y": np.ones(1), "z": np.ones(1)})
BAD = {
    "no list": (ONE, {"a": 1}, "instances must be a list of rows, got dict"),
    "rows of lists": (TWO, [[1, 2]], "must be sent by name"),
    "a row without an input": (TWO, [{"a": 1, "b": 2}, {"a": 1}], "got a request without b"),
    "a row with more": (TWO, [{"a": 1, "b": 2, "c": 3}], "'c'"),
    "mixed rows": (TWO, [{"a": 1, "b": 2}, 3], "must all be objects"),
    "uneven rows": (ONE, [[1, 2], [3]], "evenly nested"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_instances_are_refused(name: str) -> None:
    """With what is wrong."""
    model, instances, words = BAD[name]
    with pytest.raises(InvalidInputError, match=words):
        codec.decode(json.dumps({"instances": instances}).encode(), codec.JSON_TYPE, model)


def test_tensorflow_servings_clients_name_a_signature() -> None:
    """Of a model with one only, it is ignored; other keys are refused as before."""
    body = b'{"signature_name": "serving_default", "instances": [[1, 2]]}'
    message = codec.decode(body, codec.JSON_TYPE, ONE)
    assert message.form is BodyFormat.INSTANCES
    np.testing.assert_array_equal(message.inputs["x"], np.float32([[1, 2]]))
    with pytest.raises(InvalidInputError, match="the inputs must be x"):
        codec.decode(b'{"instances": [[1, 2]], "other": 1}', codec.JSON_TYPE, ONE)


def test_an_input_of_that_name_is_an_input() -> None:
    """The named form was there first."""
    model = contract({"instances": np.ones((1, 2))}, {"y": np.ones(1)})
    message = codec.decode(b'{"instances": [[1, 2]]}', codec.JSON_TYPE, model)
    assert message.form is BodyFormat.NAMED


def test_predictions_are_one_for_each_instance_or_refused() -> None:
    """An output of another number of rows cannot be split."""
    message = codec.decode(b'{"instances": [[1, 2], [3, 4]]}', codec.JSON_TYPE, ONE)
    for shape in ((3, 2), (1,), ()):
        with pytest.raises(InvalidInputError, match="a row for each, got y of shape"):
            codec.encode({"y": np.ones(shape)}, message, "m", "1")


def test_predictions_are_bounded() -> None:
    """As other responses are."""
    message = codec.decode(b'{"instances": [[1, 2]]}', codec.JSON_TYPE, ONE)
    for names in ("y", "yz"):
        outputs = {name: np.ones((1, 1000), np.float32) for name in names}
        with pytest.raises(TooLargeError):
            codec.encode(outputs, message, "m", "1", 1000)
