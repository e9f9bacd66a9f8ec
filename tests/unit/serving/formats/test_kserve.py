"""KServe's binary tensor extension: raw bytes behind the JSON, in both directions."""

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marship.contract import Contract, TensorSpec
from marship.errors import InvalidInputError, MalformedError, RequestError
from marship.serving.formats import codec, kserve


def contract(*inputs: TensorSpec) -> Contract:
    """A contract with these inputs."""
    return Contract(inputs, (), ("m",), "", 20, "batch")


FLOATS = TensorSpec("x", "float32", ("batch", 2))
TEXT = TensorSpec("t", "str", ("batch",))
TWO = contract(FLOATS, TEXT)
ONE = contract(FLOATS)


def entry(name: str, datatype: str, shape: list[int], size: int | None) -> dict[str, Any]:
    """One input's description."""
    described: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    return described if size is None else {**described, "parameters": {"binary_data_size": size}}


def decode(value: object, raw: bytes, model: Contract) -> codec.Message:
    """Decode a body of JSON and raw bytes."""
    text = json.dumps(value).encode()
    return codec.decode(text + raw, "application/octet-stream", model, str(len(text)))


def test_raw_tensors_are_read_in_their_order() -> None:
    """Two raw inputs, one of text, come out as sent; numbers are not copied."""
    x = np.array([[1.5, -2], [3, 4]], "<f4")
    text = b"".join(struct.pack("<I", len(t)) + t for t in (b"a", "é".encode()))
    value = {"inputs": [entry("x", "FP32", [2, 2], 16), entry("t", "BYTES", [2], len(text))]}
    message = decode(value, x.tobytes() + text, TWO)
    np.testing.assert_array_equal(message.inputs["x"], x)
    assert message.inputs["x"].base is not None
    assert message.inputs["t"].tolist() == ["a", "é"]


def test_raw_and_json_tensors_mix() -> None:
    """Only those with a binary_data_size are raw."""
    value = {"inputs": [entry("x", "FP32", [1, 2], 8), entry("t", "BYTES", [1], None)]}
    value["inputs"][1]["data"] = ["text"]
    message = decode(value, np.ones(2, "<f4").tobytes(), TWO)
    assert message.inputs["t"].tolist() == ["text"]


Y, T = TensorSpec("y", "int16", ("batch", 2)), TensorSpec("t", "str", ("batch",))
RAW = {"y": b"\x01\x00\x02\x00", "t": b"\x02\x00\x00\x00ab"}


@pytest.mark.parametrize(
    ("asked", "is_raw"),
    [
        ({}, {"y": False, "t": False}),
        ({"parameters": {"binary_data_output": True}}, {"y": True, "t": True}),
        ({"parameters": {"binary_data_output": None}}, {"y": False, "t": False}),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": None}}]}, {"y": False}),
        ({"outputs": []}, {"y": False, "t": False}),
        ({"outputs": [{"name": "t"}]}, {"t": False}),
        ({"outputs": [{"name": "t"}, {"name": "y"}]}, {"t": False, "y": False}),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, {"y": True}),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "t"}],
            },
            {"y": False, "t": True},
        ),
    ],
)
def test_the_outputs_that_are_requested_are_sent(
    asked: dict[str, Any], is_raw: dict[str, bool]
) -> None:
    """All or some, in the order asked for, raw where asked; the header tells the JSON's length."""
    value = {"id": "7", "inputs": [entry("x", "FP32", [1, 2], 8)], **asked}
    message = decode(value, bytes(8), replace(ONE, outputs=(Y, T)))
    outputs = {"y": np.array([[1, 2]], np.int16), "t": np.array(["ab"], dtype=object)}
    reply = codec.encode(outputs, message, "m", "1")
    length = int(dict(reply.headers).get(kserve.LENGTH_HEADER, len(reply.body)))
    answer = json.loads(reply.body[:length])
    assert answer["id"] == "7"
    told = {output["name"]: "parameters" in output for output in answer["outputs"]}
    assert list(told.items()) == list(is_raw.items())
    assert reply.body[length:] == b"".join(RAW[name] for name, yes in is_raw.items() if yes)
    assert (reply.content_type == "application/octet-stream") is any(is_raw.values())


@pytest.mark.parametrize("names", [["z"], ["y", "z"], ["y", "y"], [None]])
def test_outputs_that_the_model_does_not_have_are_refused(names: list[Any]) -> None:
    """With those that it has."""
    value = {
        "inputs": [entry("x", "FP32", [1, 2], 8)],
        "outputs": [{"name": name} for name in names],
    }
    with pytest.raises(InvalidInputError, match="outputs must name some of y, t, each once"):
        decode(value, bytes(8), replace(ONE, outputs=(Y, T)))


