"""Requests read together get the responses of each alone; odd ones are left to the slow path."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.contract import Contract, TensorSpec
from marship.proof import graph
from marship.serving.formats import codec, rows
from marship.serving.message import Request
from marship.serving.model.batch import validate

FLOATS = TensorSpec("input", "float32", ("batch", 3))
CONTRACT = Contract(
    (FLOATS,), (TensorSpec("output", "float32", ("batch", 2)),), ("m",), "", 20, "batch"
)
NUMBER = st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6, width=32))
ROWS = st.lists(st.lists(NUMBER, min_size=3, max_size=3), min_size=1, max_size=4)


def request(value: object, content_type: str = "application/json") -> Request:
    """A request with a JSON body."""
    return Request(orjson.dumps(value), content_type)


@settings(max_examples=200, deadline=None)
@given(bodies=st.lists(ROWS, min_size=1, max_size=8), named=st.booleans())
def test_gathered_rows_are_each_requests_own(bodies: list[list[list[float]]], named: bool) -> None:
    """The array is what decoding and validating each request alone would give, in order."""
    requests = [request({"input": body} if named else body) for body in bodies]
    gathered = rows.gather(requests, CONTRACT)
    assert gathered is not None
    alone = [codec.decode(r.body, r.content_type, CONTRACT).inputs for r in requests]
    for inputs in alone:
        validate(inputs, CONTRACT)
    wanted = np.concatenate([inputs["input"] for inputs in alone])
    np.testing.assert_array_equal(gathered.arrays["input"], wanted)
    assert gathered.arrays["input"].dtype == np.float32
    assert gathered.counts == [len(body) for body in bodies]


OUTPUTS = {
    "matrix": np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2),
    "vector": np.arange(6, dtype=np.int64),
    "cube": np.ones((6, 2, 2), np.float32),
    "half": np.full((6, 1), 0.1, np.float16),
    "text": np.array([["a]", "[b"]] * 6, dtype=object),
    "truth": np.array([True, False] * 3),
    "strided": np.arange(24, dtype=np.float32).reshape(6, 4)[:, ::2],
    "empty": np.empty((6, 0), np.float32),
    "odd": np.array([[np.nan, np.inf]] * 6, np.float32),
}


@pytest.mark.parametrize("requests", [3, rows.MANY_REQUESTS + 1])
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("named", [True, False])
def test_scattered_responses_are_those_of_the_codec(name: str, named: bool, requests: int) -> None:
    """Whatever the output's type and rank, each response has the bytes of the slow path."""
    output = np.concatenate([OUTPUTS[name]] * (requests // 3))
    counts = [1, 3, 2] * (requests // 3)
    gathered = rows.Rows({}, counts, {"batch": len(output)}, named=named)
    found = [reply.body for reply in rows.scatter({name: output}, gathered)]
    form = codec.BodyFormat.NAMED if named else codec.BodyFormat.BARE
    parts = np.split(output, np.cumsum(counts)[:-1])
    wanted = [codec.encode({name: p}, codec.Message({}, form), "m", "1").body for p in parts]
    assert found == wanted


def test_several_outputs_are_named_even_where_the_request_was_bare() -> None:
    """A bare request to a model with two outputs gets both by name."""
    gathered = rows.Rows({"input": np.empty((1, 3), np.float32)}, [1], {"batch": 1}, named=False)
    outputs = {"a": np.ones((1, 1), np.float32), "b": np.zeros(1, np.int64)}
    (reply,) = rows.scatter(outputs, gathered)
    assert json.loads(reply.body) == {"a": [[1.0]], "b": [0]}


GOOD = request({"input": [[1, 2, 3]]})
ODD = {
    "malformed": Request(b'{"input": [[1', "application/json"),
    "empty": Request(b"", "application/json"),
    "another type": request([[1, 2, 3]], "text/plain"),
    "npy": Request(codec.write_npy(np.zeros((1, 3), np.float32)), codec.NPY_TYPE),
    "bare among named": request([[1, 2, 3]]),
    "KServe": request({"inputs": []}),
    "no rows": request({"input": []}),
    "short row": request({"input": [[1, 2]]}),
    "text": request({"input": [["1", "2", "3"]]}),
    "null": request({"input": [[1, 2, None]]}),
    "truth": request({"input": [[True, False, True]]}),
    "not finite": Request(b'{"input": [[1, 2, 1e300]]}', "application/json"),
    "another name": request({"x": [[1, 2, 3]]}),
    "two names": request({"input": [[1, 2, 3]], "x": 1}),
    "a number": request({"input": 5}),
    "encoded": replace(request([[1, 2, 3]]), headers={"content-encoding": "br"}),
    "parsed already": Request({"input": [[1, 2, 3]]}, "application/json"),
    "large": request({"input": [[1, 2, 3]] * 5000}),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_request_leaves_its_batch_to_the_slow_path(case: str) -> None:
    """One request that is not plain rows, and nothing is decided here."""
    assert rows.gather([GOOD, ODD[case], GOOD], CONTRACT) is None


@pytest.mark.parametrize(
    "contract",
    [
        replace(CONTRACT, batch_axis=None),
        replace(CONTRACT, inputs=(FLOATS, replace(FLOATS, name="x", shape=(3,)))),
        replace(CONTRACT, inputs=(replace(FLOATS, dtype="str"),)),
        replace(CONTRACT, inputs=(replace(FLOATS, dtype="float16"),)),
        replace(CONTRACT, inputs=(replace(FLOATS, shape=("batch", "length")),)),
    ],
)
def test_models_that_need_more_care_are_not_read_so(contract: Contract) -> None:
    """No batch axis, an input without it, text, half floats, or a second variable axis."""
    assert not rows.fits(contract)


def test_integers_keep_their_range(lookup_onnx: Path) -> None:
    """Integers for an integer input pass, fractions and values out of range do not."""
    contract = replace(graph.contract_of(lookup_onnx), batch_axis="batch")
    contract = replace(contract, inputs=(TensorSpec("ids", "uint8", ("batch", 1)),))
    assert rows.gather([request([[255]])], contract) is not None
    assert rows.gather([request([[256]])], contract) is None
    assert rows.gather([request([[1.5]])], contract) is None


def test_a_bounded_batch_is_read_as_long_as_it_fits() -> None:
    """So many rows in one call and no more; too few of one request are left to the slow path."""
    bounded = replace(CONTRACT, bounds={"batch": (1, 4)})
    two = request([[1, 2, 3], [4, 5, 6]])
    assert rows.gather([two, two], bounded) is not None
    assert rows.gather([two, two, request([[1, 2, 3]])], bounded) is None
    assert (
        rows.gather([two, request([[1, 2, 3]])], replace(CONTRACT, bounds={"batch": (2, 4)}))
        is None
    )


INTEGER = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.sampled_from([2**53 + 1, 2**60 + 2**36 + 1])
)
ANY = st.one_of(NUMBER, INTEGER, st.floats(allow_nan=False, allow_infinity=False), st.booleans())
TYPES = ["float32", "float64", "int8", "int64", "uint8", "uint64"]


@settings(max_examples=400, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    bodies=st.lists(st.lists(ANY, min_size=1, max_size=3), min_size=1, max_size=5),
)
def test_what_is_read_together_is_what_each_is_alone(dtype: str, bodies: list[list[float]]) -> None:
    """Any numbers in any company: the fast path reads what the slow one does, or leaves it."""
    spec = TensorSpec("input", dtype, ("batch",))
    model = replace(CONTRACT, inputs=(spec,))
    requests = [request(body) for body in bodies]
    gathered = rows.gather(requests, model)
    if gathered is None:
        return
    alone = [codec.decode(r.body, r.content_type, model).inputs["input"] for r in requests]
    assert gathered.arrays["input"].tobytes() == np.concatenate(alone).tobytes()


COLUMN = st.lists(ANY, min_size=1, max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    types=st.lists(st.sampled_from(TYPES), min_size=2, max_size=3),
    data=st.data(),
    count=st.integers(1, 4),
)
def test_several_inputs_read_together_are_those_of_each_alone(
    types: list[str], data: st.DataObject, count: int
) -> None:
    """Each input of each request as the slow path reads it; what that refuses is left to it."""
    specs = tuple(TensorSpec(f"x{i}", dtype, ("batch",)) for i, dtype in enumerate(types))
    model = replace(CONTRACT, inputs=specs)
    names = st.sampled_from([[spec.name for spec in specs], ["x0"], ["x0", "x1", "x2", "x3"]])
    bodies = [{name: data.draw(COLUMN) for name in data.draw(names)} for _ in range(count)]
    gathered = rows.gather([request(body) for body in bodies], model)
    if gathered is None:
        return
    alone = [codec.decode(orjson.dumps(b), "application/json", model).inputs for b in bodies]
    counts = [validate(inputs, model)["batch"] for inputs in alone]
    assert gathered.counts == counts
    for spec in specs:
        joined = np.concatenate([inputs[spec.name] for inputs in alone])
        assert gathered.arrays[spec.name].tobytes() == joined.tobytes()
        assert gathered.arrays[spec.name].dtype == spec.dtype


PAIR = replace(CONTRACT, inputs=(FLOATS, TensorSpec("ids", "int64", ("batch",), None, (0, 9))))


@settings(max_examples=100, deadline=None)
@given(bodies=st.lists(ROWS, min_size=1, max_size=8))
def test_requests_with_several_inputs_take_the_fast_path(bodies: list[list[list[float]]]) -> None:
    """Whatever order a client names its inputs in."""
    found = rows.gather(
        [
            request(
                {"ids": [1] * len(body), "input": body}
                if i % 2
                else {"input": body, "ids": [1] * len(body)}
            )
            for i, body in enumerate(bodies)
        ],
        PAIR,
    )
    assert found is not None
    assert found.named
    assert len(found.arrays["ids"]) == len(found.arrays["input"]) == sum(found.counts)


@pytest.mark.parametrize(
    "body",
    [
        {"input": [[1, 2, 3]]},
        {"input": [[1, 2, 3]], "ids": [1, 2]},
        {"input": [[1, 2, 3]], "ids": [10]},
        {"input": [[1, 2, 3]], "ids": [-1]},
        {"input": [[1, 2, 3]], "ids": 1},
        {"input": [[1, 2, 3]], "ids": []},
        {"input": [[1, 2, 3]], "ids": [1], "more": [1]},
        [[1, 2, 3]],
    ],
)
def test_odd_requests_with_several_inputs_are_left_to_the_slow_path(body: object) -> None:
    """An input is missing, has other rows, is out of range, or there is one too many."""
    good = request({"input": [[1, 2, 3]], "ids": [1]})
    assert rows.gather([good, request(body)], PAIR) is None
    assert rows.gather([request(body)], PAIR) is None
