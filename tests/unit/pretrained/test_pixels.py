"""Pixels as an image processor of transformers makes them."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import transformers

from marship.errors import ParityError
from marship.pretrained import pictures


def check_pixels(processor: Any) -> None:
    """Hold our pixels against those of an image processor."""
    ours = pictures.settings_of(processor)
    pictures.checked(ours, partial(pictures.values_of, processor), type(processor).__name__)


PROCESSORS: dict[str, dict[str, Any]] = {
    "squeezed": {},
    "shorter side and crop": {
        "size": {"shortest_edge": 40},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
    },
    "a crop beyond the picture": {
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 100, "width": 100},
        "do_normalize": False,
    },
    "no rescale": {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 61, 62]},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_image_processor(name: str) -> None:
    """For wide and high pictures, resized, cropped, filled with black, normalized or not."""
    settings = {"size": {"height": 32, "width": 32}} | PROCESSORS[name]
    check_pixels(transformers.ViTImageProcessorPil(**settings))


def test_convnext_crops_its_share() -> None:
    """It resizes the shorter side to more, below 384, and squeezes from there on."""
    for edge in (224, 384):
        check_pixels(transformers.ConvNextImageProcessorPil(size={"shortest_edge": edge}))


def test_an_image_processor_that_does_more_is_refused() -> None:
    """EfficientNet's offset is not among the settings: the pixels tell."""
    processor = transformers.EfficientNetImageProcessorPil(rescale_offset=True)
    with pytest.raises(ParityError, match="pixels must be those of EfficientNetImageProcessorPil"):
        check_pixels(processor)


def test_one_number_is_that_of_all_colours() -> None:
    """`image_mean: 0.5`, as transformers takes it."""
    size = {"height": 32, "width": 32}
    processor = transformers.ViTImageProcessorPil(size=size, image_mean=0.5, image_std=0.25)
    ours = pictures.settings_of(processor)
    assert (ours.mean, ours.std) == ((0.5,) * 3, (0.25,) * 3)
    pictures.checked(ours, lambda pixels: pictures.values_of(processor, pixels), "ViT's")
    failing = replace(ours, mean=None, std=None)
    with pytest.raises(ParityError, match="pixels must be those of ViT's"):
        pictures.checked(failing, lambda pixels: pictures.values_of(processor, pixels), "ViT's")
