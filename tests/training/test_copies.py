"""Near copies among pictures."""

import io
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from marship.contract import Array
from marship.fit.recipe import resolve
from recipes import REPOSITORY


@pytest.fixture(scope="module")
def copies() -> ModuleType:
    """training/copies.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/copies.py:groups")).__module__]


def photographs(count: int, side: int = 32) -> Array:
    """Pictures with large and small shapes, unrelated to each other."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        layers = (generator.normal(0, 60 / size**0.5, (size, size, 3)) for size in (2, 4, 8, 16))
        whole = sum(
            np.stack(
                [
                    np.asarray(
                        Image.fromarray(layer[..., band].astype(np.float32)).resize((side,) * 2)
                    )
                    for band in range(3)
                ],
                axis=2,
            )
            for layer in layers
        )
        found.append(np.clip(128 + whole, 0, 255).astype(np.uint8))
    return np.stack(found)


def recompressed(picture: Array) -> Array:
    """As a JPEG of low quality."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


def shrunk(picture: Array) -> Array:
    """Half as large, and enlarged again."""
    return np.asarray(Image.fromarray(picture).resize((16, 16)).resize((32, 32)))


CHANGES = {
    "recompressed": recompressed,
    "shrunk": shrunk,
    "darker": lambda picture: (picture * 0.7).astype(np.uint8),
    "mirrored": lambda picture: picture[:, ::-1],
    "grey": lambda picture: np.asarray(Image.fromarray(picture).convert("L").convert("RGB")),
}


def grouped(copies: ModuleType, pixels: Array) -> Array:
    """The groups of pictures, none of them exactly the same."""
    rows = copies.coarse(pixels)
    found: Array = copies.groups(rows, copies.limit(rows, seed=0), np.arange(len(pixels)))
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_near_copies_are_found(copies: ModuleType, change: str) -> None:
    """Of 200 pictures ten are changed a little: each is with its original, and with no other."""
    pixels = photographs(200)
    changed = np.stack([CHANGES[change](picture) for picture in pixels[:10]])
    numbers = grouped(copies, np.concatenate([pixels, changed]))
    np.testing.assert_array_equal(numbers[200:], numbers[:10])
    assert len(np.unique(numbers)) == 200
    rows = copies.coarse(pixels)
    limit = copies.limit(rows[10:], seed=0)
    assert copies.known(copies.coarse(changed), rows, limit).all()
    assert not copies.known(copies.coarse(changed), rows[10:], limit).any()


def test_simple_pictures_are_not_taken_for_copies(copies: ModuleType) -> None:
    """Handwritten digits are much alike, but hardly any is a copy of another."""
    grey = (load_digits().images * 15.9).astype(np.uint8)
    numbers = grouped(copies, np.repeat(grey[..., None], 3, axis=3))
    assert len(np.unique(numbers)) > 0.99 * len(grey)


def test_copies_of_copies_are_one_group(copies: ModuleType) -> None:
    """Each frame of a slow film is a copy of the next, so that all are one group."""
    pixels = photographs(100).astype(float)
    frames = [pixels[0] + (pixels[1] - pixels[0]) * share for share in np.linspace(0, 1, 60)]
    film = np.stack(frames).astype(np.uint8)
    numbers = grouped(copies, np.concatenate([pixels[2:].astype(np.uint8), film]))
    assert len(np.unique(numbers[98:])) == 1
    assert len(np.unique(numbers)) == 99
    ends = copies.coarse(film[[0, -1]])
    assert copies.distances(ends[:1], ends[1:]).min() > copies.FARTHEST


def test_pictures_of_one_colour_are_like_none(copies: ModuleType) -> None:
    """Without any shape nothing is said, but that exact copies belong together."""
    flat = np.full((4, 16, 16, 3), 90, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    rows = copies.coarse(np.concatenate([flat, photographs(20, side=16)]))
    limit = copies.limit(rows, seed=0)
    same = np.arange(24)
    assert len(np.unique(copies.groups(rows, limit, same))) == 24
    same[3] = 1
    numbers = copies.groups(rows, limit, same)
    assert numbers[3] == numbers[1]
    assert len(np.unique(numbers)) == 23
