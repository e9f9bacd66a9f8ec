"""The speech model that is trained: samples to character probabilities.

Its first layer is the log-mel spectrogram, so that training and serving cannot differ.
"""

from collections.abc import Callable

import torch
import whisper_encoder
from logmel import MelPower
from speech_network import STRIDE, SpeechNetwork, inside
from torch import nn
from torch.nn import functional

WINDOW_S, HOP_S = 0.025, 0.01
FRAME_S = STRIDE * HOP_S
"""Duration of one output frame."""
LEAST_POWER = 1e-10
QUIETEST = 1e-4
"""Lower bound of the power that a recording is normalized by."""
NEAR = 40
"""Frames before and after that a frame is compared with."""
SOFTEST = 1e-3
"""Lower bound of the local maximum, as a share of the recording's maximum: 30 dB below."""
RANGE = 16.0
"""Dynamic range in natural logarithms: 70 dB below the local maximum is clipped."""


class Recognizer(nn.Module):
    """Samples to character probabilities.

    Args:
        mel: Samples to power.
        scale: Power and the numbers of frames to the network's input.
        network: That, and the numbers of frames, to log probabilities and their numbers of frames.
    """

    def __init__(
        self,
        mel: MelPower,
        scale: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        network: nn.Module,
    ) -> None:
        super().__init__()
        self.mel, self.scale, self.network = mel, scale, network

    def forward(
        self, audio: torch.Tensor, frames: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """float32 (batch, samples), -1 to 1, padded with 0, to `log_probs` and `frames`.

        With `frames`, `audio` is an augmented power spectrogram with that many frames.
        Trailing zeros of a row count as padding, so no input with the lengths is needed.

        Returns:
            `log_probs`, float32 (batch, frames, symbols), and `frames`, int64 (batch,), the
            number of frames without padding.
        """
        if frames is None:
            frames = used_lengths(audio) // self.mel.hop + 1
            audio = self.mel(audio)
        log_probs, frames = self.network(self.scale(audio, frames), frames)
        return {"log_probs": log_probs, "frames": frames}


def used_lengths(audio: torch.Tensor) -> torch.Tensor:
    """Number of samples of each row before its trailing zeros, int64 (batch,)."""
    positions = torch.arange(1, audio.shape[1] + 1, device=audio.device)
    return ((audio != 0) * positions).amax(1)


def scaled(power: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """The logarithm of power, from -1 to 1, where 1 is the maximum of the frames around it.

    Words of one recording differ in loudness, so each frame is compared with those near it and
    not with the recording's maximum. Pauses stay silent: the local maximum is at least `SOFTEST`
    times the recording's.
    """
    loud = (power * inside(power, frames)[:, None]).amax(1, keepdim=True)
    # two-dimensional, with one dimension 1: torch.export specializes max_pool1d to one size
    near = functional.max_pool2d(loud, (1, 2 * NEAR + 1), stride=1, padding=(0, NEAR))
    least = (loud.amax(2, keepdim=True) * SOFTEST).clamp(min=QUIETEST)
    # clamp, not a sum: the exporter treats adding so small a constant as adding zero, and drops it
    faint = power.clamp(min=LEAST_POWER).log() - torch.maximum(near, least).log()
    return faint.clamp(min=-RANGE) * (2 / RANGE) + 1


def build(  # noqa: PLR0913  they are the settings that shape it
    *,
    backbone: str,
    sample_rate: int,
    bands: int,
    width: int,
    blocks: int,
    symbols: int,
    dropout: float,
) -> Recognizer:
    """The model, without its weights."""
    mel = make_mel(backbone, sample_rate, bands)
    if backbone == "none":
        return Recognizer(mel, scaled, SpeechNetwork(bands, width, blocks, symbols, dropout))
    network = whisper_encoder.WhisperNetwork(bands, width, blocks, symbols, dropout)
    return Recognizer(mel, whisper_encoder.scaled, network)


def make_mel(backbone: str, sample_rate: int, bands: int) -> MelPower:
    """The first layer, with frames of an even number of samples."""
    window = 2 * round(WINDOW_S * sample_rate / 2)
    top_hz = None if backbone == "none" else whisper_encoder.TOP_HZ
    return MelPower(sample_rate, window, round(HOP_S * sample_rate), bands, top_hz=top_hz)
