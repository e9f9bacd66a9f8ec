"""Golden requests: what agrees with a recorded response, and what does not."""

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.contract import Contract, TensorSpec
from marship.contract.tolerance import Tolerance
from marship.errors import LoadError
from marship.serving.formats import codec, golden
from marship.serving.formats.golden import GoldenRequest
from marship.serving.message import Reply

MODEL = Contract(
    (TensorSpec("x", "float32", ("batch",)),),
    (TensorSpec("y", "float32", ("batch",)), TensorSpec("z", "float32", ("batch",))),
    ("m",),
    "",
    20,
    tolerance=Tolerance(0.01, 0.1, {"y": 0.5}),
)
NUMBERS = st.floats(-1e6, 1e6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=9,
)


def recorded(value: Any) -> GoldenRequest:
    """A request that got this JSON."""
    return GoldenRequest("r.json", codec.JSON_TYPE, b"{}", codec.JSON_TYPE, dumped(value))


def dumped(value: Any) -> bytes:
    """As JSON."""
    return json.dumps(value).encode()


def moved(value: Any, share: float) -> Any:
    """The value, each fraction in it moved by so much of what it may be off by."""
    if isinstance(value, float):
        return value + share * (0.01 + 0.1 * abs(value))
    if isinstance(value, list):
        return [moved(item, share) for item in value]
    if isinstance(value, dict):
        return {name: moved(item, share) for name, item in value.items()}
    return value


def has_float(value: Any) -> bool:
    """Whether there is a fraction anywhere in it."""
    parts = value.values() if isinstance(value, dict) else value
    inner = isinstance(value, dict | list) and any(map(has_float, parts))
    return isinstance(value, float) or inner


@given(VALUES, st.floats(-0.99, 0.99))
def test_fractions_may_be_off_by_the_tolerance(value: Any, share: float) -> None:
    """Everywhere in the response, and no further."""
    assert not recorded(value).difference(moved(value, share), MODEL)
    beyond = recorded(value).difference(moved(value, 1.1), MODEL)
    assert bool(beyond) == has_float(value)


@given(VALUES, VALUES)
def test_all_else_is_equal_or_differs(one: Any, other: Any) -> None:
    """Texts, integers, truth, null, lengths and names, each by its type."""
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        if not (has_float(one) or has_float(other)):
            assert recorded(one).difference(other, MODEL)
    else:
        assert not recorded(one).difference(other, MODEL)


@given(VALUES)
def test_a_second_response_may_differ_by_noise_alone(value: Any) -> None:
    """A clock differs by a second, a duration by microseconds."""
    assert not recorded(value).change(moved(value, 1e-9))
    assert recorded({"at": 1.8e9, "x": 1.0}).change({"at": 1.8e9 + 0.01, "x": 1.0})
    assert recorded([3.1e-4]).change([2.9e-4])


PLACES: list[tuple[Any, Any, str]] = [
    ({"a": [{"s": 7.0}]}, {"a": [{"s": 9.0}]}, "a[0].s of 9.0 in place of 7.0"),
    ({"a": 1}, {"a": True}, "a of True in place of 1"),
    ([1, 2], [1, 2, 3], "a response of [1, 2, 3] in place of [1, 2]"),
    ({"id": "x"}, {"id": "y"}, "id of 'y' in place of 'x'"),
]


@pytest.mark.parametrize(("want", "got", "words"), PLACES)
def test_a_difference_says_where(want: Any, got: Any, words: str) -> None:
    """The first place, and both values."""
    assert recorded(want).difference(got, MODEL) == words


def test_arrays_and_other_bodies() -> None:
    """Arrays within the tolerance, JSON lines by line, anything else byte by byte."""
    array = np.array([[1.0, 2.0]], np.float32)
    npy = GoldenRequest("a", "", b"", codec.NPY_TYPE, codec.write_npy(array))
    assert not npy.difference(array + 0.05, MODEL)
    assert npy.difference(array + 1, MODEL)
    assert npy.difference(array[0], MODEL)
    lines = GoldenRequest("a", "", b"", golden.LINES_TYPE, b'{"s": 1.0}\n[2]\n')
    assert not lines.difference([{"s": 1.05}, [2]], MODEL)
    text = GoldenRequest("a", "", b"", "text/plain", b"same")
    assert not text.difference(b"same", MODEL)
    assert text.difference(b"other", MODEL)


def test_a_model_may_be_registered_under_another_name() -> None:
    """KServe v2 has it in the response; a handler's own response is compared as it is."""
    outputs = [{"name": "y", "data": [1.0]}]
    want = {"model_name": "a", "model_version": "1.0", "outputs": outputs}
    assert not recorded(want).difference({**want, "model_name": "b", "model_version": "2"}, MODEL)
    assert recorded(want).difference({**want, "outputs": []}, MODEL)
    assert recorded({"model_name": "a"}).difference({"model_name": "b"}, MODEL)


@given(st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=99), st.binary(max_size=99))))
def test_what_is_written_is_read(rows: list[tuple[str, bytes, bytes]]) -> None:
    """Names of any text, bodies of any bytes."""
    requests = [GoldenRequest(name, "a/b", body, "c/d", got) for name, body, got in rows]
    assert golden.read(golden.write(requests)) == requests


@given(st.binary(max_size=99))
def test_other_bytes_are_refused(data: bytes) -> None:
    """With one kind of error."""
    with suppress(LoadError):
        golden.read(data)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(b"[]", status=400), "status 400"),
        (Reply(b"1.0", "text/plain"), "text/plain in place of application/json"),
        (Reply(b"2.0"), "a response of 2.0 in place of 1.0"),
    ],
)
def test_a_replay_that_differs_refuses_to_load(reply: Reply, words: str) -> None:
    """And says which request, and what to do."""
    with pytest.raises(LoadError, match=f"golden request r.json .*got {words}"):
        golden.replay([recorded(1.0)], lambda _body, _kind: reply, MODEL)
    assert golden.replay([recorded(2.0)], lambda _body, _kind: Reply(b"2.0"), MODEL) == 1
