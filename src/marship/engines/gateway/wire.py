"""The wire format of protobuf, field by field, without an object for each.

Tensors are the bulk of a message and need no objects: floats lie in it as in raw tensors. Source:
protobuf.dev, "Encoding". Groups, which proto3 does not have, are refused.
"""

from collections.abc import Iterator
from typing import NamedTuple

from marship.errors import MalformedError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Types of fields; BYTES are messages, texts and packed numbers, too."""

_FIXED = {FIXED64: 8, FIXED32: 4}
_TAGS = 1 << 32
_MORE = 0x80
"""Set in each byte of a number but its last."""
_LONGEST_BYTES = 10
"""Of a number: 7 bits in each."""
_TEXTS, _LONG_BYTES = 4096, 1 << 16


class Field(NamedTuple):
    """Where a field lies.

    Attributes:
        number: Of the field.
        type: How its value is written.
        start: Of the field.
        value: Start of its value.
        end: Behind its value.
    """

    number: int
    type: int
    start: int
    value: int
    end: int


def fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between two places.

    Raises:
        MalformedError: They are no message.
    """
    place = start
    while place < end:
        tag, value = data[place], place + 1
        if tag & _MORE:
            tag, value = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == BYTES:
            size, value = _varint(data, value)
            after = value + size
        elif kind == VARINT:
            _, after = _varint(data, value)
        elif kind in _FIXED:
            after = value + _FIXED[kind]
        else:
            raise MalformedError(f"fields must be of types 0, 1, 2 and 5, got type {kind}.")
        if after > end or not number or tag >= _TAGS:
            raise MalformedError("the message must have complete fields, got a broken one.")
        yield Field(number, kind, place, value, after)
        place = after


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number, and the place behind it."""
    found = shift = 0
    try:
        while (byte := data[place]) & _MORE:
            found |= (byte ^ _MORE) << shift
            place, shift = place + 1, shift + 7
            if shift >= 7 * _LONGEST_BYTES:
                raise MalformedError(f"numbers must have {_LONGEST_BYTES} bytes at most, got more.")
    except IndexError:
        raise MalformedError("the message must end with a field, got it within one.") from None
    return found | byte << shift, place + 1


def texts(data: bytes, start: int, end: int, number: int) -> Iterator[list[bytes]]:
    """The values of a message that has nothing but one field of texts, a few at a time.

    Raises:
        MalformedError: It has another field, or a broken one.
    """
    (tag,) = _written(number << 3 | BYTES)
    place = start
    found: list[bytes] = []
    while place < end:
        if data[place] != tag or place + 1 == end:
            raise MalformedError(f"texts must be complete, in field {number}, got another.")
        size, value = data[place + 1], place + 2
        if size & _MORE:
            size, value = _varint(data, place + 1)
        place = value + size
        found.append(data[value:place])
        if len(found) == _TEXTS or size > _LONG_BYTES:
            yield found
            found = []
    if place > end:
        raise MalformedError(f"texts must be complete, in field {number}, got less.")
    yield found


def cut_varints(data: bytes, start: int, end: int, size: int) -> Iterator[bytes]:
    """Packed numbers in chunks of about a size; a number stays whole."""
    while start < end:
        stop = min(start + size, end)
        longest = min(stop + _LONGEST_BYTES, end)
        while stop < longest and data[stop - 1] & _MORE:
            stop += 1
        yield data[start:stop]
        start = stop


def head(number: int, size: int) -> bytes:
    """What is written before the bytes of a field."""
    return _written(number << 3 | BYTES) + _written(size)


def _written(number: int) -> bytes:
    made = bytearray()
    while number >= _MORE:
        made.append(number % _MORE | _MORE)
        number >>= 7
    made.append(number)
    return bytes(made)
