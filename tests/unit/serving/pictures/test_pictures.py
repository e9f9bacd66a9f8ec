"""Bytes of pictures become pixels, or one of three errors."""

import io
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

import photos
from marship.errors import MalformedError, TooLargeError, UnsupportedMediaError
from marship.serving import pictures
from marship.serving.pictures import jpeg
from photos import encode, photo, shown

EXACT = {
    "jpeg": (encode(photo(), "JPEG"), "jpeg"),
    "jpeg, progressive": (encode(photo(), "JPEG", progressive=True), "jpeg"),
    "jpeg, 4:4:4": (encode(photo(), "JPEG", subsampling=0, quality=95), "jpeg"),
    "jpeg, grey": (encode(photo().convert("L"), "JPEG"), "jpeg"),
    "jpeg, odd size": (encode(photo(97, 63), "JPEG"), "jpeg"),
    "jpeg, one pixel": (encode(photo(1, 1), "JPEG"), "jpeg"),
    "png": (encode(photo(), "PNG"), "png"),
    "png, palette": (encode(photo().quantize(99), "PNG"), "png"),
    "png, two colours": (encode(photo().convert("1"), "PNG"), "png"),
    "png, two bits": (encode(photo().quantize(4), "PNG", bits=2), "png"),
    "png, interlaced": (photos.interlaced(np.asarray(photo()), 8, 2), "png"),
    "webp": (encode(photo(), "WEBP", quality=80), "webp"),
    "webp, lossless": (encode(photo(), "WEBP", lossless=True), "webp"),
    "gif": (encode(photo(), "GIF"), "gif"),
    "gif, grey": (encode(photo().convert("L"), "GIF"), "gif"),
    "bmp": (encode(photo(), "BMP"), "bmp"),
    "bmp, palette": (encode(photo().quantize(99), "BMP"), "bmp"),
    "bmp, two colours": (encode(photo().convert("1"), "BMP"), "bmp"),
}


def largest_difference(found: np.ndarray, wanted: np.ndarray) -> int:
    """Of two pictures of one size."""
    assert found.shape == wanted.shape
    return int(abs(found.astype(np.int32) - wanted).max())


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_those_that_pillow_shows(name: str) -> None:
    """uint8 RGB, the same to the bit, with the size and the format."""
    data, kind = EXACT[name]
    picture = pictures.decode(data)
    assert picture.pixels.dtype == np.uint8
    assert largest_difference(picture.pixels, shown(data)) == 0
    assert (picture.height, picture.width, picture.format) == (*picture.pixels.shape[:2], kind)


def test_cmyk_is_shown_as_pillow_shows_it() -> None:
    """Adobe's inverted CMYK, within 1 of 255: the two round differently."""
    data = encode(photo().convert("CMYK"), "JPEG", quality=95)
    assert largest_difference(pictures.decode(data).pixels, shown(data)) <= 1


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", [">", "<"])
def test_exif_turns_the_picture(kind: str, turned: int, order: str) -> None:
    """All eight orientations, of both byte orders, as Pillow applies them."""
    exif = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(
        f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, turned, 0, 0
    )
    data = encode(photo(), kind, exif=jpeg.EXIF + exif)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    picture = pictures.decode(data)
    assert np.array_equal(picture.pixels, wanted)
    assert (picture.height, picture.width) == wanted.shape[:2]


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"x"]
)
def test_damaged_exif_turns_nothing(exif: bytes) -> None:
    """It is no reason to refuse a picture."""
    assert jpeg.orientation(exif) == 1


