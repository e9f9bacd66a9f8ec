"""Pictures to test with, made here: a photograph as far as a decoder can tell."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(64)


@cache
def photo(width: int = 96, height: int = 64) -> Image.Image:
    """Colours that change slowly, with noise upon them."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    light = [0.5 + 0.4 * np.sin(6 * across + 4 * down * i + i) for i in range(3)]
    noise = np.random.default_rng(0).normal(0, 0.02, (height, width, 3))
    return Image.fromarray(((np.stack(light, 2) + noise).clip(0, 1) * 255).astype(np.uint8))


def colour(name: str, width: int = 20, height: int = 10, kind: str = "PNG") -> bytes:
    """A file of one colour."""
    return encode(Image.new("RGB", (width, height), name), kind)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file's bytes, as Pillow writes them."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def shown(data: bytes) -> np.ndarray:
    """What Pillow makes of a file; int32, so that differences do not wrap."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int32)


def animation() -> bytes:
    """A GIF of three frames: red, green, blue."""
    red, *others = (Image.new("RGB", (20, 10), name) for name in ("red", "lime", "blue"))
    return encode(red, "GIF", save_all=True, append_images=others, duration=50, loop=0)


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


PNG_END = png_chunk(b"IEND", b"")


def png_header(
    width: int, height: int, bits: int = 8, kind: int = 2, *, is_interlaced: bool = False
) -> bytes:
    """How a PNG begins."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, is_interlaced)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def png_pixels(rows: bytes) -> bytes:
    """The pixels' chunk, of rows each with its filter byte."""
    return png_chunk(b"IDAT", zlib.compress(rows))


def png(width: int, height: int, rows: bytes, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG of these rows, each with its filter byte; or one that claims another size."""
    return png_header(width, height, bits, kind) + png_pixels(rows) + PNG_END


def damaged_png(width: int, height: int) -> bytes:
    """A black one with right checksums, whose compressed pixels end in noise."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    noise = bytes(range(1, 200))
    pixels = png_chunk(b"IDAT", packed[: -len(noise)] + noise)
    return png_header(width, height) + pixels + PNG_END


ADAM7 = (
    (0, 0, 8, 8),  # where a pass begins, down and across, and its steps
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def png_rows(values: np.ndarray, bits: int, *, is_interlaced: bool = False) -> bytes:
    """Unfiltered rows of values of so many bits, in passes if asked (PNG, third edition, 8.1)."""
    rows = []
    for top, left, down, across in ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        for row in values[top::down, left::across]:
            if row.size:
                every_bit = row.reshape(-1, 1) >> np.arange(bits)[::-1] & 1
                rows.append(b"\0" + np.packbits(every_bit).tobytes())
    return b"".join(rows)


def interlaced(values: np.ndarray, bits: int, kind: int) -> bytes:
    """An interlaced PNG of these values, shape (height, width, channels)."""
    header = png_header(values.shape[1], values.shape[0], bits, kind, is_interlaced=True)
    return header + png_pixels(png_rows(values, bits, is_interlaced=True)) + PNG_END


def claim(kind: str, width: int, height: int) -> bytes:
    """A small file of this kind that claims this size; the picture itself is another."""
    size = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    if kind == "PNG":
        return png(width, height, bytes(1000))
    data = bytearray(encode(photo(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data[6:10] = size
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:  # VP8L: 14 bits each, less one
        data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)
