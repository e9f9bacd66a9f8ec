"""What stands between two linear layers: a norm and an activation.

The square, x * x, is an activation that homomorphic encryption can compute (Gilad-Bachrach et al.
2016, CryptoNets). Unlike ReLU's its slope has no bound: a norm before it and clipped gradients keep
training stable.
"""

import torch
from torch import nn

from marship.errors import UsageError

ACTIVATIONS = ("relu", "square")
NORMS = ("batch", "group", "none")


class Square(nn.Module):
    """The square of each number."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Any shape, to the same shape."""
        return hidden * hidden


def activated(activation: str, norm: str, channels: int, axes: int = 1) -> list[nn.Module]:
    """The norm, if any, and the activation.

    Args:
        activation: One of ACTIVATIONS.
        norm: One of NORMS; batch norm becomes part of the linear layer before it when served.
        channels: Features, or channels of a picture.
        axes: Of each row: 1 for features, 3 for pictures.

    Raises:
        UsageError: The activation or the norm is unknown.
    """
    if activation not in ACTIVATIONS:
        raise UsageError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if norm not in NORMS:
        raise UsageError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}.")
    layers: list[nn.Module] = []
    if norm == "batch":
        layers.append(nn.BatchNorm1d(channels) if axes == 1 else nn.BatchNorm2d(channels))
    elif norm == "group":
        layers.append(nn.GroupNorm(1, channels))
    return [*layers, nn.ReLU() if activation == "relu" else Square()]
