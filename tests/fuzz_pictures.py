"""Damage pictures of every format and decode them: only errors of a request may come out.

    python tests/fuzz_pictures.py --count 20000 --seed 1

Each file is decoded within a limit of time and of memory. The first that breaks a rule ends the
run, and is there to look at.
"""

import struct
import zlib
from random import Random

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import photos
from damage import Decoder, main
from marship.errors import RequestError
from marship.serving import pictures
from photos import encode

LIMIT_S = 5.0  # of processor time; the largest picture allowed takes about one
SHORTEST = 16
MENDED_SHARE = 0.7
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def seeds() -> list[bytes]:
    """Small real files, of every format and most of their kinds."""
    image = photos.photo(40, 24)
    red = Image.new("RGB", (40, 24), "red")
    grey = np.asarray(image.convert("L"))
    transparent = image.convert("RGBA")
    transparent.putalpha(image.convert("L"))
    files = [photos.animation(), photos.png(4, 3, (b"\0" + bytes(8)) * 3, 16, 0)]
    kinds = ({}, {"progressive": True}, {"subsampling": 0}, {"exif": EXIF})
    files += [encode(image, "JPEG", **options) for options in kinds]
    files += [encode(image.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    files += [encode(image.convert(mode), "PNG") for mode in ("RGB", "L", "P", "1", "LA")]
    files += [encode(transparent, kind) for kind in ("PNG", "WEBP", "GIF")]
    files += [encode(image.quantize(3), kind) for kind in ("PNG", "GIF", "BMP")]
    files += [encode(image, "WEBP", lossless=lossless, exif=EXIF) for lossless in (True, False)]
    files.append(encode(image, "WEBP", save_all=True, append_images=[red]))
    files += [encode(image.convert(mode), "BMP") for mode in ("RGB", "L", "1", "RGBA")]
    files += [photos.interlaced(grey, bits, 0) for bits in (1, 2, 4, 8, 16)]
    files += [photos.interlaced(np.asarray(image), bits, 2) for bits in (8, 16)]
    files += [profiled(image), keyed(np.asarray(image))]
    large = photos.photo(200, 150)
    files += [encode(large, "JPEG", progressive=progressive) for progressive in (True, False)]
    files += [encode(large, kind) for kind in ("PNG", "WEBP", "GIF", "BMP")]
    run_length = bytearray(encode(image.convert("L"), "BMP"))
    run_length[30:34] = struct.pack("<I", 1)
    return [*files, bytes(run_length)]


def profiled(image: Image.Image) -> bytes:
    """A PNG with colour profile, texts and EXIF."""
    texts = PngInfo()
    texts.add_text("title", "a photograph " * 20, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>" * 20, zip=True)
    return encode(image, "PNG", pnginfo=texts, icc_profile=bytes(range(256)) * 4, exif=EXIF)


def keyed(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, one of whose colours is transparent."""
    header = photos.png_header(values.shape[1], values.shape[0], 16, 2)
    key = photos.png_chunk(b"tRNS", values[0, 0].astype(">u2").tobytes())
    return header + key + photos.png_pixels(photos.png_rows(values, 16)) + photos.PNG_END


def mend(damaged: bytes, random: Random) -> bytes:
    """Give a PNG's chunks their right checksums, so that damage reaches what lies behind them."""
    if not damaged.startswith(b"\x89PNG") or random.random() >= MENDED_SHARE:
        return damaged
    data, place = bytearray(damaged), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        stop = place + 12 + length
        if stop > len(data):
            break
        data[stop - 4 : stop] = struct.pack(">I", zlib.crc32(data[place + 4 : stop - 4]))
        place = stop
    return bytes(data)


def outcome(data: bytes, random: Random) -> str:
    """The error's code or the format; anything else that is raised goes on."""
    shortest = random.choice((None, SHORTEST))
    try:
        picture = pictures.decode(data, shortest)
    except RequestError as error:
        return error.code
    sides = (picture.height, picture.width)
    if shortest is None and picture.pixels.shape != (*sides, 3):
        raise AssertionError(f"pixels must be {sides}, got {picture.pixels.shape}")
    return picture.format


if __name__ == "__main__":
    main(Decoder("picture", seeds(), mend, outcome, LIMIT_S), __doc__)
