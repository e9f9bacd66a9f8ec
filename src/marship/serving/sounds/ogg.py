"""OGG: parses pages, and separates audio streams (RFC 3533; RFC 7845 for Opus).

libogg skips corrupted pages and libsndfile decodes only the first stream of a chain; so pages are
verified and streams separated here.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from marship.errors import MalformedError, UnsupportedMediaError

SIGNATURE = b"OggS"
MOST_STREAMS = 256
"""Maximum number of streams: each takes a decoder and a resampler."""
OPUS_RATE = 48_000
_PAGE = struct.Struct("<4sBBqIIIB")  # ends with the number of segments
_CHECKSUM = slice(22, 26)
_FLAGS = 5
_FIRST, _LAST = 2, 4  # of the flags; many encoders omit the last
_FULL = 255  # a segment of this size is continued in the next
_CODECS = {b"\x01vorbis": "vorbis", b"OpusHead": "opus"}
_OPUS_RATE_PLACE = 12  # of the first packet
_MIRRORED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


@dataclass(slots=True)
class _Stream:
    """A logical stream: its pages, and the expected next page number."""

    serial: int
    codec: str | None
    group: int
    next_page: int = 0
    is_open: bool = False
    pages: list[bytes | memoryview] = field(default_factory=list)


def streams(data: bytes) -> list[tuple[str, bytes]]:
    """The codec and the pages of each audio stream, in order.

    Of multiplexed streams the first is used.

    Raises:
        MalformedError: A page is corrupted, missing or truncated.
        UnsupportedMediaError: There is neither Vorbis nor Opus.
    """
    found: list[_Stream] = []
    current: dict[int, _Stream] = {}
    was_first = False
    for page in _pages(data):
        _, _, flags, _, serial, number, _, segments = _PAGE.unpack_from(page)
        is_first = bool(flags & _FIRST)
        if is_first:
            group = found[-1].group + (not was_first) if found else 0
            current[serial] = _Stream(serial, _codec(page), group, next_page=number)
            found.append(current[serial])
            if len(found) > MOST_STREAMS:
                raise _damaged(f"more than {MOST_STREAMS} streams")
        stream = current.get(serial)
        if stream is None or number != stream.next_page:
            raise _damaged(f"page {number} of stream {serial} where another must be")
        stream.next_page = number + 1 & 0xFFFFFFFF
        if segments:
            stream.is_open = page[_PAGE.size + segments - 1] == _FULL
        stream.pages.append(_with_full_rate(page) if is_first and stream.codec == "opus" else page)
        was_first = is_first
    return list(_of_sound(found))


def _of_sound(found: list[_Stream]) -> Iterator[tuple[str, bytes]]:
    taken = set[int]()
    for stream in found:
        if stream.codec and stream.group not in taken:
            taken.add(stream.group)
            if stream.is_open:
                raise _damaged("only the beginning of one")
            last = stream.pages[-1]
            end = _edited(last, _FLAGS, bytes([last[_FLAGS] | _LAST]))
            yield stream.codec, b"".join((*stream.pages[:-1], end))
    if not taken:
        raise UnsupportedMediaError("an OGG must hold Vorbis or Opus, got neither.")


def _pages(data: bytes) -> Iterator[memoryview]:
    """All pages; trailing data without pages after the end of a stream is ignored."""
    place, view, flags = 0, memoryview(data), 0
    while data.find(SIGNATURE, place) >= 0:
        head = data[place : place + _PAGE.size]
        if len(head) < _PAGE.size:
            raise _damaged("only the beginning of one")
        if not head.startswith(SIGNATURE):
            raise _damaged(f"no page at byte {place}")
        sizes = data[place + _PAGE.size : place + _PAGE.size + head[-1]]
        stop = place + _PAGE.size + head[-1] + sum(sizes)
        if stop > len(data):
            raise _damaged("only the beginning of one")
        page = view[place:stop]
        if _checksum(page) != int.from_bytes(page[_CHECKSUM], "little"):
            raise _damaged(f"another checksum in the page at byte {place}")
        yield page
        place, flags = stop, page[_FLAGS]
    if place < len(data) and not flags & _LAST:
        raise _damaged("only the beginning of one")


def _checksum(page: bytes | bytearray | memoryview) -> int:
    """The CRC: zlib's polynomial with another bit order (RFC 3533, 6)."""
    cleared = b"".join((page[: _CHECKSUM.start], bytes(4), page[_CHECKSUM.stop :]))
    found = zlib.crc32(cleared.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(found.to_bytes(4, "little").translate(_MIRRORED), "big")


def _packet(page: bytes | memoryview) -> int:
    """The start of a page's first packet."""
    return _PAGE.size + page[_PAGE.size - 1]


def _codec(page: memoryview) -> str | None:
    packet = bytes(page[_packet(page) :][:8])
    return next((name for magic, name in _CODECS.items() if packet.startswith(magic)), None)


def _with_full_rate(page: memoryview) -> bytes:
    """The first page of an Opus stream with the codec's full rate.

    The stored rate is that of the encoder's input, or 0 (RFC 7845, 5.1). libsndfile decodes at
    about this rate, with 8 kHz for 0.
    """
    start = _packet(page) + _OPUS_RATE_PLACE
    if len(page) < start + 4:
        raise _damaged("an Opus without its head")
    return _edited(page, start, OPUS_RATE.to_bytes(4, "little"))


def _edited(page: bytes | memoryview, place: int, value: bytes) -> bytes:
    """The page with bytes replaced, and its checksum updated."""
    edited = bytearray(page)
    edited[place : place + len(value)] = value
    edited[_CHECKSUM] = _checksum(edited).to_bytes(4, "little")
    return bytes(edited)


def _damaged(got: str) -> MalformedError:
    return MalformedError(f"an OGG must be whole, got {got}.")
