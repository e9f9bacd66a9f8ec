"""Networks for pictures and volumes, small and with random weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  as everybody writes it


def conv(inputs: int, outputs: int, size: int = 3, **given: int) -> nn.Sequential:
    """Convolution, norm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **given)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def head(width: int, classes: int = 5) -> nn.Sequential:
    """Classes from the mean of each channel."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def lenet() -> nn.Module:
    """Convolutions, pools and a flattened rest."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10), nn.LogSoftmax(1),
    )  # fmt: skip


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, stride=stride), conv(outputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """The sum of both ways."""
        return F.relu(self.body(input) + self.skip(input))


def resnet() -> nn.Module:
    """Three residual blocks."""
    blocks = Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 32, 2)
    return nn.Sequential(conv(3, 8), *blocks, head(32))


class Inverted(nn.Module):
    """MobileNetV2's block with squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 4 * width
        self.up = conv(width, wide, 1)
        self.depth = conv(wide, wide, groups=wide)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.SiLU(), nn.Conv2d(8, wide, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.down = nn.Conv2d(wide, width, 1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """The block beside its input."""
        wide = self.depth(self.up(input))
        return input + self.down(wide * self.gate(wide))


def mobilenet() -> nn.Module:
    """Two inverted bottlenecks."""
    return nn.Sequential(conv(3, 8, stride=2), Inverted(8), Inverted(8), nn.Hardswish(), head(8))


class Inception(nn.Module):
    """Branches of several sizes, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv(3, 4, size) for size in (1, 3, 5)])
        self.head = head(15)

    def forward(self, image: Tensor) -> Tensor:
        """Classes."""
        pooled = F.max_pool2d(image, 3, 1, 1)
        return self.head(torch.cat([*(b(image) for b in self.branches), pooled], 1))


class DenseNet(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3 + 4 * i, 4) for i in range(3)])
        self.head = head(15)

    def forward(self, image: Tensor) -> Tensor:
        """Classes."""
        for layer in self.layers:
            image = torch.cat([image, layer(image)], 1)
        return self.head(image)


class UNet(nn.Module):
    """Down, up, and across."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = conv(3, 8), conv(8, 16, stride=2)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Two masks of the image's size."""
        first = self.first(image)
        return torch.sigmoid(self.last(torch.cat([first, self.up(self.down(first))], 1)))


class Upsampler(nn.Module):
    """Bilinear upsampling and pixel shuffle: super resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """An image of twice the size."""
        wide = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
        return wide + F.pixel_shuffle(self.body(image), 2)


class Segmenter(nn.Module):
    """Dilated convolutions, and a resize to the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, stride=2)
        self.wide = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=d, dilation=d) for d in (1, 2, 4)])
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of classes for each pixel."""
        stem = self.stem(image)
        scores = self.last(torch.cat([layer(stem) for layer in self.wide], 1))
        return F.interpolate(scores, size=image.shape[-2:], mode="bilinear")


def norms() -> nn.Module:
    """Group, instance and local response norms."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.PReLU(8), nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True), nn.ELU(), nn.LocalResponseNorm(2), head(8),
    )  # fmt: skip


def adaptive_pools() -> nn.Module:
    """Adaptive pools to a grid of 2 x 2, of an even size."""
    return nn.Sequential(
        conv(3, 8), nn.AdaptiveMaxPool2d(4), conv(8, 8), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 5),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    """Down and up again by transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(4, 2, 3, 2, 1), nn.Softplus(),
        nn.ConvTranspose2d(2, 4, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(4, 1, 4, 2, 1),
        nn.Sigmoid(),
    )  # fmt: skip


class VisionTransformer(nn.Module):
    """Patches, a class token, positions and an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        """Classes by the token."""
        parts = self.patches(image).flatten(2).transpose(1, 2)
        parts = torch.cat([self.token.expand(len(parts), -1, -1), parts], 1) + self.places
        return self.head(self.encoder(parts)[:, 0])


class ConvNext(nn.Module):
    """Layer norm over the last axis between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(3, 3, 7, padding=3, groups=3), nn.LayerNorm(3)
        self.wide, self.back = nn.Linear(3, 12), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.full((3,), 0.1))

    def forward(self, image: Tensor) -> Tensor:
        """An image."""
        x = self.norm(self.depth(image).permute(0, 2, 3, 1))
        x = self.scale * self.back(F.gelu(self.wide(x)))
        return image + x.permute(0, 3, 1, 2)


def volumes() -> nn.Module:
    """Convolutions in three dimensions."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(),
        nn.Linear(108, 3),
    )  # fmt: skip


class Detector(nn.Module):
    """Boxes and scores of a grid, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2))
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Boxes and scores for each place."""
        found = self.body(image)
        boxes = self.boxes(found).flatten(2).transpose(1, 2).exp()
        return {"boxes": boxes, "scores": self.scores(found).flatten(2).transpose(1, 2).sigmoid()}


class SpatialTransformer(nn.Module):
    """Turns the image by a predicted grid."""

    def __init__(self) -> None:
        super().__init__()
        self.angle = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))

    def forward(self, image: Tensor) -> Tensor:
        """An image."""
        theta = self.angle(image).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, align_corners=False)


class Gram(nn.Module):
    """Products of channels: a picture's style."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv(3, 6)

    def forward(self, image: Tensor) -> Tensor:
        """One matrix for each image."""
        x = self.body(image).flatten(2)
        return torch.einsum("bcn,bdn->bcd", x, x) / x.shape[-1]
