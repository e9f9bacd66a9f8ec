"""Whatever array the wire or a handler brings, the model gets the contract's type, native."""

import io
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.errors import InvalidInputError, MarshipError, ModelError, RequestError
from marship.serving.formats import codec
from marship.serving.formats.kserve import DTYPES
from marship.serving.formats.tensors import conform
from marship.serving.model.batch import Batcher
from models import IR_VERSION, OPSET

ONNX_TYPES = {
    dtype: TensorProto.STRING
    if dtype == "str"
    else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for dtype in DTYPES.values()
}
COLUMNS = 3


def contract(dtype: str) -> Contract:
    """Of a model that gives back what it takes."""
    spec = TensorSpec("x", dtype, ("batch", COLUMNS))
    return Contract((spec,), (TensorSpec("y", dtype, ("batch", COLUMNS)),), ("m",), "", 20, "batch")


@cache
def echo(dtype: str) -> Batcher:
    """A batcher of a real model, kept from one example to the next as a worker keeps it."""
    shape = ["batch", COLUMNS]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", ONNX_TYPES[dtype], shape)],
        [helper.make_tensor_value_info("y", ONNX_TYPES[dtype], shape)],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString())

    def run(inputs: Arrays) -> Arrays:
        try:
            return {"y": session.run(None, inputs)[0]}
        except Exception as error:  # as Session does
            raise ModelError(str(error)) from error

    return Batcher(contract(dtype), run)


def misaligned(array: Array) -> Array:
    """The same values, one byte off where the processor wants them."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    moved = buffer[1:].view(array.dtype) if array.nbytes else array
    moved = moved.reshape(array.shape)
    moved[...] = array
    return moved


def strided(array: Array) -> Array:
    """The same values with others between them."""
    wide = np.repeat(np.repeat(array, 2, axis=0), 3, axis=1)
    return wide[::2, ::3]


def read_only(array: Array) -> Array:
    """The same values, not to be written."""
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "strided": strided,
    "backwards": lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
    "misaligned": misaligned,
    "read only": read_only,
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
ODD = [
    np.zeros((1, COLUMNS), code)
    for code in ("longdouble", "complex64", ">c16", "M8[ns]", "m8[s]", "V4", [("a", "<f4")])
]


def numbers(dtype: str) -> st.SearchStrategy[Array]:
    """Rows of values of any bits that are finite, in either byte order."""

    def made(rows: int, seed: int, order: str) -> Array:
        kind = np.dtype(dtype)
        bits = np.random.default_rng(seed).bytes(rows * COLUMNS * kind.itemsize)
        array = np.frombuffer(bits, kind).reshape(rows, COLUMNS)
        array = np.nan_to_num(array, nan=1) if kind.kind == "f" else array
        array = array.view(np.uint8) % 2 == 1 if kind.kind == "b" else array
        return array.astype(kind.newbyteorder(order))  # type: ignore[arg-type]

    return st.builds(made, st.integers(1, 3), st.integers(0, 999), st.sampled_from("<>"))


def texts() -> st.SearchStrategy[Array]:
    """Rows of text as NumPy may hold it."""
    rows = st.lists(st.lists(TEXT, min_size=COLUMNS, max_size=COLUMNS), min_size=1, max_size=3)
    as_type: dict[str, Any] = {
        "objects": lambda found: np.array(found, dtype=object),
        "little": lambda found: np.array(found).astype("<U4"),
        "big": lambda found: np.array(found).astype(">U4"),
        "bytes": lambda found: np.array([[text.encode() for text in row] for row in found], "S16"),
    }
    return st.builds(lambda found, kind: as_type[kind](found), rows, st.sampled_from([*as_type]))


@st.composite
def batches(draw: st.DrawFn) -> tuple[str, list[Array]]:
    """A model's type, and arrays of it and of others, laid out in any way."""
    dtype = draw(st.sampled_from([*ONNX_TYPES]))
    right = texts() if dtype == "str" else numbers(dtype)
    other = st.sampled_from([*ONNX_TYPES]).flatmap(lambda d: texts() if d == "str" else numbers(d))
    arrays = draw(st.lists(st.one_of(right, right, right, other, st.sampled_from(ODD)), min_size=1))
    layouts = [draw(st.sampled_from([*LAYOUTS])) for _ in arrays]
    return dtype, [
        array if layout == "misaligned" and array.dtype.hasobject else LAYOUTS[layout](array)
        for array, layout in zip(arrays, layouts, strict=True)
    ]


def wanted(array: Array, dtype: str) -> list[Any] | str:
    """What the model must give back, or the error's code."""
    if dtype == "str":
        if array.dtype.kind not in "OUS":
            return "invalid_input"
        return [
            [item.decode() if isinstance(item, bytes) else item for item in row]
            for row in array.tolist()
        ]
    is_right = array.dtype.kind != "V" and array.dtype.newbyteorder("=") == np.dtype(dtype)
    return array.tolist() if is_right else "invalid_input"


def told(answer: Arrays | MarshipError) -> list[Any] | str:
    """What came back, or the error's code."""
    return answer.code if isinstance(answer, MarshipError) else answer["y"].tolist()


@settings(max_examples=300, deadline=None)
@given(batch=batches())
def test_each_array_is_predicted_as_alone_wherever_it_stands(
    batch: tuple[str, list[Array]],
) -> None:
    """All types, byte orders and layouts: together as alone, value for value, or its own 400."""
    dtype, arrays = batch
    answers = [told(answer) for answer in echo(dtype)([{"x": array} for array in arrays])]
    assert answers == [wanted(array, dtype) for array in arrays]
    assert answers == [told(*echo(dtype)([{"x": array}])) for array in arrays]


