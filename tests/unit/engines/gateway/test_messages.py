"""The protocol's descriptors are those of our file, and of everybody else's."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tritonclient.grpc.service_pb2 as triton
from google.protobuf.descriptor import Descriptor

from marship.engines.gateway import messages


def test_the_descriptors_are_current(tmp_path: Path) -> None:
    """`make proto` writes them, and would write no others."""
    source = messages.DESCRIPTORS.with_suffix(".proto")
    made = tmp_path / "made"
    words = [f"-I{source.parent}", f"--descriptor_set_out={made}", source.name]
    # The compiler brings a protobuf of its own, which crashes a process with ONNX's or gRPC's.
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *words], check=True)
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
