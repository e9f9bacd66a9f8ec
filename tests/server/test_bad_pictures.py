"""Every picture sent over HTTP gets a response or a clear error, and the worker survives."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

import photos
from colours import pack_colours
from marship import Client
from marship.engines.torchserve.server import Server
from photos import colour, encode
from posting import Post, assert_memory_returns, forget_peak, peak_bytes, posting

FORTY_MEGAPIXELS = (7300, 5480)
MB = 1 << 20


@pytest.fixture(scope="module")
def post(
    store: Path, client: Client, running: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Post]:
    """Post to the model that sees colours; in the end its worker is the first one."""
    folder = tmp_path_factory.mktemp("colours")
    pack_colours(folder, profile="throughput").rename(store / "colours.mar")
    yield from posting(running, client, "colours")


@pytest.fixture
def process(post: Post, client: Client) -> psutil.Process:
    """The worker's process, after its first picture."""
    post(colour("red"))
    (worker,) = client.describe("colours")[0].workers
    return psutil.Process(worker.pid)


BAD = {
    "nothing": (b"", 400, "malformed"),
    "text": (b"hello", 415, "unsupported_media"),
    "SVG": (photos.SVG, 415, "unsupported_media"),
    "a truncated JPEG": (encode(photos.photo(), "JPEG")[:-100], 400, "malformed"),
    "a truncated PNG": (encode(photos.photo(), "PNG")[:-100], 400, "malformed"),
    "half a PNG": (photos.png(96, 64, bytes(1 + 3 * 96) * 32), 400, "malformed"),
    "a bomb of PNG": (photos.claim("PNG", 50_000, 50_000), 413, "too_large"),
    "a bomb of JPEG": (photos.claim("JPEG", 50_000, 50_000), 413, "too_large"),
    "a bomb of GIF": (photos.claim("GIF", 50_000, 50_000), 413, "too_large"),
}


@pytest.mark.parametrize("lie", ["image/png", "application/json", "text/html"])
def test_the_bytes_count_and_not_the_content_type(post: Post, lie: str) -> None:
    """A JPEG under three false names."""
    answer = post(colour("blue", kind="JPEG"), kind=lie)
    assert (answer.json()["label"], answer.json()["format"]) == ("blue", "jpeg")


def test_k_is_a_field_of_the_form(post: Post) -> None:
    """With one picture, whose response is that of a picture without a form."""
    answer = post({"k": "2"}, files={"picture": colour("red")}).json()
    assert (answer["label"], len(answer["top"])) == ("red", 2)
    assert post({"k": "none"}, files={"picture": colour("red")}).status_code == 400


def test_a_form_of_several_pictures(post: Post) -> None:
    """One name for all, as a browser's file field sends them; a broken one affects no other."""
    parts = [colour("red"), b"broken", encode(photos.photo(320, 270), "JPEG"), colour("blue")]
    files = [("file", (f"{i}.png", part, "image/png")) for i, part in enumerate(parts)]
    rows = post({"k": "1"}, files=files).json()["pictures"]
    assert [row["name"] for row in rows] == ["file", "file#2", "file#3", "file#4"]
    assert [row.get("code") for row in rows] == [None, "unsupported_media", None, None]
    assert (rows[0]["label"], rows[2]["width"], rows[3]["label"]) == ("red", 320, "blue")
    assert len(rows[0]["top"]) == 1


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_is_a_clear_error_and_affects_no_other(post: Post, case: str) -> None:
    """Its status and code are right; seven pictures sent at the same time succeed."""
    body, status, code = BAD[case]
    names = ["red", "lime", "blue"]
    bodies = [colour(names[i % 3], 10 + i, 10) for i in range(7)]
    with ThreadPoolExecutor(8) as pool:
        bad, *good = pool.map(post, [body, *bodies])
    assert (bad.status_code, bad.json()["code"]) == (status, code)
    assert bad.json()["message"]
    want = [{"lime": "green"}.get(name, name) for name in (names * 3)[:7]]
    assert [answer.json()["label"] for answer in good] == want


def test_an_animation_is_its_first_frame(post: Post) -> None:
    """Red, of red, green and blue."""
    assert post(photos.animation()).json()["label"] == "red"


LARGE = {
    "JPEG": ("JPEG", "RGB", {"quality": 70}, 20),
    "progressive JPEG": ("JPEG", "RGB", {"progressive": True}, 140),
    "progressive JPEG, 4:4:4": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}, 260),
    "PNG": ("PNG", "RGB", {"compress_level": 1}, 190),
    "PNG, transparent": ("PNG", "RGBA", {"compress_level": 1}, 200),
    "GIF": ("GIF", "P", {}, 70),
    "WebP": ("WEBP", "RGB", {"quality": 1, "method": 0}, 500),
    "WebP, lossless": ("WEBP", "RGB", {"lossless": True, "method": 0}, 500),
}


@pytest.mark.parametrize("name", LARGE)
def test_40_megapixels_work_and_their_memory_comes_back(
    post: Post, process: psutil.Process, name: str
) -> None:
    """The worker takes as many megabytes as docs/image.md states, and a few for the request."""
    kind, mode, options, most_mb = LARGE[name]
    if name == "JPEG":
        image = photos.photo(730, 548).resize(FORTY_MEGAPIXELS)
    else:
        image = Image.new(mode, FORTY_MEGAPIXELS, 90)
    data = encode(image, kind, **options)
    before = process.memory_info().rss
    forget_peak(process)
    assert post(data).json()["width"] == FORTY_MEGAPIXELS[0]
    assert peak_bytes(process) - before < most_mb * MB
    assert process.memory_info().rss - before < 32 * MB


def test_a_thousand_bad_pictures_leave_the_memory_as_it_was(
    post: Post, process: psutil.Process
) -> None:
    """Every kind of error, over and over."""
    bodies = [body for body, _, _ in BAD.values()]
    assert_memory_returns(post, process, bodies, 125)


def test_a_form_of_damaged_large_pictures_takes_the_memory_of_one(
    post: Post, process: psutil.Process
) -> None:
    """Eight PNG of 49 megapixels whose pixels end in noise: 147 MB each, while it is read."""
    damaged = photos.damaged_png(7000, 7000)
    before = process.memory_info().rss
    forget_peak(process)
    for _ in range(2):
        answer = post(None, files=[("file", (f"{i}.png", damaged)) for i in range(8)])
        rows = answer.json()["pictures"]
        assert [row["code"] for row in rows] == ["malformed"] * 8
    assert peak_bytes(process) - before < 8 * 7000 * 7000
    assert process.memory_info().rss - before < 32 * MB
