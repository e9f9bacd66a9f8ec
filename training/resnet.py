"""A small residual network for training from scratch.

He et al. 2016, Deep Residual Learning, in the short and wide form that others found for fast
training on CIFAR-10 (David Page 2018, How to Train Your ResNet): three stages of a widening
convolution, a pooling and a residual block.
"""

import math

import torch
from torch import nn

STAGES = 3
LAST_SIDE = 4
"""Smallest height and width of the last stage's input."""
LOGIT_SCALE = 0.125
"""Max-pooled features are large at first: without this factor the first steps diverge."""


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution of 3 x 3, normalized and rectified."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(channels, channels), conv(channels, channels))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, channels, height, width), to the same shape."""
        return pictures + self.layers(pictures)


class ResNet(nn.Module):
    """Pictures to logits.

    Args:
        side: Height and width of the pictures. Above 63, strided convolutions come first, so that
            the stages always work on about 32 x 32.
        width: Channels of the first convolution; each stage doubles them.
        classes: Number of classes.
    """

    def __init__(self, side: int, width: int, classes: int) -> None:
        super().__init__()
        halvings = max(1, int(math.log2(max(side / LAST_SIDE, 1))))
        pools = min(halvings, STAGES)
        layers: list[nn.Module] = [conv(3, width, 2 if halvings > STAGES else 1)]
        layers += [conv(width, width, 2) for _ in range(halvings - STAGES - 1)]
        for _ in range(pools):
            layers += [conv(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width)]
            width *= 2
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, 3, height, width), to logits, shape (batch, classes)."""
        return LOGIT_SCALE * self.classifier(self.layers(pictures).amax((2, 3)))
