"""Bytes to arrays and back, form by form, and what each bad request is told."""

import gzip
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marship.contract import ColumnRange, Contract, TensorSpec
from marship.errors import (
    InvalidInputError,
    MalformedError,
    RequestError,
    TooLargeError,
    UnsupportedMediaError,
)
from marship.serving.formats import codec, forms
from marship.serving.formats.codec import BodyFormat
from marship.serving.formats.ranges import outside
from marship.serving.model.batch import validate


def contract(*inputs: TensorSpec, outputs: int = 1) -> Contract:
    """A contract with these inputs and so many float outputs."""
    given = tuple(TensorSpec(f"out{i}", "float32", ("batch", 2)) for i in range(outputs))
    return Contract(inputs, given, ("model.onnx",), "0" * 64, 20, "batch")


FLOATS = TensorSpec("input", "float32", ("batch", 3))
ONE = contract(FLOATS)
TWO = contract(FLOATS, TensorSpec("ids", "int64", ("batch",)), outputs=2)
OUTPUT = {"out0": np.array([[1.5, 2.0]], np.float32)}


def test_named_json_comes_and_goes_by_name() -> None:
    """The response to a JSON object of tensors by name is such an object."""
    message = codec.decode(b'{"input": [[1, 2.5, 3]]}', "application/json", ONE)
    assert message.form is BodyFormat.NAMED
    assert message.inputs["input"].dtype == np.float32
    assert message.inputs["input"].tolist() == [[1.0, 2.5, 3.0]]
    reply = codec.encode(OUTPUT, message, "m", "1")
    assert (reply.body, reply.content_type) == (b'{"out0":[[1.5,2.0]]}', "application/json")


def test_bare_json_comes_and_goes_bare() -> None:
    """A model with one input and one output takes and gives the list itself."""
    message = codec.decode(b"[[1, 2, 3]]", "application/json; charset=utf-8", ONE)
    assert message.form is BodyFormat.BARE
    assert codec.encode(OUTPUT, message, "m", "1").body == b"[[1.5,2.0]]"


def test_json_that_torchserve_parsed_already_is_taken_as_it_is() -> None:
    """With TorchServe's own JSON decoding on, the body arrives as a dict and means the same."""
    parsed = codec.decode({"input": [[1, 2, 3]]}, "application/json", ONE)
    assert parsed.inputs["input"].tolist() == [[1.0, 2.0, 3.0]]


def test_kserve_json_keeps_shape_and_id() -> None:
    """KServe v2 data may be flat; the response carries the id, names, shapes and datatypes."""
    body = {
        "id": "7",
        "inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}],
    }
    message = codec.decode(json.dumps(body).encode(), "application/json", ONE)
    assert message.inputs["input"].shape == (1, 3)
    answer = json.loads(codec.encode(OUTPUT, message, "m", "2.0").body)
    assert answer == {
        "model_name": "m",
        "model_version": "2.0",
        "id": "7",
        "outputs": [{"name": "out0", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.0]}],
    }


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("content_type", ["application/x-npy", "application/octet-stream", ""])
def test_npy_comes_and_goes_as_npy(order: str, content_type: str) -> None:
    """Npy is known by its type or its magic bytes, in row and in column order."""
    array = np.asarray(np.arange(6).reshape(2, 3), np.float32, order=order)  # type: ignore[call-overload]
    message = codec.decode(codec.write_npy(array), content_type, ONE)
    np.testing.assert_array_equal(message.inputs["input"], array)
    reply = codec.encode(OUTPUT, message, "m", "1")
    assert reply.content_type == "application/x-npy"
    np.testing.assert_array_equal(codec.read_npy(reply.body), OUTPUT["out0"])


