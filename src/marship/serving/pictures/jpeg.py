"""JPEG: what its markers say, and its pixels by libjpeg-turbo (ITU-T T.81, annex B).

The markers are read here, before libjpeg sees a byte: the size to refuse what is too large, and
what makes a small file take long.
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
"""Orientations that exchange width and height."""
MOST_SEGMENTS = 2_000
"""Before the first scan, and behind it. Long colour profiles and depth maps take some hundred."""
MOST_SCANS = 100
"""A progressive picture has about ten; libjpeg goes over all blocks once for each."""
MOST_SCANNED_PIXELS = 1_000_000_000
"""Scans times pixels: twenty scans of the largest picture."""
FEWEST_BITS = 1
"""Of a block of 8 x 8 pixels, in a progressive picture's first scan."""
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
_PREFIX, _START_OF_SCAN, _END, _APP1 = 0xFF, 0xDA, 0xD9, 0xE1
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""In a scan: 0xFF that is not followed by zero, and is no restart, fill byte or TEM (B.1.1)."""
_LENGTH_BYTES, _BITS, _BLOCK_PIXELS = 2, 8, 64
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all with Huffman codes
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xD0)} - {0xC8, 0xCC}  # lossless, hierarchical, arithmetic
_SCALES = (8, 4, 2)  # those that libjpeg-turbo has fast code for
_HARMLESS = re.compile(r"extraneous bytes before marker 0xd9")  # all blocks were there


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What stands before the first scan.

    Attributes:
        width: As stored.
        height: As stored.
        orientation: How the stored picture must be turned, 1 to 8 as EXIF counts.
        end: Where the first scan's own header ends.
    """

    width: int
    height: int
    orientation: int
    end: int


def read_header(data: bytes) -> JpegHeader:
    """Read the markers before the first scan.

    Raises:
        MalformedError: They are not a JPEG's.
        UnsupportedMediaError: It is one that hardly any program writes, and libjpeg-turbo does
            not read: lossless, hierarchical, arithmetic, or of 12 bits.
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
    """The marker at `place`, and where its content begins and ends."""
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
    """Refuse what cannot be whole, and what would take long, before it costs anything."""
    pixels = header.width * header.height
    most = min(MOST_SCANS, MOST_SCANNED_PIXELS // pixels)
    scans = _count_scans(data, header.end)
    if scans > most:
        raise _damaged(f"{scans} scans where {most} are allowed")
    if len(data) * 8 < FEWEST_BITS * pixels / _BLOCK_PIXELS:
        raise _damaged("only the beginning of one")


def _count_scans(data: bytes, place: int) -> int:
    """Scans up to the picture's end, the one at `place` included.

    What stands behind the end, where phones keep a film or another picture, does not count.
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
    """How a picture must be turned (TIFF 6.0, section 2; EXIF 2.32, 4.6.4 A); 1 is not at all.

    What cannot be read there is no reason to refuse a picture.
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
    """The pixels as stored: uint8, shape (height, width, 3), RGB.

    Where both sides stay at least `shortest`, the picture is decoded at 1/2, 1/4 or 1/8 of its
    size, from as many of its frequencies as are needed for that.

    Raises:
        MalformedError: The picture is damaged or incomplete.
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
    if scale > 1:  # simplejpeg takes the smallest size that has at least these
        least = {"min_width": -(-header.width // scale), "min_height": -(-header.height // scale)}
    pixels: Array = simplejpeg.decode_jpeg(data, strict=strict, **least)
    return pixels


def _damaged(got: str) -> MalformedError:
    return MalformedError(f"a JPEG must be whole, got {got.rstrip('.')}.")