@settings(max_examples=150, deadline=None)
@given(batch=batches())
def test_npy_files_are_predicted_as_alone(batch: tuple[str, list[Array]]) -> None:
    """The same through npy files, in which the byte order and the columns' order travel."""
    dtype, arrays = batch
    requests: list[Arrays | MarshipError] = []
    for array in arrays:
        if array.dtype.hasobject:
            continue
        file = io.BytesIO()
        np.save(file, array)
        try:
            body = memoryview(b"?" + file.getvalue())[1:]
            requests.append(codec.decode(body, codec.NPY_TYPE, contract(dtype)).inputs)
        except MarshipError as error:
            requests.append(error)
    answers = [told(answer) for answer in echo(dtype)(requests)]
    assert answers == [wanted(array, dtype) for array in arrays if not array.dtype.hasobject]


def test_a_foreign_byte_order_leaves_nothing_to_later_requests() -> None:
    """The kept memory has the contract's type even if the first joined call began with another."""
    batcher = echo("float32")
    batcher._buffers.clear()
    foreign, native = np.full((1, 3), 1, ">f4"), np.full((1, 3), 2, "<f4")
    for pair in ([foreign, native], [native, foreign], [native, native]):
        answers = [told(answer) for answer in batcher([{"x": array} for array in pair])]
        assert answers == [array.tolist() for array in pair]


@pytest.mark.parametrize("kind", ["U1", ">U1", "S1", "O"])
def test_a_short_text_does_not_cut_its_neighbours(kind: str) -> None:
    """A text beside one of another width keeps its length and its letters, in either order."""
    short = np.full((1, 3), "x").astype(kind)
    long = np.full((1, 3), "älter", dtype=object)
    for pair in ([short, long], [long, short]):
        answers = [told(answer) for answer in echo("str")([{"x": array} for array in pair])]
        assert sorted(map(str, answers)) == ["[['x', 'x', 'x']]", "[['älter', 'älter', 'älter']]"]


BAD_TEXTS = {
    "bytes that are no UTF-8": np.array([[b"\xff"] * 3]),
    "half of a surrogate pair": np.array([["\ud800"] * 3], dtype=object),
    "no character of Unicode": np.frombuffer(b"\x00\x00\x11\x00" * 3, "<U1").reshape(1, 3),
    "a number among text": np.array([["a", 1, "b"]], dtype=object),
    "nothing among text": np.array([["a", None, "b"]], dtype=object),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_text_that_utf8_cannot_hold_is_refused_alone(case: str) -> None:
    """It is its own 400; ONNX Runtime would fail the call, or write str() of it."""
    good = np.full((1, 3), "ä", dtype=object)
    first, second, third = echo("str")([{"x": good}, {"x": BAD_TEXTS[case]}, {"x": good}])
    assert isinstance(second, InvalidInputError)
    assert told(first) == told(third) == [["ä", "ä", "ä"]]


def test_a_bool_is_0_or_1_whatever_its_byte() -> None:
    """A byte of 2 in an npy file is true, as KServe's raw one is."""
    odd = np.frombuffer(bytes([0, 2, 255]), np.bool_).reshape(1, 3)
    found = conform({"x": odd}, contract("bool"))["x"]
    assert found.view(np.uint8).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("value", [None, [[1.0, 2.0, 3.0]], 1.0])
def test_a_decode_that_gives_no_array_fails_alone(value: object) -> None:
    """A fault of a handler of one's own is its request's error, not its neighbours'."""
    good = {"x": np.ones((1, 3), np.float32)}
    bad: Any = {} if value is None else {"x": value}
    first, second, third = echo("float32")([good, bad, good])
    assert isinstance(second, ModelError)
    assert told(first) == told(third) == [[1.0, 1.0, 1.0]]


HEADERS = {
    "an array within each value": ("('<f4', (3,))", "(1,)", bytes(12)),
    "text of no width": ("'<U0'", "(1, 3)", b""),
    "bytes of no width": ("'|S0'", "(1, 3)", b""),
    "nothing of no width": ("'|V0'", "(1, 3)", b""),
    "an axis longer than an address": ("'<f4'", f"({2**70}, 0)", b""),
    "no axis": ("'<f4'", "()", bytes(4)),
    "a structure": ("[('a', '<f4')]", "(1, 3)", bytes(12)),
    "a structure of arrays": ("[('a', '<f4', (3,))]", "(1,)", bytes(12)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_an_odd_npy_header_is_the_clients_error(case: str) -> None:
    """A header that NumPy reads but that is no tensor gives a 400 and not an exception."""
    descr, shape, data = HEADERS[case]
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data
    with pytest.raises(RequestError):
        _ = [told_or_raised(codec.decode(body, codec.NPY_TYPE, contract("float32")).inputs)]


def told_or_raised(inputs: Arrays) -> Any:
    """What the model gives back; an error is raised."""
    (answer,) = echo("float32")([inputs])
    if isinstance(answer, MarshipError):
        raise answer
    return answer


def test_a_kserve_shape_that_no_array_has_is_the_clients_error() -> None:
    """As many values as the shape claims, none, but an axis that is too long."""
    entry = {"name": "x", "datatype": "FP32", "shape": [2**70, 0], "data": []}
    with pytest.raises(InvalidInputError, match="shape"):
        codec.from_json({"inputs": [entry]}, contract("float32"))
