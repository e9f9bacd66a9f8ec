"""The protocol's message classes, by name.

They are made from descriptors in a pool of their own, not from generated code: every package that
brings this protocol (tritonclient, kserve) registers the same names, and the default pool takes
them only once in a process.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import ServiceDescriptor

DESCRIPTORS = Path(__file__).with_name("open_inference.binpb")
SERVICE = "inference.GRPCInferenceService"

Message: TypeAlias = Any
"""A message; its fields are known at run time alone."""


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    found = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    return pool


def service() -> ServiceDescriptor:
    """The service, with its methods and their messages."""
    return _pool().FindServiceByName(SERVICE)


@cache
def kind(name: str) -> Message:
    """A message class.

    Example:
        >>> kind("ServerLiveResponse")(live=True).live
        True
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))
