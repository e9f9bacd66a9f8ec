"""PNG: which of its chunks count, and that all of its rows are there."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import photos
from marship.errors import MalformedError
from marship.serving import pictures
from photos import PNG_END, encode, photo, png, png_chunk, png_pixels, png_rows
from stopwatch import at_most

ONE_MB = 1 << 20
KINDS = [(bits, 0) for bits in (1, 2, 4, 8, 16)] + [
    (bits, kind) for bits in (8, 16) for kind in (2, 4, 6)
]
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def values(width: int, height: int, bits: int, kind: int) -> np.ndarray:
    """Random ones, of as many channels as the kind of PNG has."""
    random = np.random.default_rng(bits * 10 + kind)
    return random.integers(0, 1 << bits, (height, width, CHANNELS[kind]))


@pytest.mark.parametrize(("bits", "kind"), KINDS)
@pytest.mark.parametrize("size", [(33, 20), (3, 2), (1, 1), (1, 9), (9, 1)])
def test_interlaced_rows_show_the_same_picture(size: tuple[int, int], bits: int, kind: int) -> None:
    """Adam7 of every depth, passes without pixels among them; with a row missing it is 400."""
    found = values(*size, bits, kind)
    plain = png(*size, png_rows(found, bits), bits, kind)
    wanted = pictures.decode(plain).pixels
    assert np.array_equal(pictures.decode(photos.interlaced(found, bits, kind)).pixels, wanted)
    header = photos.png_header(*size, bits, kind, is_interlaced=True)
    rows = png_rows(found, bits, is_interlaced=True)
    with pytest.raises(MalformedError, match="truncated"):
        pictures.decode(header + png_pixels(rows[:-1]) + PNG_END)


@pytest.mark.parametrize("height", [99, 50, 1, 0])
@pytest.mark.parametrize("shortest", [None, 10])
def test_a_png_with_rows_missing_is_400(height: int, shortest: int | None) -> None:
    """Its checksums are right, its pixels' stream has a proper end, and no row comes out black."""
    row = b"\0" + b"\xff\0\0" * 100
    with pytest.raises(MalformedError, match="truncated"):
        pictures.decode(png(100, 100, row * height), shortest)
    assert (pictures.decode(png(100, 100, row * 100), shortest).pixels == [255, 0, 0]).all()


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE, zlib.Z_FIXED])
@pytest.mark.parametrize("is_black", [False, True])
def test_rows_are_found_however_they_are_packed(level: int, strategy: int, is_black: bool) -> None:
    """Whole it is read, a byte short it is not; whatever part of its end has its own chunk."""
    found = values(30, 200, 8, 2) * (not is_black)
    rows = png_rows(found, 8)
    for size in (len(rows), len(rows) - 1):
        packer = zlib.compressobj(level, strategy=strategy)
        packed = packer.compress(rows[:size]) + packer.flush()
        for place in (len(packed) - cut for cut in (0, 1, 3, 4, 7)):
            chunks = (png_chunk(b"IDAT", part) for part in (packed[:place], packed[place:]))
            data = photos.png_header(30, 200) + b"".join(chunks) + PNG_END
            if size == len(rows):
                assert np.array_equal(pictures.decode(data).pixels, found)
                continue
            with pytest.raises(MalformedError, match="truncated"):
                pictures.decode(data)


def test_what_is_behind_the_last_row_is_ignored() -> None:
    """More rows, as browsers do; and bytes behind the stream's end."""
    row = b"\0" + b"\xff\0\0" * 8
    more = png_chunk(b"IDAT", zlib.compress(row * 8) + b"more")
    for data in (png(8, 8, row * 99), photos.png_header(8, 8) + more + PNG_END):
        assert (pictures.decode(data).pixels == [255, 0, 0]).all()


def text(packed: bytes) -> bytes:
    """A chunk of compressed text, as editors keep theirs."""
    return png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed)


