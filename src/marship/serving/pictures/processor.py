"""Pictures as an image processor of transformers prepares them (transformers 5.23, PilBackend)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from marship.contract import Array
from marship.errors import TooLargeError

MOST_RESIZED_PIXELS = 50_000_000
"""A picture of 65,000 x 10 pixels, resized to 224 of its shorter side, would have 300 million."""
_RESAMPLES = range(6)
"""PIL.Image.Resampling: nearest, Lanczos, bilinear, bicubic, box, Hamming."""


@dataclass(frozen=True, slots=True)
class Processor:
    """What happens to a picture before a model reads it, in this order.

    Attributes:
        resize: (height, width), or (pixels,) of the shorter side; None resizes nothing.
        resample: One of PIL.Image.Resampling.
        crop: (height, width) of the middle, filled with black where the picture is smaller; or
            None.
        rescale: A factor of each value from 0 to 255; None is 1.
        mean: What is then subtracted from red, green and blue; None is nothing.
        std: By what it is then divided.
        crop_rounds: Whether the middle begins at half the rest rounded to even, as torchvision has
            it, and not rounded down.
    """

    resize: tuple[int, ...] | None
    resample: int
    crop: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_rounds: bool = False

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Self:
        """The processor that `asdict` wrote.

        Raises:
            KeyError: A setting is missing.
            TypeError: One is of another type.
            ValueError: One is out of range.
        """
        found = cls(
            resize=_numbers(about["resize"], int, (1, 2)),
            resample=int(about["resample"]),
            crop=_numbers(about["crop"], int, (2,)),
            rescale=None if about["rescale"] is None else float(about["rescale"]),
            mean=_numbers(about["mean"], float, (3,)),
            std=_numbers(about["std"], float, (3,)),
            crop_rounds=bool(about["crop_rounds"]),
        )
        if found.resample not in _RESAMPLES or (found.mean is None) != (found.std is None):
            raise ValueError(f"processor {found}")
        return found

    def __call__(self, pixels: Array) -> Array:
        """uint8 (height, width, 3), RGB, to float32 (3, height, width) as the model reads it.

        Raises:
            TooLargeError: It would be resized to more than `MOST_RESIZED_PIXELS`.
        """
        values: Array = self._cropped(self._resized(pixels)).astype(np.float32)
        if self.rescale is not None:
            values = values * np.float32(self.rescale)
        if self.mean is not None and self.std is not None:
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _resized(self, pixels: Array) -> Array:
        if self.resize is None:
            return pixels
        height, width = self._size(*pixels.shape[:2])
        if height * width > MOST_RESIZED_PIXELS:
            raise TooLargeError(
                f"the picture must have at most {MOST_RESIZED_PIXELS:,} pixels when it is resized, "
                f"got {width} x {height}. Send one that is less elongated."
            )
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).resize((width, height), self.resample))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width to resize to."""
        if self.resize is None or len(self.resize) > 1:
            return self.resize or (height, width)  # type: ignore[return-value]  # of two
        (side,) = self.resize
        shorter, longer = sorted((height, width))
        other = int(side * longer / shorter)
        return (other, side) if width <= height else (side, other)

    def _cropped(self, pixels: Array) -> Array:
        if self.crop is None:
            return pixels
        for axis, size in enumerate(self.crop):
            have = pixels.shape[axis]
            if have < size:
                short = size - have
                before = -(-short // 2)
                pads = [(0, 0)] * 3
                pads[axis] = (before, short - before)
                pixels = np.pad(pixels, pads)
            else:
                rest = have - size
                start = round(rest / 2) if self.crop_rounds else rest // 2
                pixels = np.take(pixels, range(start, start + size), axis)
        return pixels


def _numbers(value: Any, kind: type, counts: Sequence[int]) -> tuple[Any, ...] | None:  # noqa: ANN401
    """A JSON list of positive sizes, or of any floats; None stays."""
    if value is None:
        return None
    numbers = tuple(kind(each) for each in value)
    if len(numbers) not in counts or (kind is int and min(numbers) < 1):
        raise ValueError(f"{numbers}")
    return numbers