TRANSPARENT = {
    "RGBA": encode(Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "PNG"),
    "LA": encode(Image.new("LA", (8, 8), (9, 0)), "PNG"),
    "palette": encode(Image.new("L", (8, 8), 7).convert("P"), "PNG", transparency=7),
    "colour key": encode(Image.new("RGB", (8, 8), "red"), "PNG", transparency=(255, 0, 0)),
    "grey key": encode(Image.new("L", (8, 8), 7), "PNG", transparency=7),
    "GIF": encode(Image.new("P", (8, 8), 3), "GIF", transparency=3),
    "WebP": encode(Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "WEBP", lossless=True),
    "16 bits": encode(
        Image.fromarray(np.full((8, 8), 0x1234, np.uint16)), "PNG", transparency=0x1234
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name: str) -> None:
    """Whatever colour lies beneath, and however the format says it."""
    assert (pictures.decode(TRANSPARENT[name]).pixels == 255).all()


@pytest.mark.parametrize("shortest", [None, 21])
@pytest.mark.parametrize("band_pixels", [1 << 20, 1000])
@pytest.mark.parametrize("has_key", [False, True])
def test_around_a_gif_frame_it_is_white(
    monkeypatch: pytest.MonkeyPatch, shortest: int | None, band_pixels: int, has_key: bool
) -> None:
    """A first frame smaller than its screen; not the palette's first colour, at no scale."""
    monkeypatch.setattr(pictures, "BAND_PIXELS", band_pixels)
    options = {"transparency": 3} if has_key else {}
    data = bytearray(encode(photo(40, 30).quantize(16), "GIF", **options))
    wanted = Image.new("RGB", (97, 65), "white")
    wanted.paste(Image.fromarray(pictures.decode(bytes(data)).pixels), (20, 17))
    place = data.index(struct.pack("<cHHHH", b",", 0, 0, 40, 30))
    data[6:10] = struct.pack("<HH", 97, 65)
    data[place + 1 : place + 5] = struct.pack("<HH", 20, 17)
    if shortest:
        wanted = wanted.reduce(3)
    assert np.array_equal(pictures.decode(bytes(data), shortest).pixels, np.asarray(wanted))


def test_around_a_webp_frame_it_is_white() -> None:
    """Of an animation whose header tells of no transparency."""
    red, lime = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "lime")
    data = bytearray(encode(red, "WEBP", save_all=True, append_images=[lime], lossless=True))
    data[20] &= ~0x10  # alpha
    data[24:30] = struct.pack("<HBHB", 39, 0, 29, 0)
    pixels = pictures.decode(bytes(data)).pixels
    assert (pixels[:10, :20] == [255, 0, 0]).all()
    assert (pixels[10:] == 255).all()
    assert (pixels[:, 20:] == 255).all()


def test_half_transparent_is_half_white() -> None:
    """Alpha mixes with white."""
    data = encode(Image.new("RGBA", (8, 8), (200, 0, 0, 128)), "PNG")
    assert abs(pictures.decode(data).pixels[0, 0].astype(int) - [227, 127, 127]).max() <= 1


@pytest.mark.parametrize("kind", [0, 2])
def test_16_bits_become_8_by_their_upper_half(kind: int) -> None:
    """Grey and colour: 0x12FF is 0x12, not white."""
    row = b"\0" + b"\x12\xff" * (4 if kind == 0 else 12)
    assert (pictures.decode(photos.png(4, 3, row * 3, 16, kind)).pixels == 0x12).all()


def test_an_animation_is_its_first_frame() -> None:
    """GIF and WebP: red, not what follows; the other frames are not decoded."""
    red, lime = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "lime")
    webp = encode(red, "WEBP", save_all=True, append_images=[lime], lossless=True)
    for data in (photos.animation(), webp):
        assert (pictures.decode(data).pixels == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("kind", "size", "shortest", "shape"),
    [
        ("JPEG", (640, 480), 240, (240, 320)),  # 1/2
        ("JPEG", (640, 480), 241, (480, 640)),
        ("JPEG", (641, 483), 100, (121, 161)),  # 1/4, rounded up
        ("JPEG", (640, 480), 10, (60, 80)),  # 1/8 is the least
        ("PNG", (640, 480), 100, (120, 160)),  # 1/4
        ("PNG", (641, 483), 161, (161, 214)),  # 1/3
        ("BMP", (640, 480), 481, (480, 640)),
        ("WEBP", (640, 480), 160, (160, 214)),
        ("GIF", (640, 480), 240, (240, 320)),
    ],
)
def test_a_large_picture_is_decoded_at_a_smaller_scale(
    kind: str, size: tuple[int, int], shortest: int, shape: tuple[int, int]
) -> None:
    """Never below what is needed; it looks the same, and its size is told as it is."""
    data = encode(photo(*size), kind)
    picture = pictures.decode(data, shortest)
    assert picture.pixels.shape == (*shape, 3)
    assert (picture.width, picture.height) == size
    with Image.open(io.BytesIO(data)) as image:
        wanted = image.convert("RGB").resize(shape[::-1], Image.Resampling.BOX)
    assert abs(picture.pixels.astype(int) - np.asarray(wanted)).mean() < 3