def test_strings_and_half_floats_are_written() -> None:
    """Output types that the JSON writer does not know by itself still come out right."""
    message = codec.decode(b"[[1, 2, 3]]", "", ONE)
    text = {"out0": np.array([["a", "b"]], dtype=object)}
    half = {"out0": np.array([[0.5, 2]], np.float16)}
    sliced = {"out0": np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2]}
    assert codec.encode(text, message, "m", "1").body == b'[["a","b"]]'
    assert codec.encode(half, message, "m", "1").body == b"[[0.5,2.0]]"
    assert codec.encode(sliced, message, "m", "1").body == b"[[0.0,2.0],[4.0,6.0]]"


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(3))))
def test_words_for_nan_and_infinity_pass_both_ways(array: np.ndarray) -> None:
    """Where the model takes such values and the request has a word; else null, as before."""
    for value in (array.tolist(), {"input": array.tolist()}):
        text = json.dumps(value).encode()
        has_words = not np.isfinite(array).all()
        message = codec.decode(text, codec.JSON_TYPE, ONE, allow_non_finite=True)
        np.testing.assert_array_equal(message.inputs["input"], array)
        assert message.has_words == has_words
        body = codec.encode({"input": array}, message, "m", "1").body
        np.testing.assert_array_equal(
            np.array(json.loads(body) if isinstance(value, list) else json.loads(body)["input"],
                     np.float32),
            array,
        )  # fmt: skip
        if has_words:
            with pytest.raises(MalformedError, match="must be JSON"):
                codec.decode(text, codec.JSON_TYPE, ONE)
    too_large = b"[[NaN, 1e400, 1]]"
    with pytest.raises(MalformedError, match="must be JSON"):
        codec.decode(too_large, codec.JSON_TYPE, ONE, allow_non_finite=True)


@pytest.mark.parametrize("name", ["gzip", "zstd", "deflate"])
@pytest.mark.parametrize("kind", ["", codec.JSON_TYPE, codec.NPY_TYPE, "application/gzip"])
@pytest.mark.parametrize("json_length", [None, "9"])
def test_a_compressed_body_is_told_the_header(
    name: str, kind: str, json_length: str | None
) -> None:
    """Whatever its type says, and where raw tensors would follow it."""
    compress = {"gzip": gzip.compress, "zstd": zstd.compress, "deflate": zlib.compress}[name]
    for body in (b"[[1, 2, 3]]", codec.write_npy(np.ones((1, 3), np.float32))):
        with pytest.raises(MalformedError, match=f"Content-Encoding: {name}"):
            codec.decode(compress(body), kind, ONE, json_length)


def test_json_that_curl_calls_a_form_is_read() -> None:
    """At addresses that do not take it apart; so is npy."""
    assert codec.decode(b"[[1, 2, 3]]", forms.FIELDS_TYPE, ONE).form is BodyFormat.BARE
    npy = codec.write_npy(np.ones((1, 3), np.float32))
    assert codec.decode(npy, forms.FIELDS_TYPE, ONE).form is BodyFormat.NPY


def test_a_byte_order_mark_is_no_part_of_json() -> None:
    """Editors write one; it is ignored in every form of JSON."""
    mark = b"\xef\xbb\xbf"
    for body in (b"[[1, 2, 3]]", b'{"input": [[1, 2, 3]]}', b'{"instances": [[1, 2, 3]]}'):
        for form in (bytes, bytearray, memoryview):
            found = codec.decode(form(mark + body), codec.JSON_TYPE, ONE)
            np.testing.assert_array_equal(found.inputs["input"], np.float32([[1, 2, 3]]))
    with pytest.raises(MalformedError, match="must be JSON"):
        codec.decode(mark, codec.JSON_TYPE, ONE)


