"""A compact convolutional network for CTC: a mel spectrogram to characters.

Two-dimensional convolutions read small patches of time and frequency, so that slightly higher or
lower voices give similar features. Blocks as in ConvNeXt (Liu et al. 2022, section 2) then
convolve along time only: the context is narrow, so the network cannot learn which words usually
follow each other, and the cost per frame does not depend on the length. Padded frames are set to
zero before every convolution along time, so a row's output is the same alone and in a batch.
"""

import torch
from torch import nn

PATCHES = 32
"""Channels of the two-dimensional convolutions."""
STRIDE = 2
"""Frames of the spectrogram for each of the network's."""
KERNEL = 9
EXPANSION = 3


class Block(nn.Module):
    """A convolution of each channel along time, then a small perceptron in each frame."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.along = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, EXPANSION * width),
            nn.GELU(),
            nn.Linear(EXPANSION * width, width),
        )
        self.dropout = nn.Dropout1d(
            dropout
        )  # whole channels: as accurate here, and ten times as fast

    def forward(self, hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(batch, frames, width), and (batch, frames, 1) that is 0 where a frame is padding."""
        mixed = self.along((hidden * valid).transpose(1, 2)).transpose(1, 2)
        change = self.perceptron(self.norm(mixed))
        return hidden + self.dropout(change.transpose(1, 2)).transpose(1, 2)


class SpeechNetwork(nn.Module):
    """Mel spectrograms to log probabilities of the symbols, at half the frame rate.

    Args:
        bands: Bands of the spectrogram, a multiple of 4.
        width: Channels of the blocks.
        blocks: Number of blocks.
        symbols: Characters, and the blank of CTC.
        dropout: Share of a block's channels dropped in training.
    """

    def __init__(self, bands: int, width: int, blocks: int, symbols: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, PATCHES, 3, stride=(2, STRIDE), padding=1)
        self.second = nn.Conv2d(PATCHES, PATCHES, 3, stride=(2, 1), padding=1)
        self.flat = nn.Linear(PATCHES * bands // 4, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.spell = nn.Linear(width, symbols)

    def forward(self, mel: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (batch, bands, frames), and int64 (batch,), the numbers of unpadded frames.

        Returns:
            float32 (batch, frames / 2, symbols), and the numbers of unpadded frames.
        """
        kept = (frames + STRIDE - 1) // STRIDE
        hidden = self.first((mel * inside(mel, frames)[:, None])[:, None]).relu()
        valid = inside(hidden, kept)
        hidden = self.second(hidden * valid[:, None, None]).relu()
        hidden = self.flat(hidden.flatten(1, 2).transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden, valid[:, :, None])
        logits = self.spell(self.norm(hidden) * valid[:, :, None])
        return logits.float().log_softmax(-1), kept


def inside(tensor: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """1 at the first `count` places along the last axis of each row, else 0: (batch, last)."""
    places = torch.arange(tensor.shape[-1], device=tensor.device)
    return (places < count[:, None]).to(tensor.dtype)
