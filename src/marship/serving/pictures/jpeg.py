"""JPEG: parses its markers, and decodes with libjpeg-turbo (ITU-T T.81, annex B).

The markers are checked before libjpeg gets the file: the size, and what makes a small file slow to
decode.
"""

import re
import struct
from dataclasses import dataclass

from marship.contract import Array
from marship.errors import MalformedError, UnsupportedMediaError

SIGNATURE = b"\xff\xd8"
EXIF = b"Exif\0\0"
ORIENTATION_TAG = 0x0112
ORIENTATIONS = range(1, 9)
SIDEWAYS = range(5, 9)
"""Orientations that swap width and height."""
MOST_SEGMENTS = 2_000
"""Before the first scan, and after it. Large colour profiles and depth maps take some hundred."""
MOST_SCANS = 100
"""A progressive JPEG has about ten; libjpeg processes all blocks for each."""
MOST_SCANNED_PIXELS = 1_000_000_000
"""Scans times pixels: twenty scans of the largest image."""
FEWEST_BITS = 1
"""Minimum bits of a block of 8 x 8 pixels, in a progressive JPEG's first scan."""
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
_PREFIX, _START_OF_SCAN, _END, _APP1 = 0xFF, 0xDA, 0xD9, 0xE1
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""In a scan: 0xFF that is not followed by zero, and is no restart, fill byte or TEM (B.1.1)."""
_LENGTH_BYTES, _BITS, _BLOCK_PIXELS = 2, 8, 64
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all with Huffman codes
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xD0)} - {0xC8, 0xCC}  # lossless, hierarchical, arithmetic
_SCALES = (8, 4, 2)  # those with fast code in libjpeg-turbo
_HARMLESS = re.compile(r"extraneous bytes before marker 0xd9")  # all blocks were decoded


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The header of a JPEG, up to the first scan.

    Attributes:
        width: The stored width.
        height: The stored height.
        orientation: The EXIF orientation, 1 to 8.
        end: The end of the first scan's header.
    """

    width: int
    height: int
    orientation: int
    end: int


def read_header(data: bytes) -> JpegHeader:
    """Read the markers before the first scan.

    Raises:
        MalformedError: They are not a JPEG's.
        UnsupportedMediaError: It is of a rare type that libjpeg-turbo does not support: lossless,
            hierarchical, arithmetic, or of 12 bits.
    """
    size: tuple[int, int] | None = None
    turned = 1
    place = len(SIGNATURE)
    for _ in range(MOST_SEGMENTS):
        marker, place, stop = _segment(data, place)
        if marker in _OTHER_FRAMES:
            raise UnsupportedMediaError(
                f"a JPEG must be baseline or progressive, got one of kind 0x{marker:02X}."
            )
        if marker in _FRAMES:
            size = _frame_size(data[place:stop])
        elif marker == _APP1 and data.startswith(EXIF, place):
            turned = orientation(data[place:stop])
        elif marker == _START_OF_SCAN and size is not None:
            return JpegHeader(*size, turned, stop)
        place = stop
    raise _damaged(f"no picture within {MOST_SEGMENTS} segments")


def _segment(data: bytes, place: int) -> tuple[int, int, int]:
    """The marker at `place`, and the start and end of its content."""
    while data[place : place + 2] == b"\xff\xff":  # fill bytes
        place += 1
    try:
        prefix, marker, length = _SEGMENT.unpack_from(data, place)
    except struct.error as error:
        raise _damaged("only the beginning of one") from error
    stop = place + _LENGTH_BYTES + length
    if prefix != _PREFIX or length < _LENGTH_BYTES:
        raise _damaged(f"no marker at byte {place}")
    if stop > len(data):
        raise _damaged("only the beginning of one")
    return marker, place + 4, stop


def _frame_size(frame: bytes) -> tuple[int, int]:
    try:
        bits, height, width, _ = _FRAME.unpack_from(frame)
    except struct.error as error:
        raise _damaged("a frame without its size") from error
    if bits != _BITS:
        raise UnsupportedMediaError(f"a JPEG must have 8 bits for a value, got {bits}.")
    if not width or not height:
        raise _damaged(f"a size of {width} x {height}")
    return width, height


def _check_scans(data: bytes, header: JpegHeader) -> None:
    """Reject files that must be truncated, or would be slow, before decoding."""
    pixels = header.width * header.height
    most = min(MOST_SCANS, MOST_SCANNED_PIXELS // pixels)
    scans = _count_scans(data, header.end)
    if scans > most:
        raise _damaged(f"{scans} scans where {most} are allowed")
    if len(data) * 8 < FEWEST_BITS * pixels / _BLOCK_PIXELS:
        raise _damaged("only the beginning of one")


def _count_scans(data: bytes, place: int) -> int:
    """The number of scans up to the end of the image, including the one at `place`.

    Data after the end, where phones store a video or another image, is ignored.
    """
    scans = 1
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None:
            raise _damaged("only the beginning of one")
        marker = data[found.start() + 1]
        if marker == _END:
            return scans
        scans += marker == _START_OF_SCAN
        _, _, place = _segment(data, found.start())
    raise _damaged(f"no end within {MOST_SEGMENTS} segments")


def orientation(exif: bytes) -> int:
    """The EXIF orientation (TIFF 6.0, section 2; EXIF 2.32, 4.6.4 A); 1 is none.

    Malformed EXIF data is ignored.
    """
    tiff = exif.removeprefix(EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
            if tag == ORIENTATION_TAG:
                return int(value) if value in ORIENTATIONS else 1
    except struct.error:
        pass
    return 1


def decode(data: bytes, header: JpegHeader, shortest: int | None) -> Array:
    """Decode the stored pixels: uint8, shape (height, width, 3), RGB.

    If both sides stay at least `shortest`, the image is decoded at 1/2, 1/4 or 1/8 of its size,
    from only the frequencies that are needed for that.

    Raises:
        MalformedError: The image is corrupted or truncated.
    """
    _check_scans(data, header)
    shorter = min(header.width, header.height)
    scale = next((s for s in _SCALES if shortest and -(-shorter // s) >= shortest), 1)
    try:
        return _decompress(data, header, scale)
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise _damaged(str(error)) from error
    try:
        return _decompress(data, header, scale, strict=False)
    except ValueError as error:
        raise _damaged(str(error)) from error


def _decompress(data: bytes, header: JpegHeader, scale: int, *, strict: bool = True) -> Array:
    import simplejpeg

    least = {}
    if scale > 1:  # simplejpeg uses the smallest size with at least these
        least = {"min_width": -(-header.width // scale), "min_height": -(-header.height // scale)}
    pixels: Array = simplejpeg.decode_jpeg(data, strict=strict, **least)
    return pixels


def _damaged(got: str) -> MalformedError:
    return MalformedError(f"a JPEG must be whole, got {got.rstrip('.')}.")
