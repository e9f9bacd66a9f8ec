"""JPEG: where a picture ends, and how much work it may be."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from marship.errors import MalformedError
from marship.serving import pictures
from marship.serving.pictures import jpeg
from photos import encode, photo

SCAN = b"\xff\xda"
COMMENT = b"\xff\xfe\0\2"


def scans(data: bytes) -> tuple[bytes, list[bytes]]:
    """A progressive picture without its end: what stands before the first scan, and the scans."""
    head, *parts = data[:-2].split(SCAN)
    return head, [SCAN + part for part in parts]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_film_behind_a_picture_is_no_part_of_it(seed: int, options: dict[str, object]) -> None:
    """Phones write some megabytes there; by chance more than a hundred markers are among them."""
    data = encode(photo(640, 480), "JPEG", **options)
    film = np.random.default_rng(seed).bytes(12 << 20)
    assert film.count(SCAN) > jpeg.MOST_SCANS
    wanted = pictures.decode(data).pixels
    assert np.array_equal(pictures.decode(data + film).pixels, wanted)


def test_another_picture_behind_or_within_is_no_part_of_it() -> None:
    """A second one, of too many scans, as a trailer; and a thumbnail in EXIF, with its own end."""
    head, parts = scans(encode(photo(320, 240), "JPEG", progressive=True))
    other = head + b"".join(parts) + parts[-1] * 200 + b"\xff\xd9"
    thumbnail = encode(photo(96, 64), "JPEG", progressive=True)
    plain = encode(photo(640, 480), "JPEG")
    inner = b"\xff\xe1" + struct.pack(">H", 8 + len(thumbnail)) + jpeg.EXIF + thumbnail
    wanted = pictures.decode(plain).pixels
    for data in (plain + other, plain[:2] + inner + plain[2:]):
        assert np.array_equal(pictures.decode(data).pixels, wanted)


def test_a_picture_whose_end_is_that_of_another_is_400() -> None:
    """Cut off, with a whole one behind it: the end that is found there is not its own."""
    data = encode(photo(), "JPEG")
    for cut in (2, 3, 50):
        with pytest.raises(MalformedError):
            pictures.decode(data[:-cut] + data)


def test_markers_that_are_none_end_no_scan() -> None:
    """Thumbnails and ends within a segment between two scans, and fill bytes before a marker."""
    head, parts = scans(encode(photo(), "JPEG", progressive=True))
    noise = SCAN * 200 + b"\xff\xd9" * 9
    segment = COMMENT[:2] + struct.pack(">H", 2 + len(noise)) + noise
    data = head + parts[0] + segment + b"".join(b"\xff\xff" + part for part in parts[1:])
    with Image.open(io.BytesIO(data + b"\xff\xd9")) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(pictures.decode(data + b"\xff\xd9").pixels, wanted)


def test_many_scans_of_many_pixels_are_refused_at_once() -> None:
    """A hundred over 49 megapixels are 0.2 MB, and would take two seconds."""
    head, parts = scans(encode(Image.new("L", (7000, 7000), 128), "JPEG", progressive=True))
    filled = b"\xff" + parts[-1]  # a marker may have more than one 0xFF
    data = head + b"".join(parts) + filled * (100 - len(parts)) + b"\xff\xd9"
    started = time.process_time()
    with pytest.raises(MalformedError, match="got 100 scans where 20 are allowed"):
        pictures.decode(data, 224)
    assert time.process_time() - started < 0.1


def test_the_largest_progressive_picture_is_read() -> None:
    """Fifty megapixels in the ten scans that libjpeg writes."""
    data = encode(Image.new("RGB", (10_000, 5_000), "red"), "JPEG", progressive=True)
    assert len(scans(data)[1]) == 10
    assert pictures.decode(data, 224).pixels.shape == (625, 1250, 3)


def test_segments_without_end_are_refused() -> None:
    """Behind the first scan as before it."""
    data = encode(photo(), "JPEG")
    for place in (2, len(data) - 2):
        with pytest.raises(MalformedError, match="within 2000 segments"):
            pictures.decode(data[:place] + COMMENT * 3000 + data[place:])
