"""Bytes of a picture to pixels: JPEG, PNG, WebP, GIF and BMP, to uint8 RGB.

The bytes tell the format, nothing else does. Of an animation the first frame is taken. What is
transparent is shown on white, 16 bits become 8 by their upper half, and EXIF's orientation is
applied. Colour profiles are ignored: values are taken for sRGB, as the public data sets have
been read that networks learned from.

JPEG is decoded by libjpeg-turbo through simplejpeg, the others by Pillow's plugin for the format
found, and by no other of its plugins.

Limits, so that no small file costs much: `MAX_PIXELS` and `MAX_SIDE`, known from the header before
anything is decoded. Beside the file, a PNG's copy of it and the result, decoding takes up to 9
bytes for each pixel, and 12 where it is a WebP: 450 and 600 MB at the limit. A JPEG that is not
progressive takes 2 MB.
"""

import io
import math
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from marship.contract import Array
from marship.errors import MalformedError, RequestError, TooLargeError, UnsupportedMediaError
from marship.serving.model import heap
from marship.serving.pictures import jpeg, png

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535
"""As JPEG and GIF have it. Pillow takes 8 bytes for each row, however short."""
MAX_RUN_LENGTH_PIXELS = 4_000_000
"""Of a run-length encoded BMP, which Pillow decodes in Python."""
LARGE_PIXELS = 4_000_000
"""From here on, what decoding took and freed is given back to the system at once."""
BAND_PIXELS = 1 << 20
"""What Pillow holds is converted in bands of this size, not as a whole once more."""
Box = tuple[int, int, int, int]
GIF_HEAD_BYTES = 1 << 20
FORMATS = "JPEG, PNG, WebP, GIF or BMP"
_OS2_HEADER = 12  # bytes; has sizes of 16 bits
_BMP_HEADERS = (_OS2_HEADER, 40, 52, 56, 64, 108, 124)
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
        width, height, turned = header.width, header.height, header.orientation
        _check_size(width, height)
        try:
            pixels = jpeg.decode(data, header, shortest)
        finally:
            _give_back(width, height)
    else:
        pixels, turned, (width, height) = _decode_with_pillow(data, kind, shortest)
    if turned in jpeg.SIDEWAYS:
        width, height = height, width
    return Picture(_turn(pixels, turned), width, height, kind)


def shortest_side(side: int, crop: float) -> int:
    """The `shortest` for a network that reads `side` pixels of this share of the shorter side."""
    return math.ceil(side / crop)


def _kind(data: bytes) -> str:
    if data.startswith(jpeg.SIGNATURE):
        return "jpeg"
    if data.startswith(png.SIGNATURE):
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
    if max(width, height) > MAX_SIDE:
        raise TooLargeError(
            f"the picture's sides must be at most {MAX_SIDE:,} pixels, got {width} x {height}. "
            "Send a smaller one."
        )


def _give_back(width: int, height: int) -> None:
    """Decoding is over, whether it went well or not; what it freed of a large picture goes back."""
    if width * height >= LARGE_PIXELS:
        heap.release_freed()


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

    try:
        image = _open(data, kind)
        _check_size(*image.size)
        codec, frame, _, form = image.tile[0] if image.tile else (None,) * 4
        if codec == "bmp_rle":
            _check_size(*image.size, MAX_RUN_LENGTH_PIXELS)
        low = _open(data, kind) if form == "RGB;16B" and "transparency" in image.info else None
        pixels = _load(image, low, frame, shortest)
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
    return pixels, jpeg.orientation(image.info.get("exif", b"")), image.size