BAD = {
    "no body": (b"", "", ONE, MalformedError, "got none"),
    "no JSON": (b'{"input": [[1', "", ONE, MalformedError, "must be JSON"),
    "NaN in JSON": (b"[[NaN, 1, 2]]", "", ONE, MalformedError, "must be JSON"),
    "form": (b"a=1", "application/x-www-form-urlencoded", ONE, UnsupportedMediaError, "x-www"),
    "picture": (b"\xff\xd8\xff", "image/jpeg", ONE, UnsupportedMediaError, "image/jpeg"),
    "ragged": (b"[[1, 2, 3], [1]]", "", ONE, InvalidInputError, "evenly nested"),
    "text": (b'[["1", "2", "3"]]', "", ONE, InvalidInputError, "text"),
    "null": (b"[[null, 1, 2]]", "", ONE, InvalidInputError, "null"),
    "a word": (b"[[NaN, 1, 2]]", "", ONE, MalformedError, "has no NaN .* --missing-values allow"),
    "truth": (b"[[true, false, true]]", "", ONE, InvalidInputError, "true or false"),
    "truth among numbers": (b"[[1.5, true, 2]]", "", ONE, InvalidInputError, "true or false"),
    "truth in another row": (b"[[1, 2, 3], [4, 5, false]]", "", ONE, InvalidInputError, "true or"),
    "truth parsed by TorchServe": (
        {"input": [[1.5, True, 2]]},
        "application/json",
        ONE,
        InvalidInputError,
        "true or false",
    ),
    "truth among numbers by name": (
        b'{"input": [[1, 2, 3]], "ids": [1, true]}',
        "",
        contract(FLOATS, TensorSpec("ids", "int64", ("batch",))),
        InvalidInputError,
        "ids must hold values of type int64, got true or false",
    ),
    "truth in KServe": (
        b'{"inputs": [{"name": "input", "shape": [3], "datatype": "FP32", "data": [1, 2, true]}]}',
        "",
        ONE,
        InvalidInputError,
        "true or false",
    ),
    "numbers for truth": (
        b"[[true, 1, 0]]",
        "",
        contract(TensorSpec("input", "bool", ("batch", 3))),
        InvalidInputError,
        "type bool",
    ),
    "too large for the float": (b"[[1e39, 1, 2]]", "", ONE, InvalidInputError, "too large"),
    "too large for any float": (b"[[1e400, 1, 2]]", "", ONE, MalformedError, "infinity"),
    "an integer too large for the float": (
        b"[[70000, 1, 2]]",
        "",
        contract(TensorSpec("input", "float16", ("batch", 3))),
        InvalidInputError,
        "too large",
    ),
    "a sign for an unsigned": (
        b"[[-1, 18446744073709551615, 2]]",
        "",
        contract(TensorSpec("input", "uint64", ("batch", 3))),
        InvalidInputError,
        "type uint64, got integers of which one is out of range",
    ),
    "scalar object": (b"{}", "", ONE, InvalidInputError, "without input"),
    "unknown name": (b'{"input": [], "x": 1}', "", ONE, InvalidInputError, "'x'"),
    "bare for two": (b"[[1, 2, 3]]", "", TWO, InvalidInputError, "input, ids"),
    "fraction": (b'{"input": [[1,2,3]], "ids": [1.5]}', "", TWO, InvalidInputError, "fractions"),
    "too large": (
        b'{"input": [[1,2,3]], "ids": [9223372036854775808]}',
        "",
        TWO,
        InvalidInputError,
        "9223372036854775808",
    ),
    "npy for two": (codec.write_npy(np.zeros(3)), "", TWO, InvalidInputError, "by name"),
    "short npy": (codec.write_npy(np.zeros(3))[:-1], "", ONE, MalformedError, "24 bytes"),
    "npy of a header without end": (
        codec.write_npy(np.zeros(3)).replace(b"(3,), }   ", b"[[[(((3,)"),
        "",
        ONE,
        MalformedError,
        "npy",
    ),
    "npy of an odd type": (
        codec.write_npy(np.zeros(3)).replace(b"'<f8'", b"()   "),
        "",
        ONE,
        MalformedError,
        "npy",
    ),
    "npy of a shape with a truth": (
        codec.write_npy(np.zeros((1, 3))).replace(b"(1, 3), }   ", b"(True, 3), }"),
        "",
        ONE,
        MalformedError,
        "whole numbers",
    ),
    "npy magic only": (b"\x93NUMPY", "", ONE, MalformedError, "npy"),
    "npy of objects": (
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        + b" " * 61
        + b"\n",
        "",
        ONE,
        MalformedError,
        "npy",
    ),
    "npy that claims 1 TB": (
        codec.write_npy(np.zeros(3)).replace(b"(3,), }          ", b"(125000000000,), }"),
        "",
        ONE,
        MalformedError,
        "npy",
    ),
    "kserve type": (
        b'{"inputs": [{"name": "input", "shape": [1, 3], "datatype": "INT8", "data": [1, 2, 3]}]}',
        "",
        ONE,
        InvalidInputError,
        "FP32",
    ),
    "kserve shape": (
        b'{"inputs": [{"name": "input", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3]}]}',
        "",
        ONE,
        InvalidInputError,
        "6 values",
    ),
    "kserve no shape": (
        b'{"inputs": [{"name": "input", "datatype": "FP32", "data": [1, 2, 3]}]}',
        "",
        ONE,
        InvalidInputError,
        "list of sizes",
    ),
    "deep": (b"[" * 500 + b"]" * 500, "", ONE, RequestError, "must"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_with_what_is_wrong(case: str) -> None:
    """Each malformed body raises its own error, whose message names what was found."""
    body, content_type, model, error, words = BAD[case]
    with pytest.raises(error, match=words):
        codec.decode(body, content_type, model)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("uint64", [0, 2**64 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("float64", [2**53, -(2**53), 0.1, -0.0, 5e-324, 1.7976931348623157e308]),
        ("float16", [65504, -65504]),
        ("bool", [True, False]),
    ],
)
def test_values_at_the_edges_of_a_type_are_kept(dtype: str, values: list[float]) -> None:
    """The least and the largest value of a type come out as they were sent, bit by bit."""
    spec = TensorSpec("input", dtype, ("batch",))
    found = codec.decode(json.dumps(values).encode(), "", contract(spec)).inputs["input"]
    assert found.tobytes() == np.array(values, dtype).tobytes()


@pytest.mark.parametrize("words", [["", "ä", "𝄞x"], [""], [], ["\0a"]])
def test_text_is_written_as_npy(words: list[str]) -> None:
    """As wide as the longest; the same text is read from it."""
    message = codec.Message({}, BodyFormat.NPY)
    array = np.array([*words, None], dtype=object)[:-1]
    reply = codec.encode({"y": array}, message, "m", "1")
    assert codec.read_npy(reply.body).tolist() == words


def test_text_that_npy_would_change_is_refused() -> None:
    """NumPy cuts NUL off; and one long text makes all others as wide."""
    message = codec.Message({}, BodyFormat.NPY)
    for words, error in ((["a\0"], InvalidInputError), (["a"] * 999 + ["b" * 999], TooLargeError)):
        with pytest.raises(error):
            codec.encode({"y": np.array(words, dtype=object)}, message, "m", "1", 1 << 20)


def test_whole_numbers_over_2_to_the_63_are_exact() -> None:
    """Beside small ones, in every JSON format, there and back."""
    spec = TensorSpec("x", "uint64", ("n", 2))
    contract = Contract((spec,), (replace(spec, name="y"),), ("m.onnx",), "", 20)
    rows = [[0, 2**64 - 1], [2**63, 2**53 + 1], [2**63 - 1, 1]]
    flat = [value for row in rows for value in row]
    entry = {"name": "x", "datatype": "UINT64", "shape": [3, 2], "data": flat}
    for value in (rows, {"x": rows}, {"inputs": [entry]}):
        message = codec.decode(json.dumps(value).encode(), "application/json", contract)
        found = message.inputs["x"].reshape(3, 2)
        assert (found.dtype, found.tolist()) == (np.uint64, rows)
        body = json.loads(codec.encode({"y": found}, message, "m", "1").body)
        if isinstance(body, dict):
            body = body["y"] if "y" in body else body["outputs"][0]["data"]
        assert body in (rows, flat)
    for wrong in (2**64, -1, 1.5, True):
        with pytest.raises(InvalidInputError, match="x must hold values of type uint64"):
            codec.decode(json.dumps([[1, wrong]]).encode(), "application/json", contract)


def test_npy_of_several_outputs_is_refused() -> None:
    """An npy file holds one array, so a model with two outputs says so."""
    message = codec.Message({}, BodyFormat.NPY)
    with pytest.raises(InvalidInputError, match="one output"):
        codec.encode({"a": np.zeros(1), "b": np.zeros(1)}, message, "m", "1")


@pytest.mark.parametrize("body", [b'[["a"], "b"]', b"[1, 2]", b'["a", null]', b'[["a"]]'])
def test_what_is_no_text_is_refused(body: bytes) -> None:
    """Numbers, null and lists within are no text, and the input is named."""
    words = contract(TensorSpec("text", "str", ("batch",)))
    with pytest.raises(InvalidInputError, match=r"^text must "):
        validate(codec.decode(body, "application/json", words).inputs, words)


def test_each_column_has_its_own_range() -> None:
    """The column is named, with its range; an empty batch is not looked at."""
    ranges = (ColumnRange(1, 0, 0, 4), ColumnRange(1, 2, 1, 9))
    spec = TensorSpec("input", "float32", ("batch", 3), column_ranges=ranges)
    assert outside(np.array([[4, 99, 9], [0.5, -7, 1]], np.float32), spec) is None
    assert outside(np.empty((0, 3), np.float32), spec) is None
    for row in ([5, 0, 1], [-1, 0, 1]):
        assert "input[:, 0] must" in str(outside(np.array([row], np.float32), spec))
    for value in (0, 10, np.nan):
        assert "input[:, 2] must" in str(outside(np.array([[0, 0, value]], np.float32), spec))