def test_bands_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture larger than a band is what it is in one; reduced by 3, too."""
    monkeypatch.setattr(pictures, "BAND_PIXELS", 1000)
    data = encode(photo(97, 65), "PNG")
    assert largest_difference(pictures.decode(data).pixels, shown(data)) == 0
    reduced = np.asarray(photo(97, 65).reduce(3))
    assert largest_difference(pictures.decode(data, 21).pixels, reduced) == 0


@pytest.mark.parametrize(
    "data", [photos.SVG, photos.HEIC, b"{}", b"x", b"BM, said he", b"RIFF1234WAVEfmt ", bytes(99)]
)
def test_what_is_no_picture_is_415(data: bytes) -> None:
    """The message shows how the bytes begin."""
    with pytest.raises(UnsupportedMediaError, match="JPEG, PNG, WebP, GIF or BMP, got bytes that"):
        pictures.decode(data)


def test_no_bytes_are_400() -> None:
    """An empty body is malformed, of no media type."""
    with pytest.raises(MalformedError, match="got no bytes"):
        pictures.decode(b"")


@pytest.mark.parametrize("name", EXACT)
def test_a_picture_cut_off_anywhere_is_refused(name: str) -> None:
    """At no place does half a picture come out; WebP and GIF may lack what follows the picture."""
    data, kind = EXACT[name]
    needed = len(data) - {"gif": 2}.get(kind, 0)
    for size in {*range(1, 60), *range(60, needed, 97), needed - 1}:
        with pytest.raises((MalformedError, UnsupportedMediaError)):
            pictures.decode(data[:size])


def test_a_jpeg_with_a_piece_missing_is_refused() -> None:
    """Its end is there, its middle is not: libjpeg alone would show grey."""
    data = encode(photo(), "JPEG")
    with pytest.raises(MalformedError, match="premature end of data"):
        pictures.decode(data[: len(data) // 2] + data[-200:])


def test_a_few_bytes_too_many_are_no_reason_to_refuse() -> None:
    """Cameras write some before a JPEG's end, and other files behind it; all pixels are there."""
    data = encode(photo(), "JPEG")
    wanted = pictures.decode(data).pixels
    for more in (data[:-2] + b"\x12\x34\x56" + data[-2:], data + data, data + bytes(99)):
        assert np.array_equal(pictures.decode(more).pixels, wanted)


