"""Crops, resizes and normalises pictures of any size: the first layer of every image model.

It is part of the model, so it is in the ONNX graph, and training and serving cannot differ.
"""

from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional

FINEST_SHARE = 1000
"""Largest denominator of the crop as a fraction, since the graph computes sizes in integers."""


class Pixels(nn.Module):
    """The middle square of a picture, resized and normalised.

    Args:
        side: Height and width of what the network reads.
        crop: The square's edge as a share of the picture's shorter side, 0 to 1.
        mean: Means of red, green and blue, of pixels from 0 to 1.
        std: Standard deviations, likewise.
    """

    def __init__(
        self, side: int, crop: float, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.side = side
        self.crop = Fraction(crop).limit_denominator(FINEST_SHARE)
        scale = 1 / (255 * torch.tensor(std))[:, None, None]
        shift = -255 * torch.tensor(mean)[:, None, None] * scale
        if len(set(zip(mean, std, strict=True))) == 1:
            # one scalar for all channels: three took a quarter of EfficientNet-Lite0's time in
            # int8, where ONNX Runtime uses channels-last and loops over 3 channels at a time
            scale, shift = scale[0, 0, 0], shift[0, 0, 0]
        # constants, not weights
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, height, width, 3), RGB, to float32 (batch, 3, side, side).

        Cropping comes first, so that only the crop is resized. The filter is bilinear with
        antialiasing, as in Pillow.
        """
        square = self.cut(pixels).permute(0, 3, 1, 2).to(torch.float32)
        resized = functional.interpolate(
            square, (self.side, self.side), mode="bilinear", antialias=True
        )
        return resized * self.scale + self.shift

    def cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """The middle square of (batch, height, width, 3)."""
        height, width = pixels.shape[1], pixels.shape[2]
        share, whole = self.crop.numerator, self.crop.denominator
        edge = (torch.sym_min(height, width) * share + whole - 1) // whole
        top, left = (height - edge) // 2, (width - edge) // 2
        return pixels.narrow(1, top, edge).narrow(2, left, edge)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same for pictures that have the network's size already: (batch, side, side, 3)."""
        return pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
