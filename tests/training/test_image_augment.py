"""How training pictures are changed."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from marship.fit.recipe import resolve
from recipes import REPOSITORY


@pytest.fixture(scope="module")
def augment() -> ModuleType:
    """training/augment.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/augment.py:augment")).__module__]


def changes(augment: ModuleType, **given: Any) -> Any:
    """An augmentation that changes nothing but what is given."""
    nothing = {"side": 16, "shift": 0, "zoom": 1.0, "mirror": 0.0, "cutout": 0.0}
    return augment.Augmentation(**nothing | given)


def pictures(edge: int = 16, batch: int = 200) -> torch.Tensor:
    """Ramps: red is the row, green the column, blue the picture."""
    rows = torch.arange(edge, dtype=torch.uint8)
    ramp = torch.zeros(batch, edge, edge, 3, dtype=torch.uint8)
    ramp[..., 0], ramp[..., 1] = rows[:, None], rows[None, :]
    ramp[..., 2] = torch.arange(batch, dtype=torch.uint8)[:, None, None]
    return ramp


def test_without_changes_pictures_stay(augment: ModuleType) -> None:
    """No shift, no zoom, no mirror, no cutout: the same pictures, bit by bit."""
    torch.testing.assert_close(augment.augment(pictures(), changes(augment)), pictures())


def test_moved_pictures_are_mirrored_at_the_edges(augment: ModuleType) -> None:
    """All moves up to the shift occur, each picture by its own, and edges continue mirrored."""
    torch.manual_seed(0)
    got = augment.augment(pictures(), changes(augment, shift=2)).numpy()
    starts = set()
    for number, picture in enumerate(got):
        assert (picture[..., 2] == number).all()
        down, right = (int(picture[8, 8, axis]) - 8 for axis in (0, 1))
        starts.add((down, right))
        wanted = np.abs(np.arange(16) + down)
        wanted = np.where(wanted > 15, 30 - wanted, wanted)
        np.testing.assert_array_equal(picture[:, 0, 0], wanted)
    assert starts == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_larger_pictures_are_cut_anywhere(augment: ModuleType) -> None:
    """From a kept square of 20, parts of 16 come from all five places and no further."""
    torch.manual_seed(0)
    got = augment.augment(pictures(20), changes(augment))
    assert got.shape == (200, 16, 16, 3)
    assert set(got[:, 0, 0, 0].tolist()) == set(got[:, 0, 0, 1].tolist()) == set(range(5))
    assert ((got[:, 15, 0, 0] - got[:, 0, 0, 0]) == 15).all()


def test_mirrored_is_the_share_requested(augment: ModuleType) -> None:
    """About half are turned left to right, whole, and the others stay."""
    torch.manual_seed(0)
    got = augment.augment(pictures(), changes(augment, mirror=0.5))
    flipped = got[:, 0, 0, 1] == 15
    assert 60 < int(flipped.sum()) < 140
    torch.testing.assert_close(got[flipped], pictures()[flipped].flip(2))
    torch.testing.assert_close(got[~flipped], pictures()[~flipped])


def test_zoomed_parts_keep_at_least_the_area_requested(augment: ModuleType) -> None:
    """Resized parts span from a quarter of the picture to nearly all of it, never less."""
    torch.manual_seed(0)
    got = augment.augment(pictures(64), changes(augment, zoom=0.25)).int()
    assert got.shape == (200, 16, 16, 3)
    spans = [(got[:, 15, 8, 0] - got[:, 0, 8, 0]), (got[:, 8, 15, 1] - got[:, 8, 0, 1])]
    shares = (spans[0] + 4.0) * (spans[1] + 4.0) / 64**2  # a pixel reaches over its middle
    assert 0.2 < float(shares.min()) < 0.4
    assert float(shares.max()) > 0.85
    assert len({(int(a), int(b)) for a, b in zip(*spans, strict=True)}) > 100


def test_cut_out_squares_are_grey(augment: ModuleType) -> None:
    """A square of at most the edge asked for becomes grey in each, at many places."""
    torch.manual_seed(0)
    got = augment.augment(pictures(), changes(augment, cutout=0.5))
    grey = (got == augment.GREY).all(3)
    torch.testing.assert_close(got[~grey], pictures()[~grey])
    counts = grey.sum((1, 2))
    assert int(counts.max()) == 64
    assert int(counts.min()) >= 16
    assert (grey.any(2).sum(1) * grey.any(1).sum(1) == counts).all()
    assert float(grey.float().mean(0).min()) > 0.05


def test_a_seed_repeats_the_changes(augment: ModuleType) -> None:
    """All that is random comes from PyTorch's generator, which a resumed run sets."""
    every = changes(augment, shift=2, zoom=0.5, mirror=0.5, cutout=0.3)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(augment.augment(pictures(20), every))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
