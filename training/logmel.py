"""Samples to a mel spectrogram: the first layers of every speech model.

They are part of the model, so they are in the ONNX graph, and training and serving cannot differ.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from marship.contract import Array

SLANEY_STEP_HZ = 200 / 3
SLANEY_CORNER_HZ = 1000.0
SLANEY_LOG_STEP = np.log(6.4) / 27


class MelPower(nn.Module):
    """Power in each band of the mel scale, frame by frame.

    A frame is centred on its sample; the ends are padded. The Fourier transform is a strided
    convolution with windowed cosines and sines: ONNX Runtime's convolution is fast, and neither it
    nor the exporter has a transform of any length. With few bins it is no slower.

    Args:
        rate: Samples a second.
        window: Samples of a frame and of the transform, an even number; Hann's window is applied.
        hop: Samples from one frame to the next.
        bands: Number of bands.
        edge: Padding of the ends: "constant" (zeros) or "reflect".
        top_hz: Upper end of the bands; None is half the rate. Bands above that are empty.
    """

    def __init__(  # noqa: PLR0913  they are what it is
        self,
        rate: int,
        window: int,
        hop: int,
        bands: int,
        edge: str = "constant",
        *,
        top_hz: float | None = None,
    ) -> None:
        super().__init__()
        self.window, self.hop, self.edge = window, hop, edge
        self.top_hz = rate / 2 if top_hz is None else top_hz
        basis, filters = fourier_basis(window), mel_filters(rate, window, bands, self.top_hz)
        # constants, not weights
        self.register_buffer("basis", torch.from_numpy(basis)[:, None], persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """float32 (batch, samples) to (batch, bands, samples // hop + 1)."""
        half = self.window // 2
        padded = functional.pad(audio[:, None], (half, half), mode=self.edge)
        parts = functional.conv1d(padded, self.basis, stride=self.hop)
        bins = self.window // 2 + 1
        power = parts[:, :bins].square() + parts[:, bins:].square()
        return torch.matmul(self.filters, power)


def fourier_basis(window: int) -> Array:
    """Hann's window (periodic) times the cosines, and below them the sines, of each bin.

    float32, shape (2 * (window // 2 + 1), window).
    """
    places = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * places / window)
    angles = 2 * np.pi * (np.outer(np.arange(window // 2 + 1), places) % window) / window
    return (np.concatenate([np.cos(angles), np.sin(angles)]) * hann).astype(np.float32)


def mel_filters(rate: int, window: int, bands: int, top_hz: float) -> Array:
    """Triangles of equal area over the bins, evenly spaced on the mel scale.

    Slaney 1998, Auditory Toolbox, as librosa and Whisper have them.

    float32, shape (bands, window // 2 + 1).
    """
    bins_hz = np.arange(window // 2 + 1) * rate / window
    corners_hz = mel_to_hz(np.linspace(0, hz_to_mel(np.array(top_hz)), bands + 2))
    low, middle, high = corners_hz[:-2, None], corners_hz[1:-1, None], corners_hz[2:, None]
    rising, falling = (bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return triangles.astype(np.float32)


def hz_to_mel(hz: Array) -> Array:
    """Slaney's scale: linear up to 1 kHz, logarithmic above."""
    linear, corner = hz / SLANEY_STEP_HZ, SLANEY_CORNER_HZ / SLANEY_STEP_HZ
    above = corner + np.log(np.maximum(hz, SLANEY_CORNER_HZ) / SLANEY_CORNER_HZ) / SLANEY_LOG_STEP
    return np.where(hz < SLANEY_CORNER_HZ, linear, above)


def mel_to_hz(mel: Array) -> Array:
    """The inverse."""
    corner = SLANEY_CORNER_HZ / SLANEY_STEP_HZ
    above = SLANEY_CORNER_HZ * np.exp(SLANEY_LOG_STEP * (np.maximum(mel, corner) - corner))
    return np.where(mel < corner, mel * SLANEY_STEP_HZ, above)