def _load(
    image: "ImageFile", low: "ImageFile | None", frame: Box | None, shortest: int | None
) -> Array:
    """The pixels; whatever else was decoded is gone, whether this goes well or not."""
    try:
        image.load()
        if low is not None:
            _whiten_key(image, low)
        factor = max(1, min(image.size) // shortest) if shortest else 1
        return _to_pixels(image, factor, frame)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # Pillow's own hold it too
        raise
    finally:
        image.close()
        _give_back(*image.size)


def _open(data: bytes, kind: str) -> "ImageFile":
    """The one plugin that reads this format; `PIL.Image.open` would try and load others."""
    if kind == "png":
        data = png.strip(data)
    elif check := _CHECKS.get(kind):
        check(data)
    return _plugins()[kind](io.BytesIO(data))


@cache
def _plugins() -> dict[str, "type[ImageFile]"]:
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.GifImagePlugin import GifImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    class FirstFrame(WebPImageFile):
        """Without its two canvases, 8 bytes a pixel, once the frame is copied from them."""

        def _open(self) -> None:
            super()._open()
            if self.is_animated:  # around a frame smaller than the canvas it is transparent
                self._mode = self.rawmode = "RGBA"

        def load_prepare(self) -> None:
            del self._decoder
            super().load_prepare()

    return {"bmp": BmpImageFile, "gif": GifImageFile, "png": PngImageFile, "webp": FirstFrame}


def _to_pixels(image: "Image", factor: int, frame: Box | None) -> Array:
    """A loaded picture on white, `factor` x `factor` pixels averaged to one."""
    width, height = image.size
    pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for box in _bands(image.size, factor):
        band = _on_white(image.crop(box))
        if frame not in (None, (0, 0, width, height)):
            band = _on_screen(band, frame, box[1])
        reduced = band.reduce(factor) if factor > 1 else band
        start = box[1] // factor
        pixels[start : start + reduced.height] = np.asarray(reduced)
    return pixels


def _bands(size: tuple[int, int], factor: int = 1) -> Iterator[Box]:
    width, height = size
    rows = factor * max(1, BAND_PIXELS // (width * factor))
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _on_white(band: "Image") -> "Image":
    from PIL import Image

    if band.mode.startswith("I"):
        return Image.fromarray(_upper_half(band)).convert("RGB")
    if band.mode in ("RGBA", "LA", "PA") or "transparency" in band.info:
        white = Image.new("RGBA", band.size, "white")
        band = Image.alpha_composite(white, band.convert("RGBA"))
    return band.convert("RGB")


def _on_screen(band: "Image", frame: Box, top: int) -> "Image":
    """White around a GIF's frame; the band begins at row `top` of the screen."""
    from PIL import Image

    left, upper, right, lower = frame
    mask = Image.new("L", band.size)
    mask.paste(255, (left, upper - top, right, lower - top))
    return Image.composite(band, Image.new("RGB", band.size, "white"), mask)


def _whiten_key(image: "Image", other: "ImageFile") -> None:
    """White where all 16 bits of a colour are those of the transparent one.

    Pillow keeps the upper half of each value; the same file once more gives the lower.
    """
    from PIL import Image

    key = image.info.pop("transparency")
    with closing(other) as lower:
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        lower.load()
        for box in _bands(image.size):
            upper = np.asarray(image.crop(box)).astype(np.uint16)
            is_key = (upper << 8 | np.asarray(lower.crop(box)) == key).all(axis=2)
            image.paste("white", box, Image.fromarray(is_key))


def _upper_half(band: "Image") -> Array:
    """16 bits of grey as 8; where one grey is the transparent one, it is white."""
    grey = np.asarray(band)
    if (key := band.info.get("transparency")) is not None:
        grey = np.where(grey == key, _WHITE_16, grey)
    return (grey >> 8).astype(np.uint8)


def _check_bmp(data: bytes) -> None:
    """Refuse a width below 1, which Pillow takes for one of billions."""
    width = int.from_bytes(data[18:22], "little", signed=True)
    if data[14] != _OS2_HEADER and width < 1:
        raise MalformedError(f"a BMP's width must be at least 1, got {width}.")


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
    "bmp": _check_bmp,
    "gif": _check_gif,
    "webp": _check_webp,
}
