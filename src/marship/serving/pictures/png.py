"""PNG: verifies the checksums of chunks, and keeps those that the pixels need.

Clauses are those of the PNG specification, third edition (W3C, 2025). A decoder is given IHDR,
PLTE, tRNS, the pixels and eXIf. Colour profiles and texts stay where they are: they may be of any
length, are inflated by no one, and do not count. Of an APNG that leaves the default image, which
is what programs show that know no animation (4.9).
"""

import struct
import zlib
from collections.abc import Iterator

from marship.errors import MalformedError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER, _END, _PIXELS, _TRANSPARENT = b"IHDR", b"IEND", b"IDAT", b"tRNS"
_KEPT = (_HEADER, b"PLTE", _TRANSPARENT, b"eXIf")
_HEADER_BYTES = 13
_HEAD_BYTES = 8  # length and name, before a chunk's content
_FRAME_BYTES = 12  # and the checksum behind it
_GREY, _COLOUR = 0, 2
_TO_8_BITS = {1: 255, 2: 85, 4: 17, 8: 1}


def strip(data: bytes) -> bytes:
    """The image with only the chunks that its pixels need.

    The pixels' stream lacks its last byte, one of its checksum. Where all rows are there, a
    decoder is done before; where some are missing it asks for more in vain. Otherwise Pillow
    takes the stream's end for the picture's, and leaves what is missing black. To count the rows
    would be to inflate them twice. Bytes behind the stream, which encoders do not write, would
    hide that rows are missing.

    Raises:
        MalformedError: A checksum is wrong, or the chunks are out of order (5.6).
    """
    view = memoryview(data)
    kept: dict[bytes, bytes] = {}
    first = start = stop = end = 0
    for name, place, size_bytes in _chunks(data):
        if not kept and (name, size_bytes) != (_HEADER, _HEADER_BYTES):
            raise MalformedError(
                f"a PNG must begin with {_HEADER_BYTES} bytes of IHDR, got {size_bytes} of "
                f"{name.decode(errors='replace')}."
            )
        if name in _KEPT:
            kept.setdefault(name, data[place : place + size_bytes])
        elif name == _PIXELS:
            if first and place != end:
                raise MalformedError(f"a PNG's pixels must lie together, got more at {place}.")
            first, end = first or place, place + size_bytes + _FRAME_BYTES
            if size_bytes:
                start, stop = place, place + size_bytes
    if not stop:
        raise MalformedError("a PNG must hold pixels, got none.")
    if _TRANSPARENT in kept:
        kept[_TRANSPARENT] = _scaled(kept[_TRANSPARENT], *kept[_HEADER][8:10])
    parts: list[bytes | memoryview] = [SIGNATURE]
    for name, content in kept.items():
        parts += _chunk(name, content)
    parts.append(view[first - _HEAD_BYTES : start - _HEAD_BYTES])
    parts += _chunk(_PIXELS, view[start : stop - 1]) + _chunk(_END, b"")
    return b"".join(parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Names, places and sizes of the contents up to IEND, with verified checksums (5.3)."""
    place, view = len(SIGNATURE) + _HEAD_BYTES, memoryview(data)
    while place + 4 <= len(data):
        size_bytes, name = struct.unpack_from(">I4s", data, place - _HEAD_BYTES)
        stop = place + size_bytes
        if stop + 4 > len(data):
            break
        if zlib.crc32(view[place - 4 : stop]) != int.from_bytes(view[stop : stop + 4], "big"):
            raise MalformedError(f"a PNG must be whole, got another checksum at byte {stop}.")
        if name == _END:
            return
        yield name, place, size_bytes
        place = stop + _FRAME_BYTES
    raise MalformedError("a PNG must be whole, got only the beginning of one.")


def _scaled(key: bytes, bits: int, kind: int) -> bytes:
    """The transparent colour in 8 bits, as Pillow's pixels (11.3.1.1 and 13.12)."""
    if kind not in (_GREY, _COLOUR) or bits not in _TO_8_BITS:
        return key
    scale = _TO_8_BITS[bits]
    values = struct.iter_unpack(">H", key[: len(key) // 2 * 2])
    return b"".join(struct.pack(">H", (value & 255 // scale) * scale) for (value,) in values)


def _chunk(name: bytes, content: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I4s", len(content), name), content, struct.pack(">I", checksum)