def test_a_png_with_a_flipped_bit_is_refused() -> None:
    """Pillow skips the checksums of the pixels' own chunks; here they count."""
    data = bytearray(encode(photo(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(MalformedError, match="another checksum"):
        pictures.decode(bytes(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_bomb_is_413(kind: str) -> None:
    """50,000 x 50,000 pixels, claimed by a small file of each format that has such sizes."""
    with pytest.raises(TooLargeError, match="at most 50,000,000 pixels, got 50000 x 50000"):
        pictures.decode(photos.claim(kind, 50_000, 50_000), 256)


def test_a_webp_bomb_is_413() -> None:
    """WebP's largest size, which Pillow refuses itself, and one that it does not."""
    with pytest.raises(TooLargeError, match="at most 50,000,000 pixels, got more"):
        pictures.decode(photos.claim("WEBP", 16_383, 16_383), 256)
    with pytest.raises(TooLargeError, match="got 8000 x 8000"):
        pictures.decode(photos.claim("WEBP", 8_000, 8_000), 256)


def test_a_gif_whose_frame_is_larger_than_its_screen_is_413() -> None:
    """Pillow would enlarge the screen, and reserve the frame."""
    data = bytearray(encode(photo(), "GIF"))
    place = 13 + (3 << ((data[10] & 7) + 1))
    while data[place] == 0x21:
        place += 2
        while data[place]:
            place += data[place] + 1
        place += 1
    data[place + 5 : place + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(TooLargeError, match="60000 x 60000"):
        pictures.decode(bytes(data))


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
def test_a_side_beyond_that_of_a_jpeg_is_413(size: tuple[int, int]) -> None:
    """Pillow would take 12 bytes for each pixel of the narrowest."""
    whole = encode(Image.new("L", size), "PNG")
    with pytest.raises(TooLargeError, match=f"at most 65,535 pixels, got {size[0]} x {size[1]}"):
        pictures.decode(whole, 224)
    less = encode(Image.new("L", (min(size[0], 65_535), min(size[1], 65_535))), "PNG")
    assert pictures.decode(less, 224).pixels.size == 3 * 65_535


@pytest.mark.parametrize("width", [-4, 0])
def test_a_bmp_without_a_width_is_400(width: int) -> None:
    """It is no picture of four billion pixels."""
    data = bytearray(encode(photo(4, 4), "BMP"))
    data[18:22] = struct.pack("<i", width)
    with pytest.raises(MalformedError, match=f"width must be at least 1, got {width}"):
        pictures.decode(bytes(data))


def test_a_bmp_may_go_from_top_to_bottom() -> None:
    """Its height is negative then."""
    data = bytearray(encode(photo(4, 3), "BMP"))
    data[22:26] = struct.pack("<i", -3)
    assert np.array_equal(pictures.decode(bytes(data)).pixels[::-1], np.asarray(photo(4, 3)))


def test_a_run_length_bmp_has_a_smaller_limit() -> None:
    """Pillow decodes it in Python: seconds for what takes 0.1 s otherwise."""
    data = bytearray(encode(Image.new("L", (2100, 2000)), "BMP"))
    data[30:34] = struct.pack("<I", 1)
    with pytest.raises(TooLargeError, match="at most 4,000,000"):
        pictures.decode(bytes(data))


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    """Each would go over all blocks of the picture again."""
    data = encode(photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(MalformedError, match="scans where 100 are allowed"):
        pictures.decode(data[:last] + data[last:-2] * 1000 + data[-2:])


def test_a_jpeg_too_short_for_its_blocks_is_refused_before_it_is_decoded() -> None:
    """A block takes a bit at least: 2 KB are no 49 megapixels."""
    with pytest.raises(MalformedError, match="only the beginning"):
        pictures.decode(photos.claim("JPEG", 7_000, 7_000))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [(1, 0xC3, "kind 0xC3"), (1, 0xC9, "kind 0xC9"), (4, 12, "8 bits for a value, got 12")],
)
def test_rare_kinds_of_jpeg_are_415(place: int, value: int, words: str) -> None:
    """Lossless, arithmetic and 12 bits are told by name."""
    data = bytearray(encode(photo(), "JPEG"))
    data[data.index(b"\xff\xc0") + place] = value
    with pytest.raises(UnsupportedMediaError, match=words):
        pictures.decode(bytes(data))


def test_only_the_plugins_named_are_loaded() -> None:
    """Decoding every format, good and bad, imports four of Pillow's plugins and no other."""
    code = """
import pickle, sys
from marship.serving import pictures
for data in pickle.load(sys.stdin.buffer):
    try:
        pictures.decode(data)
    except pictures.RequestError:
        pass
print(*sorted(n.removeprefix('PIL.') for n in sys.modules if n.endswith('ImagePlugin')))
"""
    files = [data for data, _ in EXACT.values()] + [photos.SVG, photos.HEIC, b"II*\0" + bytes(99)]
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(files), capture_output=True, check=True
    )
    named = ("Bmp", "Gif", "Png", "WebP")
    assert done.stdout.decode().split() == [f"{name}ImagePlugin" for name in named]
