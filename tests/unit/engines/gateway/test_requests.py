"""What is read of a request, and what is refused before protobuf makes objects of it."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from marship.engines.gateway import requests
from marship.engines.gateway.messages import kind
from marship.errors import MalformedError

Request = kind("ModelInferRequest")


def put(made: Any, name: str, count: int) -> None:
    """Fill a field that repeats."""
    field = getattr(made, name)
    match name:
        case "parameters":
            for number in range(count):
                field[str(number)].bool_param = True
        case "raw_input_contents":
            field.extend([b""] * count)
        case "shape":
            field.extend([1] * count)
        case _:
            for _ in range(count):
                field.add()


def on(owner: str, name: str) -> Callable[[int], Any]:
    """What makes a request with many of what repeats in the request, or in its last tensor."""

    def make(count: int) -> Any:
        made = Request(model_name="m")
        put(getattr(made, owner).add() if owner else made, name, count)
        return made

    return make


REPEATED = {
    (owner.name if owner else "", field.name)
    for owner, message in [
        (None, Request.DESCRIPTOR),
        *((field, field.message_type) for field in Request.DESCRIPTOR.fields if field.message_type),
    ]
    for field in message.fields
    if field.is_repeated and not (owner and owner.name == "parameters")
}


@pytest.mark.parametrize(("owner", "name"), sorted(REPEATED))
def test_each_field_that_repeats_is_bounded(owner: str, name: str) -> None:
    """Whatever repeats in the protocol, at its limit and over it; a million of it, as well."""
    limit = requests.MOST_DIMENSIONS if name == "shape" else requests.MOST
    make = on(owner, name)
    right = make(limit)
    found = requests.read(right.SerializeToString())
    if name == "raw_input_contents":
        assert len(found.raw) == limit
    else:
        assert found.message == right
    for count in (limit + 1, 50_000):
        with pytest.raises(MalformedError, match=r"^the \w+ must have \d+ [\w' ]+ at most, got"):
            requests.read(make(count).SerializeToString())


def test_the_protocols_fields_are_all_there() -> None:
    """That which the test above goes through."""
    own = {("", name) for name in ("inputs", "outputs", "parameters", "raw_input_contents")}
    tensors = {("inputs", "shape"), ("inputs", "parameters"), ("outputs", "parameters")}
    assert own | tensors == REPEATED


@pytest.mark.parametrize("name", ["model_name", "model_version", "id"])
def test_texts_are_bounded(name: str) -> None:
    """A name of megabytes is as long to quote as a million fields are to make."""
    room = requests.MOST_BYTES - 10
    assert requests.read(Request(**{name: "x" * room}).SerializeToString()).message
    with pytest.raises(MalformedError, match="bytes besides its tensors' values at most"):
        requests.read(Request(**{name: "x" * (room + 10)}).SerializeToString())
    with pytest.raises(MalformedError, match="bytes at most"):
        requests.parse("ModelReadyRequest", kind("ModelReadyRequest")(
            name="x" * (room + 10)).SerializeToString())  # fmt: skip


def test_fields_are_bounded_whatever_they_are() -> None:
    """Those that nobody knows cost as much to read."""
    known = Request(model_name="m").SerializeToString()
    unknown = bytes([9 << 3, 0])
    most = requests.MOST_FIELDS - 1
    assert requests.read(known + unknown * most).message.model_name == "m"
    with pytest.raises(MalformedError, match=f"must have {most + 1} fields at most"):
        requests.read(known + unknown * (most + 1))


def whole(found: requests.InferRequest) -> Any:
    """The message as protobuf reads it, of its parts."""
    made = Request()
    made.CopyFrom(found.message)
    made.raw_input_contents.extend(found.data[start:end] for start, end in found.raw)
    for tensor, places in zip(made.inputs, found.typed, strict=True):
        for start, end in places:
            tensor.contents.MergeFromString(found.data[start:end])
    return made


def of(read: Callable[[bytes], Any], data: bytes) -> Any:
    """What is read, or why it is refused; None where protobuf itself does."""
    try:
        return read(data)
    except DecodeError:
        return None
    except MalformedError as error:
        return error


@given(st.lists(st.binary(max_size=40), max_size=4), st.data())
def test_bytes_are_read_as_protobuf_reads_them(parts: list[bytes], data: st.DataObject) -> None:
    """Broken in any way they are refused by both, but for groups, which proto3 does not have."""
    made = Request(model_name="m", raw_input_contents=parts)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2], contents={"fp32_contents": [1, 2]})
    made.inputs.add(name="y", datatype="BYTES", contents={"bytes_contents": [b"", b"a"]})
    sent = bytearray(made.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    sent = sent[: data.draw(st.integers(0, len(sent)))]
    right = of(Request.FromString, bytes(sent))
    found = of(lambda data: whole(requests.read(data)), bytes(sent))
    if right is None or "got type" in str(found):
        assert not isinstance(found, Request)
        return
    assert isinstance(found, Request), found
    found.DiscardUnknownFields()
    right.DiscardUnknownFields()
    assert found == right
