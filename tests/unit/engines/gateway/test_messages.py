"""The protocol's descriptors are those of our file, and of everybody else's."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.service_pb2 as triton
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st

from marship.engines.gateway import messages
from marship.errors import MalformedError


def test_the_descriptors_are_current(tmp_path: Path) -> None:
    """`make proto` writes them, and would write no others."""
    source = messages.DESCRIPTORS.with_suffix(".proto")
    made = tmp_path / "made"
    words = ["protoc", f"-I{source.parent}", f"--descriptor_set_out={made}", source.name]
    assert protoc.main(words) == 0
    assert made.read_bytes() == messages.DESCRIPTORS.read_bytes()


def kinds(message: Descriptor) -> Iterator[tuple[Descriptor, Descriptor]]:
    """A message, its parts' and theirs, each beside Triton's."""
    stack = [message]
    seen: set[str] = set()
    while stack:
        one = stack.pop()
        if one.full_name not in seen:
            seen.add(one.full_name)
            yield one, triton_message(one)
            stack += [field.message_type for field in one.fields if field.message_type]


def triton_message(message: Descriptor) -> Descriptor:
    """Triton's message of the same name."""
    pool = triton.DESCRIPTOR.pool
    found: Descriptor = pool.FindMessageTypeByName(message.full_name)
    return found


def test_each_field_is_tritons() -> None:
    """Names, numbers, types and repetition; Triton has further methods and fields."""
    methods = triton.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    seen = 0
    for method in messages.service().methods:
        own = methods[method.name]
        assert own.input_type.full_name == method.input_type.full_name
        assert own.output_type.full_name == method.output_type.full_name
        for ours, theirs in (*kinds(method.input_type), *kinds(method.output_type)):
            for field in ours.fields:
                other = theirs.fields_by_name[field.name]
                assert (field.number, field.type) == (other.number, other.type), field.full_name
                assert field.is_repeated == other.is_repeated, field.full_name
                seen += 1
    assert seen > 60


def test_both_live_in_one_process() -> None:
    """Triton's client registers the same names in protobuf's default pool."""
    assert "tritonclient.grpc.service_pb2" in sys.modules
    assert messages.kind("ServerLiveResponse")(live=True).live
    assert triton.ServerLiveResponse(live=True).live


def many(where: str, count: int) -> Any:
    """A request with many of what may be repeated."""
    made = messages.kind("ModelInferRequest")()
    tensors = {"inputs": made.inputs, "outputs": made.outputs}
    kind, _, part = where.partition(" ")
    if part == "parameters":
        owner = made if kind == "own" else tensors[kind].add()
        for number in range(count):
            owner.parameters[str(number)].bool_param = True
    elif kind == "contents":
        made.raw_input_contents.extend([b""] * count)
    else:
        for _ in range(count):
            tensors[kind].add()
    return made


KINDS = (
    *("inputs", "outputs", "contents", "own parameters", "inputs parameters"),
    "outputs parameters",
)


@pytest.mark.parametrize("where", KINDS)
def test_what_is_repeated_is_bounded(where: str) -> None:
    """Each costs time in the event loop, which serves all clients."""
    wanted = messages.kind("ModelInferRequest")
    bound = messages.MOST_FIELDS - (
        where.partition(" ")[0] in ("inputs", "outputs") and " " in where
    )
    right = many(where, bound)
    assert messages.parse(wanted, right.SerializeToString()) == right
    for count in (bound + 1, 100_000):
        with pytest.raises(MalformedError, match="at most 8192 inputs, outputs"):
            messages.parse(wanted, many(where, count).SerializeToString())


@given(st.lists(st.binary(max_size=40), max_size=4), st.data())
def test_bytes_are_a_message_or_refused(parts: list[bytes], data: st.DataObject) -> None:
    """Whatever they are, protobuf's own parser has the last word."""
    wanted = messages.kind("ModelInferRequest")
    made = wanted(model_name="m", raw_input_contents=parts)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    whole = bytearray(made.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    right: Any = None
    with suppress(DecodeError):
        right = wanted.FromString(sent)
    got: Any = None
    refusal = ""
    try:
        got = messages.parse(wanted, sent)
    except MalformedError as error:
        refusal = str(error)
    assert got == right or "got a group" in refusal
