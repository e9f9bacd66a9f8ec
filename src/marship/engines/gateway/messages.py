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
from google.protobuf.message import DecodeError

from marship.errors import MalformedError

DESCRIPTORS = Path(__file__).with_name("open_inference.binpb")
SERVICE = "inference.GRPCInferenceService"

MOST_FIELDS = 8192
"""Of a message and its tensors, values not counted."""
_TENSORS = (5, 6)
"""The fields of ModelInferRequest that are inputs and outputs."""
_LENGTH_DELIMITED, _SIZES = 2, {1: 8, 5: 4}
_CONTINUES, _LONGEST_SHIFT = 0x80, 63
"""Of numbers on the wire (protobuf.dev/programming-guides/encoding)."""

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


def parse(wanted: Message, data: bytes) -> Message:
    """A message from its bytes.

    Args:
        wanted: Its class.
        data: The bytes.

    Raises:
        MalformedError: They are no such message, or it has more than `MOST_FIELDS` fields.
    """
    _count(memoryview(data), 0, into=_TENSORS)
    try:
        return wanted.FromString(data)
    except DecodeError as error:
        raise MalformedError(f"the message must be {wanted.__name__}, got: {error}.") from error


def _count(data: memoryview, count: int, into: tuple[int, ...] = ()) -> int:
    """How many fields there are; of a million small ones each would cost time to make.

    Args:
        data: A message.
        count: Those before it.
        into: The fields whose own fields count, too.

    Raises:
        MalformedError: They are too many.
    """
    place = 0
    while place < len(data):
        count += 1
        if count > MOST_FIELDS:
            raise MalformedError(
                f"a message must have at most {MOST_FIELDS} inputs, outputs, parameters and other "
                "fields in all, got more. Send several requests."
            )
        key, place = _varint(data, place)
        kind_of, number = key & 7, key >> 3
        if kind_of == _LENGTH_DELIMITED:
            size, place = _varint(data, place)
            if number in into:
                count = _count(data[place : place + size], count)
            place += size
        elif kind_of == 0:
            _, place = _varint(data, place)
        elif kind_of in _SIZES:
            place += _SIZES[kind_of]
        else:
            raise MalformedError("a field must be of a type that the protocol has, got a group.")
    return count


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number, and where it ends; a parser of the whole says what is wrong with the rest."""
    value = shift = 0
    while place < len(data) and shift <= _LONGEST_SHIFT:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < _CONTINUES:
            break
        shift += 7
    return value, place
