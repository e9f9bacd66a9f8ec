"""Bytes of a picture to pixels: JPEG, PNG, WebP, GIF and BMP, to uint8 RGB.

The bytes tell the format, nothing else does. Of an animation the first frame is taken. What is
transparent is shown on white, 16 bits become 8 by their upper half, and EXIF's orientation is
applied. Colour profiles are ignored: values are taken for sRGB, as the public data sets have
been read that networks learned from.

JPEG is decoded by libjpeg-turbo through simplejpeg, the others by Pillow's plugin for the format
found, and by no other of its plugins.

Limits, so that no small file costs much: `MAX_PIXELS`, known from the header before anything is
decoded. Beside the result, decoding takes up to 8 bytes for each pixel of the file, and 16 where
it is a WebP: 400 and 800 MB at the limit. A JPEG that is not progressive takes 2 MB.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marship.contract import Array
from marship.errors import MalformedError, RequestError, TooLargeError, UnsupportedMediaError
from marship.serving import heap, jpeg

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 50_000_000
MAX_RUN_LENGTH_PIXELS = 4_000_000
"""Of a run-length encoded BMP, which Pillow decodes in Python."""
LARGE_PIXELS = 4_000_000
"""From here on, what decoding took and freed is given back to the system at once."""
BAND_PIXELS = 1 << 20
"""What Pillow holds is converted in bands of this size, not as a whole once more."""
GIF_HEAD_BYTES = 1 << 20
FORMATS = "JPEG, PNG, WebP, GIF or BMP"
_PNG = b"\x89PNG\r\n\x1a\n"
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_WHITE_16 = 0xFFFF
_EXTENSION, _FRAME = 0x21, 0x2C  # what a part of a GIF begins with


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: uint8, shape (height, width, 3), RGB; smaller than the picture where it was
            decoded at a smaller scale.
        width: Of the picture as it is shown.
        height: Of the picture as it is shown.
        format: jpeg, png, webp, gif or bmp.
    """

    pixels: Array
    width: int
    height: int
    format: str

    @property
    def facts(self) -> dict[str, object]:
        """What an answer tells of a picture, without its pixels."""
        return {"width": self.width, "height": self.height, "format": self.format}


def decode(data: bytes, shortest: int | None = None) -> Picture:
    """Decode a picture, the way it is shown.

    Args:
        data: The file.
        shortest: How many pixels the shorter side needs; a picture that has many more is decoded
            at a smaller scale, which is faster. None keeps every pixel.

    Raises:
        MalformedError: There are no bytes, or the picture is damaged or cut off.
        TooLargeError: It has more than `MAX_PIXELS`.
        UnsupportedMediaError: The bytes are no picture of a format that is read.
    """
    if not data:
        raise MalformedError(f"the body must hold a picture, {FORMATS}, got no bytes.")
    kind = _kind(data)
    if kind == "jpeg":
        header = jpeg.read_header(data)
        _check_size(header.width, header.height)
        pixels, turned = jpeg.decode(data, header, shortest), header.orientation
        width, height = header.width, header.height
    else:
        pixels, turned, (width, height) = _decode_with_pillow(data, kind, shortest)
    if turned in jpeg.SIDEWAYS:
        width, height = height, width
    picture = Picture(_turn(pixels, turned), width, height, kind)
    if width * height >= LARGE_PIXELS:
        heap.release_freed()
    return picture


def shortest_side(side: int, crop: float) -> int:
    """The `shortest` for a network that reads `side` pixels of this share of the shorter side."""
    return math.ceil(side / crop)


def _kind(data: bytes) -> str:
    if data.startswith(jpeg.SIGNATURE):
        return "jpeg"
    if data.startswith(_PNG):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "bmp"
    raise UnsupportedMediaError(
        f"the body must hold a picture, {FORMATS}, got bytes that begin with {data[:12]!r}."
    )


def _check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    if width * height > most:
        raise TooLargeError(
            f"the picture must have at most {most:,} pixels, got {width} x {height}. "
            "Send a smaller one."
        )


def _turn(pixels: Array, turned: int) -> Array:
    """Pixels as they are shown; EXIF 2.32, 4.6.4 A says what 1 to 8 mean."""
    if turned == 1:
        return pixels
    if turned in jpeg.SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    rows = slice(None, None, -1) if turned in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if turned in (2, 3, 6, 7) else slice(None)
    return np.ascontiguousarray(pixels[rows, columns])


