"""What decoding a picture takes at most, and what is left of it."""

import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

import photos
from marship.errors import MalformedError
from marship.serving import pictures
from photos import encode

pytestmark = pytest.mark.slow

MEMORY = """
import sys
from pathlib import Path
import psutil
from marship.serving import pictures
import photos
from posting import peak_bytes
pictures.decode(photos.encode(photos.photo(), {kind!r}), 256)
data = Path(sys.argv[1]).read_bytes()
before = peak_bytes(psutil.Process())
try:
    pictures.decode(data, 256)
except pictures.RequestError as error:
    print(error.code, end=" ")
print((peak_bytes(psutil.Process()) - before) >> 20)
"""


def peak_mb(kind: str, data: bytes, folder: Path) -> list[str]:
    """What decoding a file takes at most beside it and what a worker has, with its error."""
    (folder / "picture").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(kind=kind), folder / "picture"],
        env={"PYTHONPATH": str(Path(photos.__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_bomb_costs_no_memory(kind: str, tmp_path: Path) -> None:
    """Less than a megabyte, and the claim is refused."""
    code, megabytes = peak_mb(kind, photos.claim(kind, 50_000, 50_000), tmp_path)
    assert (code, int(megabytes) <= 1) == ("too_large", True)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_a_bomb_beside_the_pixels_costs_no_memory(name: bytes, tmp_path: Path) -> None:
    """100 MB of text or colours in 100 KB: the picture is read, and they are not."""
    bomb = photos.png_chunk(name, b"x\0\0" + zlib.compress(bytes(100 << 20), 9))
    pixels = photos.png_pixels((b"\0" + bytes(24)) * 8)
    data = photos.png_header(8, 8) + bomb + pixels + photos.PNG_END
    (megabytes,) = peak_mb("PNG", data, tmp_path)
    assert int(megabytes) <= 1


LARGEST = {
    "GIF": (Image.new("P", (7000, 7000), 3), "GIF", {}, 60),
    "GIF, transparent": (Image.new("P", (7000, 7000), 3), "GIF", {"transparency": 3}, 70),
    "BMP": (Image.new("RGB", (7000, 7000), "red"), "BMP", {}, 215),
    "WebP": (Image.new("RGB", (7000, 7000), "red"), "WEBP", {"lossless": True, "method": 0}, 600),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_pictures_keep_to_their_memory(name: str, tmp_path: Path) -> None:
    """49 megapixels; the other formats are measured in a worker, in tests/server."""
    image, kind, options, most = LARGEST[name]
    (megabytes,) = peak_mb(kind, encode(image, kind, **options), tmp_path)
    assert int(megabytes) < most


def test_an_error_holds_nothing_of_what_was_decoded() -> None:
    """A damaged picture of 20 megapixels, 80 MB; its memory is back while the error is kept."""
    page_bytes = resource.getpagesize()
    data = photos.damaged_png(5000, 4000)
    for _ in range(2):
        before = int(Path("/proc/self/statm").read_text().split()[1])
        with pytest.raises(MalformedError) as caught:
            pictures.decode(data)
        after = int(Path("/proc/self/statm").read_text().split()[1])
        assert (after - before) * page_bytes < 8 << 20
        assert str(caught.value.__cause__) in str(caught.value)
