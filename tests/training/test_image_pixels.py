"""The first layer of image models: cutting, resizing, normalising."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from marship.fit.recipe import resolve
from recipes import REPOSITORY

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def pixels() -> ModuleType:
    """training/pixels.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/pixels.py:Pixels")).__module__]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random pixels, uint8, shape (batch, height, width, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def test_a_picture_of_the_right_size_is_only_normalised(pixels: ModuleType) -> None:
    """Without anything to cut or resize, each value is (value / 255 - mean) / std."""
    layer, given = pixels.Pixels(32, 1.0, MEAN, STD), draw(2, 32, 32)
    wanted = ((given / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(given), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.normalise(given), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "crop", "box"),
    [
        ((256, 256), 0.875, (16, 16, 240, 240)),
        ((300, 400), 0.875, (68, 18, 331, 281)),
        ((90, 40), 1.0, (0, 25, 40, 65)),
        ((1, 5), 0.875, (2, 0, 3, 1)),
    ],
)
def test_it_resizes_the_middle_square_as_pillow_does(
    pixels: ModuleType, size: tuple[int, int], crop: float, box: tuple[int, int, int, int]
) -> None:
    """The middle square is cut and resized by Pillow's antialiasing filter, but for rounding."""
    given = draw(1, *size)
    layer = pixels.Pixels(24, crop, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    got = layer(given)[0].permute(1, 2, 0).numpy() * 255
    picture = Image.fromarray(given[0].numpy()).crop(box)
    wanted = np.asarray(picture.resize((24, 24), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(got, wanted, atol=1.01)


def test_it_exports_with_free_height_and_width(pixels: ModuleType, tmp_path: Path) -> None:
    """ONNX Runtime agrees with PyTorch whatever the batch, the height and the width."""
    layer, path = pixels.Pixels(32, 0.875, MEAN, STD).eval(), tmp_path / "pixels.onnx"
    axes = {0: "batch", 1: "height", 2: "width"}
    dims = {index: torch.export.Dim(name, min=1) for index, name in axes.items()}
    torch.onnx.export(
        layer, (draw(3, 50, 60),), path, dynamic_shapes=(dims,), dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    for batch, height, width in [(1, 1, 1), (2, 7, 300), (3, 36, 36), (1, 480, 640), (7, 100, 64)]:
        given = draw(batch, height, width, seed=height)
        (got,) = session.run(None, {name: given.numpy()})
        np.testing.assert_allclose(got, layer(given).numpy(), rtol=1e-4, atol=1e-4)