def _decode_with_pillow(
    data: bytes, kind: str, shortest: int | None
) -> tuple[Array, int, tuple[int, int]]:
    """Pixels, how they must be turned, and the size as stored."""
    from PIL.Image import DecompressionBombError

    if check := _CHECKS.get(kind):
        check(data)
    try:
        with _open(data, kind) as image:
            width, height = image.size
            _check_size(width, height)
            if image.tile and image.tile[0][0] == "bmp_rle":
                _check_size(width, height, MAX_RUN_LENGTH_PIXELS)
            image.load()
            factor = max(1, min(width, height) // shortest) if shortest else 1
            pixels = _to_pixels(image, factor)
            return pixels, jpeg.orientation(image.info.get("exif", b"")), image.size
    except (RequestError, MemoryError):
        raise
    except DecompressionBombError as error:  # far over our limit, and before we know the size
        raise TooLargeError(
            f"the picture must have at most {MAX_PIXELS:,} pixels, got more: {error}"
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly every kind on damaged files
        raise MalformedError(
            f"a {kind.upper()} must be whole, got one that cannot be read: {error}"
        ) from error


def _open(data: bytes, kind: str) -> "ImageFile":
    """The one plugin that reads this format; `PIL.Image.open` would try and load others."""
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.GifImagePlugin import GifImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    plugins: dict[str, type[ImageFile]] = {
        "bmp": BmpImageFile,
        "gif": GifImageFile,
        "png": PngImageFile,
        "webp": WebPImageFile,
    }
    return plugins[kind](io.BytesIO(data))


def _to_pixels(image: "Image", factor: int) -> Array:
    """A loaded picture on white, `factor` x `factor` pixels averaged to one."""
    width, height = image.size
    pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    rows = factor * max(1, BAND_PIXELS // (width * factor))
    for top in range(0, height, rows):
        band = _on_white(image.crop((0, top, width, min(top + rows, height))))
        reduced = band.reduce(factor) if factor > 1 else band
        start = top // factor
        pixels[start : start + reduced.height] = np.asarray(reduced)
    return pixels


def _on_white(band: "Image") -> "Image":
    from PIL import Image

    if band.mode.startswith("I"):
        return Image.fromarray(_upper_half(band)).convert("RGB")
    if band.mode in ("RGBA", "LA", "PA") or "transparency" in band.info:
        white = Image.new("RGBA", band.size, "white")
        band = Image.alpha_composite(white, band.convert("RGBA"))
    return band.convert("RGB")


def _upper_half(band: "Image") -> Array:
    """16 bits of grey as 8; where one grey is the transparent one, it is white."""
    grey = np.asarray(band)
    if (key := band.info.get("transparency")) is not None:
        grey = np.where(grey == key, _WHITE_16, grey)
    return (grey >> 8).astype(np.uint8)


def _check_png(data: bytes) -> None:
    """Hold every chunk against its checksum, to the last one (PNG, third edition, 5.3).

    Pillow does not for the pixels' own, and takes a file without its end.
    """
    place, view = len(_PNG), memoryview(data)
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        stop = place + 12 + length
        if stop > len(data):
            break
        if zlib.crc32(view[place + 4 : stop - 4]) != int.from_bytes(view[stop - 4 : stop], "big"):
            raise MalformedError(f"a PNG must be whole, got another checksum at byte {stop - 4}.")
        if name == b"IEND":
            return
        place = stop
    raise MalformedError("a PNG must be whole, got only the beginning of one.")


def _check_gif(data: bytes) -> None:
    """Find the first frame and its size; Pillow would reserve what it claims (GIF89a, 18 to 26)."""
    try:
        screen = struct.unpack_from("<HH", data, 6)
        place = 13 + _colours(data[10])
        while data[place] == _EXTENSION and place < GIF_HEAD_BYTES:
            place += 2  # and its label; then blocks, up to an empty one
            while data[place] and place < GIF_HEAD_BYTES:
                place += data[place] + 1
            place += 1
        is_frame = data[place] == _FRAME and place < GIF_HEAD_BYTES
        left, top, width, height = struct.unpack_from("<4H", data, place + 1)
    except (IndexError, struct.error) as error:
        raise MalformedError("a GIF must be whole, got only the beginning of one.") from error
    if not is_frame:
        raise MalformedError(f"a GIF must begin with a frame, got none up to byte {place}.")
    _check_size(max(screen[0], left + width), max(screen[1], top + height))


def _colours(flags: int) -> int:
    """Bytes of the colour table that these flags tell of."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _check_webp(data: bytes) -> None:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise MalformedError("a WebP must be whole, got only the beginning of one.")


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "gif": _check_gif,
    "png": _check_png,
    "webp": _check_webp,
}
