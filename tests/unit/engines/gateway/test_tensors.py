"""Requests and responses of gRPC as those of KServe v2 over HTTP, and back."""

import asyncio
import json
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marship.contract import Contract, TensorSpec
from marship.engines.gateway import requests, tensors, wire
from marship.engines.gateway.messages import kind
from marship.engines.gateway.turns import Turns
from marship.errors import InvalidInputError, MalformedError, MarshipError, TooLargeError
from marship.serving.formats import codec, kserve

TYPED = sorted(set(kserve.DTYPES) - {"FP16"})


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a machine that does other work, the first arrays take seconds."""


def contract(arrays: dict[str, np.ndarray]) -> Contract:
    """A model that takes and gives these."""
    specs = tuple(
        TensorSpec(name, "str" if array.dtype == object else array.dtype.name, tuple(array.shape))
        for name, array in arrays.items()
    )
    return Contract(specs, specs, ("m",), "", 20, None)


def arrays(datatypes: list[str]) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """Some tensors of these datatypes, strings as objects."""

    def of(datatype: str) -> st.SearchStrategy[np.ndarray]:
        shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
        if datatype == "BYTES":
            return hnp.arrays(object, shapes, elements=st.text(max_size=9))
        return hnp.arrays(np.dtype(kserve.DTYPES[datatype]), shapes)

    one = st.sampled_from(datatypes).flatmap(of)
    return st.lists(one, min_size=1, max_size=4).map(
        lambda found: {f"t{i}": array for i, array in enumerate(found)}
    )


def datatype_of(array: np.ndarray) -> str:
    """Its name in the protocol."""
    return kserve.NAMES["str" if array.dtype == object else array.dtype.name]


def raw_of(array: np.ndarray) -> bytes:
    """Its raw form, by the worker's own code."""
    return kserve._raw_texts(array) if array.dtype == object else kserve._raw(array)


def request(given: dict[str, np.ndarray], *, typed: bool) -> Any:
    """A request with these inputs."""
    made = kind("ModelInferRequest")(model_name="m", id="7")
    for name, array in given.items():
        tensor = made.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        if typed:
            field = tensors._FIELDS[tensor.datatype][0]
            values = array.ravel().tolist()
            values = [text.encode() for text in values] if array.dtype == object else values
            getattr(tensor.contents, field).extend(values)
        else:
            made.raw_input_contents.append(raw_of(array))
    return made


def to_body(made: Any, most_bytes: int = 1 << 20) -> tuple[bytes, list[Any]]:
    """The body of a request that is sent as bytes."""
    return pack(requests.read(made.SerializeToString()), most_bytes)


def pack(read: requests.InferRequest, most_bytes: int = 1 << 20) -> tuple[bytes, list[Any]]:
    """The body of a request."""
    return asyncio.run(tensors.to_body(read, Turns(), most_bytes))


def from_body(headers: dict[str, str], body: bytes, *, typed: bool) -> Any:
    """The message of a response."""
    made = asyncio.run(tensors.from_body(headers, body, Turns(), typed=typed))
    return kind("ModelInferResponse").FromString(made)


def decoded(made: Any, model: Contract) -> codec.Message:
    """What a worker reads of a request, sent as bytes over both protocols."""
    text, raw = to_body(made)
    return codec.decode(b"".join([text, *raw]), codec.OCTETS_TYPE, model, str(len(text)))


def same(first: np.ndarray, second: np.ndarray) -> None:
    """Equal in shape and every bit that counts."""
    np.testing.assert_array_equal(first.astype(first.dtype.newbyteorder("=")), second, strict=True)


@patient
@given(arrays(sorted(kserve.DTYPES)))
def test_raw_inputs_arrive(given_arrays: dict[str, np.ndarray]) -> None:
    """All datatypes, any shape, strings among them."""
    message = decoded(request(given_arrays, typed=False), contract(given_arrays))
    for name, array in given_arrays.items():
        same(message.inputs[name], array)
        assert message.wants_raw(name)
    assert message.requested.id == "7"


@patient
@given(arrays(TYPED))
def test_typed_inputs_arrive(given_arrays: dict[str, np.ndarray]) -> None:
    """All datatypes that have a field for their values."""
    message = decoded(request(given_arrays, typed=True), contract(given_arrays))
    for name, array in given_arrays.items():
        same(message.inputs[name], array)


def singly(datatype: str, array: np.ndarray) -> bytes:
    """A request whose numbers are not packed: each is a field, as older encoders write them."""
    made = request({"x": array}, typed=True)
    name, code = tensors._FIELDS[datatype]
    number = tensors._NUMBERS[name]
    written = bytearray()
    for value in array.ravel().tolist():
        packed = kind("InferTensorContents")(**{name: [value]}).SerializeToString()
        written.append(number << 3 | tensors._TYPES.get(code, wire.VARINT))
        written += packed[2:]
    made.inputs[0].ClearField("contents")
    whole = made.inputs[0].SerializeToString() + wire.head(5, len(written)) + written
    return wire.head(5, len(whole)) + whole