@settings(max_examples=100, deadline=None)
@given(
    array=st.sampled_from([d for d in kserve.DTYPES.values() if d != "str"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3))
    )
)
def test_every_type_travels_raw(array: np.ndarray) -> None:
    """What encode writes raw, decode reads back, for every datatype and shape."""
    requested = kserve.OutputRequest(all_binary=True)
    body, length = kserve.encode({"x": array}, requested, "m", "1")
    assert length is not None
    described = json.loads(body[:length])["outputs"]
    model = contract(TensorSpec("x", array.dtype.name, tuple("abc"[: array.ndim])))
    inputs, _ = kserve.decode({"inputs": described}, memoryview(body)[length:], model)
    np.testing.assert_array_equal(inputs["x"], array)


GOOD = {"inputs": [entry("x", "FP32", [1, 2], 8)]}
BAD: dict[str, tuple[object, bytes, type[RequestError], str]] = {
    "too few bytes": (GOOD, bytes(7), MalformedError, "at most the 7 bytes"),
    "too many bytes": (GOOD, bytes(9), MalformedError, "1 bytes more"),
    "a size too large": (
        {"inputs": [entry("x", "FP32", [1, 2], 10**9)]},
        bytes(8),
        MalformedError,
        "1000000000",
    ),
    "a negative size": (
        {"inputs": [entry("x", "FP32", [1, 2], -8)]},
        bytes(8),
        MalformedError,
        "-8",
    ),
    "a part of a value": (
        {"inputs": [entry("x", "FP32", [1, 2], 7)]},
        bytes(7),
        MalformedError,
        "multiple of 4",
    ),
    "another shape": (
        {"inputs": [entry("x", "FP32", [3, 2], 8)]},
        bytes(8),
        InvalidInputError,
        "the 6 values",
    ),
    "no inputs": ({"x": 1}, bytes(8), InvalidInputError, "described by inputs"),
    "a list": ([1], bytes(8), InvalidInputError, "described by inputs"),
}


@pytest.mark.parametrize("case", BAD)
def test_sizes_that_do_not_fit_are_named(case: str) -> None:
    """Raw bytes that are not what the JSON says of them are a clear error."""
    value, raw, error, words = BAD[case]
    with pytest.raises(error, match=words):
        decode(value, raw, ONE)


@pytest.mark.parametrize("length", ["-1", "99", "x", "", "1e3", "٣"])
def test_a_wrong_header_length_is_named(length: str) -> None:
    """A length that is no number, negative, or longer than the body names the header."""
    with pytest.raises(MalformedError, match=kserve.LENGTH_HEADER):
        codec.decode(b'{"inputs": []}', "application/octet-stream", ONE, length)


@pytest.mark.parametrize("part", [b"\x01", b"\x05\x00\x00\x00ab", b"\x01\x00\x00\x00\xff"])
def test_texts_that_end_early_or_are_no_utf8_are_named(part: bytes) -> None:
    """A length without its text, half a length, and bytes that are no text."""
    value = {"inputs": [entry("t", "BYTES", [1], len(part))]}
    with pytest.raises(MalformedError, match="texts with their lengths"):
        decode(value, part, contract(TEXT))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"outputs": ["y"]}, "outputs must be a list such as"),
        ({"outputs": {"name": "y"}}, "outputs must be a list such as"),
        ({"outputs": "y"}, "outputs must be a list such as"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": "false"}}]}, "binary_data must"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({"parameters": {"binary_data_output": 0}}, "binary_data_output must be true or false"),
        ({"id": {"a": 1}}, "id must be text"),
        ({"id": [1]}, "id must be text"),
    ],
)
def test_what_is_asked_of_outputs_in_another_form_is_refused(
    asked: dict[str, Any], words: str
) -> None:
    """It would be ignored, or taken for something else."""
    value = {"inputs": [entry("x", "FP32", [1, 2], 8)], **asked}
    with pytest.raises(InvalidInputError, match=words):
        decode(value, bytes(8), replace(ONE, outputs=(Y, T)))


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "", " ", "+2", "\u0662", "99"])
def test_a_length_that_is_none_is_malformed(length: str) -> None:
    """However many digits it has."""
    with pytest.raises(MalformedError, match="must be the length of the JSON"):
        kserve.split(b"{}", length)
    assert kserve.split(b"{}xy", " 2 ") == (b"{}", b"xy")