HARMLESS = {
    "2 MB of text": text(zlib.compress(b"hello " * 350_000)),
    "a profile of 2 MB": png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2 * ONE_MB))),
    "a bomb of text": text(zlib.compress(bytes(100 * ONE_MB), 9)),
    "many profiles": png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(ONE_MB), 9)) * 6000,
    "a text that is none": png_chunk(b"zTXt", b"broken"),
    "many empty chunks": png_chunk(b"teSt", b"") * 100_000,
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_not_pixels_is_neither_read_nor_a_reason_to_refuse(what: str) -> None:
    """Before the pixels or behind them; it takes no time, whatever it would inflate to."""
    header, pixels = photos.png_header(8, 8), png_pixels((b"\0" + b"\xff\0\0" * 8) * 8)
    with at_most(1.0):
        for chunks in (HARMLESS[what] + pixels, pixels + HARMLESS[what]):
            assert (pictures.decode(header + chunks + PNG_END).pixels == [255, 0, 0]).all()


def test_exif_behind_the_pixels_turns_them() -> None:
    """It may stand on either side of them."""
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    data = encode(photo(), "PNG")
    turned = data[:-12] + png_chunk(b"eXIf", exif) + data[-12:]
    assert (pictures.decode(turned).width, pictures.decode(turned).height) == (64, 96)


@pytest.mark.parametrize("has_own", [False, True])
def test_an_animated_png_is_its_default_image(has_own: bool) -> None:
    """Red: its first frame, or the picture for who knows no animation."""
    red, *others = (Image.new("RGB", (20, 10), name) for name in ("red", "lime", "blue"))
    data = encode(red, "PNG", save_all=True, append_images=others, default_image=has_own)
    assert data.count(b"fcTL") == (2 if has_own else 3)
    assert (pictures.decode(data).pixels == [255, 0, 0]).all()


KEYS = {
    "1 bit": (1, 0, [1], 0),
    "2 bits": (2, 0, [1], 2),
    "4 bits": (4, 0, [7], 6),
    "8 bits": (8, 0, [7], 6),
    "16 bits": (16, 0, [0x1234], 0x1235),
    "colour": (8, 2, [1, 2, 3], 2),
    "16 bits of colour": (16, 2, [0x1234, 0x2345, 0x3456], 0x1235),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_transparent_colour_is_white_and_its_neighbour_is_not(name: str) -> None:
    """Of every depth, and whatever stands in bits that do not count; all 16 bits are compared."""
    bits, kind, key, other = KEYS[name]
    found = np.tile(key, (4, 6, 1))
    found[:, 3:, 0] = other
    unused = 0xFF00 if bits < 16 else 0
    chunk = png_chunk(b"tRNS", b"".join(struct.pack(">H", value | unused) for value in key))
    header, rows = photos.png_header(6, 4, bits, kind), png_pixels(png_rows(found, bits)) + PNG_END
    pixels = pictures.decode(header + chunk + rows).pixels
    plain = pictures.decode(header + rows).pixels
    assert (pixels[:, :3] == 255).all()
    assert np.array_equal(pixels[:, 3:], plain[:, 3:])
    assert (plain[:, 3:] < 255).any()


PIXELS = png_pixels((b"\0" + bytes(24)) * 8)
HEADER = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([PNG_END], "hold pixels"),
        ([PIXELS, HEADER, PNG_END], "begin with 13 bytes of IHDR"),
        (
            [png_chunk(b"IHDR", bytes(9)), png_chunk(b"tRNS", b""), PIXELS, PNG_END],
            "13 bytes of IHDR, got 9 of IHDR",
        ),
        ([HEADER, PNG_END], "hold pixels"),
        ([HEADER, png_chunk(b"IDAT", b""), PNG_END], "hold pixels"),
        ([HEADER, PIXELS, png_chunk(b"teXt", b""), PIXELS, PNG_END], "lie together"),
        ([HEADER, png_chunk(b"tRNS", b"\0"), PIXELS, PNG_END], "cannot be read"),
        ([HEADER, PIXELS], "only the beginning"),
    ],
)
def test_chunks_that_are_missing_or_out_of_order_are_400(chunks: list[bytes], words: str) -> None:
    """With right checksums, each."""
    with pytest.raises(MalformedError, match=words):
        pictures.decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_a_second_header_does_not_count() -> None:
    """The first tells the size, as other decoders have it."""
    second = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + HEADER + second + PIXELS + PNG_END
    assert pictures.decode(data).width == 8
    assert photos.png(8, 8, (b"\0" + bytes(24)) * 8) == data.replace(second, b"")