@patient
@given(st.sampled_from([name for name in TYPED if name != "BYTES"]), st.data())
def test_numbers_need_not_be_packed(datatype: str, data: st.DataObject) -> None:
    """Each in a field of its own is the same tensor."""
    shapes = hnp.array_shapes(max_dims=1, max_side=9)
    array = data.draw(hnp.arrays(np.dtype(kserve.DTYPES[datatype]), shapes))
    read = requests.read(singly(datatype, array))
    assert len(read.typed[-1]) == 1
    assert pack(read)[1][-1] == raw_of(array)


def test_numbers_of_their_own_fields_are_bounded() -> None:
    """Each costs as much as a thousand that are packed; inputs share the bound."""
    most = requests.MOST_FIELDS
    array = np.ones(most // 2, "int8")
    one = singly("INT8", array)
    assert len(pack(requests.read(one))[1][-1]) == len(array)
    with pytest.raises(InvalidInputError, match=f"must have {most} fields at most"):
        pack(requests.read(one * 2 + singly("INT8", np.ones(1, "int8"))))


@pytest.mark.parametrize("datatype", ["FP64", "INT8", "INT64", "BYTES"])
def test_what_grows_over_the_limit_is_refused(datatype: str) -> None:
    """A byte of a message may be eight of a raw tensor: it is refused before all are made."""
    values = [b""] * 1000 if datatype == "BYTES" else [1] * 1000
    made = tensor(datatype, **{tensors._FIELDS[datatype][0]: values})
    size = len(to_body(made)[1][0])
    assert to_body(made, size)
    with pytest.raises(TooLargeError, match=f"must have {size - 1} bytes at most"):
        to_body(made, size - 1)


def test_many_values_arrive() -> None:
    """More than one chunk of each kind, cut within no number."""
    generator = np.random.default_rng(3)
    given_arrays: dict[str, np.ndarray] = {
        name: generator.integers(np.iinfo(name).min, np.iinfo(name).max, 20_000, name)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    }
    given_arrays["text"] = np.array(["", "a" * 200, "b" * 70_000, *["c"] * 9000], object)
    given_arrays["bool"] = generator.integers(0, 2, 40_000).astype(bool)
    _, (raw,) = to_body(request(given_arrays, typed=True), 1 << 24)
    assert raw == b"".join(map(raw_of, given_arrays.values()))
    again = response(given_arrays, typed=True)
    for tensor_, array in zip(again.outputs, given_arrays.values(), strict=True):
        values = list(getattr(tensor_.contents, tensors._FIELDS[tensor_.datatype][0]))
        texts = [text.encode() for text in array] if array.dtype == object else array.tolist()
        assert values == texts


def response(given_arrays: dict[str, np.ndarray], *, typed: bool) -> Any:
    """The response of gRPC for outputs that a worker encodes, over the wire."""
    requested = kserve.OutputRequest(id="7", all_binary=True)
    body, length = kserve.encode(given_arrays, requested, "m", "1.0")
    headers = {} if length is None else {tensors.LENGTH_HEADER: str(length)}
    return from_body(headers, body, typed=typed)


@patient
@given(arrays(sorted(kserve.DTYPES)))
def test_raw_outputs_arrive(given_arrays: dict[str, np.ndarray]) -> None:
    """One raw content for each output, in their order."""
    found = response(given_arrays, typed=False)
    assert (found.model_name, found.model_version, found.id) == ("m", "1.0", "7")
    assert len(found.raw_output_contents) == len(given_arrays)
    for tensor, raw, (name, array) in zip(
        found.outputs, found.raw_output_contents, given_arrays.items(), strict=True
    ):
        assert (tensor.name, tensor.datatype) == (name, datatype_of(array))
        assert tuple(tensor.shape) == array.shape
        assert raw == raw_of(array)
        assert not tensor.HasField("contents")


@patient
@given(arrays(TYPED))
def test_typed_outputs_arrive(given_arrays: dict[str, np.ndarray]) -> None:
    """The same values as raw ones: packed again they are the same bytes."""
    found = response(given_arrays, typed=True)
    assert not found.raw_output_contents
    for tensor, array in zip(found.outputs, given_arrays.values(), strict=True):
        again = kind("ModelInferRequest")()
        again.inputs.add().ParseFromString(tensor.SerializeToString())
        packed = np.frombuffer(to_body(again)[1][0], np.uint8)
        sent = np.frombuffer(raw_of(array), np.uint8)
        if array.dtype.kind != "f":  # a NaN has more than one form of bits
            same(packed, sent)
        else:
            same(packed.view(array.dtype), sent.view(array.dtype))


def test_half_floats_make_all_outputs_raw() -> None:
    """They have no field for typed values, and a response is raw or typed, never both."""
    given_arrays = {"h": np.ones(2, "float16"), "f": np.ones(2, "float32")}
    found = response(given_arrays, typed=True)
    assert len(found.raw_output_contents) == 2
    assert not any(tensor.HasField("contents") for tensor in found.outputs)


def test_bfloat16_goes_raw_both_ways() -> None:
    """The worker reads what tritonclient writes for BF16, and tritonclient what comes back."""
    specs = (TensorSpec("x", "float32", (2,), narrow="bfloat16"),)
    model = Contract(specs, specs, ("m",), "", 20)
    sent = triton.InferInput("x", [2], "BF16").set_data_from_numpy(np.float32([1.5, -2]))
    made = kind("ModelInferRequest")(model_name="m")
    made.inputs.add(name="x", datatype="BF16", shape=[2])
    made.raw_input_contents.append(sent._get_content())
    message = decoded(made, model)
    assert message.inputs["x"].tolist() == [1.5, -2]
    body, length = kserve.encode(dict(message.inputs), message.requested, "m", "1")
    found = from_body({tensors.LENGTH_HEADER: str(length)}, body, typed=True)
    assert [output.datatype for output in found.outputs] == ["BF16"]
    result = triton.InferResult(found)
    np.testing.assert_array_equal(result.as_numpy("x"), np.float32([1.5, -2]))


def test_parameters_travel() -> None:
    """All five kinds; those that frame the body are the gateway's to set."""
    made = request({"x": np.ones(2, "float32")}, typed=False)
    made.parameters["b"].bool_param = True
    made.parameters["i"].int64_param = -(2**63)
    made.parameters["u"].uint64_param = 2**64 - 1
    made.parameters["d"].double_param = 0.5
    made.parameters["s"].string_param = "é"
    made.parameters["unset"].SetInParent()
    made.parameters["binary_data_output"].bool_param = False
    made.inputs[0].parameters["binary_data_size"].int64_param = 10**6
    made.outputs.add(name="y").parameters["binary_data"].bool_param = False
    told = json.loads(to_body(made)[0])
    assert told["parameters"] == {
        "b": True, "i": -(2**63), "u": 2**64 - 1, "d": 0.5, "s": "é", "binary_data_output": True,
    }  # fmt: skip
    assert told["inputs"][0]["parameters"] == {"binary_data_size": 8}
    assert told["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]


def tensor(datatype: str, **contents: list[Any]) -> Any:
    """A request with one input in typed contents."""
    made = kind("ModelInferRequest")(model_name="m")
    made.inputs.add(name="x", datatype=datatype, shape=[1], contents=contents)
    return made


def with_raw(made: Any, *raw: bytes) -> Any:
    """The request with raw contents, too."""
    made.raw_input_contents.extend(raw)
    return made


@pytest.mark.parametrize(
    ("made", "error"),
    {
        "two raw for one": (with_raw(tensor("FP32"), b"1234", b"1234"), MalformedError),
        "raw without inputs": (with_raw(kind("ModelInferRequest")(), b"1234"), MalformedError),
        "raw and typed": (with_raw(tensor("FP32", fp32_contents=[1]), b"1234"), MalformedError),
        "another field": (tensor("FP32", fp64_contents=[1]), InvalidInputError),
        "a second field": (
            tensor("FP32", fp32_contents=[1], int_contents=[1]),
            InvalidInputError,
        ),
        "too large": (tensor("INT8", int_contents=[128]), InvalidInputError),
        "too small": (tensor("INT16", int_contents=[-(2**15) - 1]), InvalidInputError),
        "too large, unsigned": (tensor("UINT8", uint_contents=[256]), InvalidInputError),
        "no field": (tensor("FP16", fp32_contents=[1]), InvalidInputError),
        "texts in another field": (tensor("BYTES", fp32_contents=[1]), MalformedError),
        "no datatype": (tensor("FP31", fp32_contents=[1]), InvalidInputError),
    }.values(),
)
def test_what_cannot_be_sent_on(made: Any, error: type[MarshipError]) -> None:
    """It is refused here, with what is wrong."""
    with pytest.raises(error, match="must"):
        to_body(made)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@patient
@given(ANY_JSON.map(orjson.dumps) | st.binary())
def test_a_response_of_the_handlers_own_is_no_tensors(body: bytes) -> None:
    """A recommender's list, say: the client is told to use HTTP."""
    with pytest.raises(tensors.NoTensorsError, match="over HTTP"):
        from_body({}, body, typed=False)
