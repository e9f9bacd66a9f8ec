"""Decodes images: JPEG, PNG, WebP, GIF and BMP, to uint8 RGB.

The format is detected from the bytes only. Of an animation the first frame is used. Transparency is
composited on white, 16 bits are reduced to the upper 8, and EXIF's orientation is applied. Colour
profiles are ignored: values are treated as sRGB, as in the usual preprocessing of public data sets.

JPEG is decoded by libjpeg-turbo through simplejpeg, the others by Pillow's plugin for the format
found, and by no other of its plugins.

Limits against decompression bombs: `MAX_PIXELS` and `MAX_SIDE`, checked in the header before
decoding. Besides the file, a PNG's copy of it and the result, decoding takes up to 9 bytes per
pixel, and 12 for a WebP: 450 and 600 MB at the limit. A baseline JPEG takes 2 MB.
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
from marship.serving.formats import forms
from marship.serving.model import heap
from marship.serving.pictures import jpeg, png

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535
"""The limit of JPEG and GIF. Pillow takes 8 bytes for each row, however short."""
MAX_RUN_LENGTH_PIXELS = 4_000_000
"""Of a run-length encoded BMP, which Pillow decodes in Python."""
LARGE_PIXELS = 4_000_000
"""From this size on, freed memory is returned to the system after decoding."""
BAND_PIXELS = 1 << 20
"""Pillow's image is converted in bands of this size, to avoid a second copy."""
Box = tuple[int, int, int, int]
GIF_HEAD_BYTES = 1 << 20
FORMATS = "JPEG, PNG, WebP, GIF or BMP"
_OS2_HEADER = 12  # bytes; has sizes of 16 bits
_BMP_HEADERS = (_OS2_HEADER, 40, 52, 56, 64, 108, 124)
_WHITE_16 = 0xFFFF
_EXTENSION, _FRAME = 0x21, 0x2C  # the first byte of a block of a GIF


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8, shape (height, width, 3), RGB; smaller than the image if it was decoded at
            a smaller scale.
        width: The image's width after orientation.
        height: The image's height after orientation.
        format: jpeg, png, webp, gif or bmp.
    """

    pixels: Array
    width: int
    height: int
    format: str

    @property
    def facts(self) -> dict[str, object]:
        """The metadata for a response, without the pixels."""
        return {"width": self.width, "height": self.height, "format": self.format}


def decode(data: bytes, shortest: int | None = None) -> Picture:
    """Decode an image, with its orientation applied.

    Args:
        data: The file.
        shortest: Required pixels of the shorter side; a much larger image is decoded at a smaller
            scale, which is faster. None keeps every pixel.

    Raises:
        MalformedError: There are no bytes, or the image is corrupted or truncated.
        TooLargeError: It has more than `MAX_PIXELS`.
        UnsupportedMediaError: The bytes are not an image of a supported format.
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
    """The `shortest` for a network with `side` pixels from a centre crop of this share."""
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
    forms.check_compression(data)
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
    """Return freed memory after decoding a large image, successfully or not."""
    if width * height >= LARGE_PIXELS:
        heap.release_freed()


def _turn(pixels: Array, turned: int) -> Array:
    """Apply an EXIF orientation of 1 to 8 (EXIF 2.32, 4.6.4 A)."""
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
    """Pixels, orientation, and the stored size."""
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
    except DecompressionBombError as error:  # far above our limit, raised before the size is known
        raise TooLargeError(
            f"the picture must have at most {MAX_PIXELS:,} pixels, got more: {error}"
        ) from error
    except (
        Exception
    ) as error:  # Pillow's plugins raise errors of nearly all types for corrupted files
        raise MalformedError(
            f"a {kind.upper()} must be whole, got one that cannot be read: {error}"
        ) from error
    return pixels, jpeg.orientation(image.info.get("exif", b"")), image.size


def _load(
    image: "ImageFile", low: "ImageFile | None", frame: Box | None, shortest: int | None
) -> Array:
    """The pixels; all other decoding buffers are released, also on errors."""
    try:
        image.load()
        if low is not None:
            _whiten_key(image, low)
        factor = max(1, min(image.size) // shortest) if shortest else 1
        return _to_pixels(image, factor, frame)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # Pillow's frames refer to it, too
        raise
    finally:
        image.close()
        _give_back(*image.size)


def _open(data: bytes, kind: str) -> "ImageFile":
    """Open with the plugin of this format; `PIL.Image.open` would load and try others."""
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
        """Releases its two canvases, 8 bytes per pixel, once the frame is copied."""

        def _open(self) -> None:
            super()._open()
            if self.is_animated:  # outside of a frame smaller than the canvas it is transparent
                self._mode = self.rawmode = "RGBA"

        def load_prepare(self) -> None:
            del self._decoder
            super().load_prepare()

    return {"bmp": BmpImageFile, "gif": GifImageFile, "png": PngImageFile, "webp": FirstFrame}


def _to_pixels(image: "Image", factor: int, frame: Box | None) -> Array:
    """A loaded image on white, with `factor` x `factor` pixels averaged to one."""
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
    """White around a GIF's frame; the band starts at row `top` of the screen."""
    from PIL import Image

    left, upper, right, lower = frame
    mask = Image.new("L", band.size)
    mask.paste(255, (left, upper - top, right, lower - top))
    return Image.composite(band, Image.new("RGB", band.size, "white"), mask)


def _whiten_key(image: "Image", other: "ImageFile") -> None:
    """White for pixels that equal the transparent colour in all 16 bits.

    Pillow keeps the upper half of each value; decoding the file a second time gives the lower.
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
    """16-bit grey as 8 bits; the transparent grey becomes white."""
    grey = np.asarray(band)
    if (key := band.info.get("transparency")) is not None:
        grey = np.where(grey == key, _WHITE_16, grey)
    return (grey >> 8).astype(np.uint8)


def _check_bmp(data: bytes) -> None:
    """Reject a width below 1, which Pillow interprets as billions."""
    width = int.from_bytes(data[18:22], "little", signed=True)
    if data[14] != _OS2_HEADER and width < 1:
        raise MalformedError(f"a BMP's width must be at least 1, got {width}.")


def _check_gif(data: bytes) -> None:
    """Check the first frame's size, which Pillow would allocate (GIF89a, 18 to 26)."""
    try:
        screen = struct.unpack_from("<HH", data, 6)
        place = 13 + _colours(data[10])
        while data[place] == _EXTENSION and place < GIF_HEAD_BYTES:
            place += 2  # and its label; then blocks until an empty one
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
    """The size in bytes of the colour table with these flags."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _check_webp(data: bytes) -> None:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise MalformedError("a WebP must be whole, got only the beginning of one.")


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "bmp": _check_bmp,
    "gif": _check_gif,
    "webp": _check_webp,
}
