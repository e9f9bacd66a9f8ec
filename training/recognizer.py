"""The small speech model: sound to the probabilities of characters.

Its first layer is the log-mel spectrogram, so that training and serving cannot differ.
"""

import torch
from logmel import MelPower
from speech_network import STRIDE, SpeechNetwork, inside
from torch import nn
from torch.nn import functional

WINDOW_S, HOP_S = 0.025, 0.01
FRAME_S = STRIDE * HOP_S
"""From one answer of the network to the next."""
LEAST_POWER = 1e-10
QUIETEST = 1e-4
"""Sound whose loudest band has less power than this is not made louder."""
NEAR = 40
"""So many frames before and behind are near."""
SOFTEST = 1e-3
"""A soft word's power, as a share of the loudest one's: 30 dB."""
RANGE = 16.0
"""What is fainter than the loudest by more than this, 70 dB in natural logarithms, is not heard."""


class Recognizer(nn.Module):
    """Sound to the probabilities of characters."""

    def __init__(self, mel: MelPower, network: SpeechNetwork) -> None:
        super().__init__()
        self.mel, self.network = mel, network

    def forward(
        self, audio: torch.Tensor, frames: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """float32 (batch, samples), -1 to 1, filled up with 0, to `log_probs` and `frames`.

        With `frames`, `audio` is the power of that many frames in bands, as training changes it.
        Zeros at a row's end are padding, whoever put them there: so no input has to tell.

        Returns:
            `log_probs`, float32 (batch, frames, symbols), of which `frames`, int64 (batch,),
            are no padding.
        """
        if frames is None:
            frames = used(audio) // self.mel.hop + 1
            audio = self.mel(audio)
        log_probs, frames = self.network(scaled(audio, frames), frames)
        return {"log_probs": log_probs, "frames": frames}


def used(audio: torch.Tensor) -> torch.Tensor:
    """How many samples of each row come before its last zeros, int64 (batch,)."""
    places = torch.arange(1, audio.shape[1] + 1, device=audio.device)
    return ((audio != 0) * places).amax(1)


def scaled(power: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """The logarithm of power, from -1 to 1, where 1 is as loud as it gets around a frame.

    People say one word loud and the next one softly: what counts is how a frame differs from
    those near it, and not from the loudest of the recording. Pauses stay silent: nothing counts
    as loud that is fainter than the recording's loudest frame by more than `SOFTEST`.
    """
    loud = (power * inside(power, frames)[:, None]).amax(1, keepdim=True)
    # in two dimensions, of which one is 1: torch.export takes max_pool1d for one of a fixed size
    near = functional.max_pool2d(loud, (1, 2 * NEAR + 1), stride=1, padding=(0, NEAR))
    least = (loud.amax(2, keepdim=True) * SOFTEST).clamp(min=QUIETEST)
    # no sum: the exporter would take one with so small a number for one with zero, and drop it
    faint = power.clamp(min=LEAST_POWER).log() - torch.maximum(near, least).log()
    return faint.clamp(min=-RANGE) * (2 / RANGE) + 1


def build(  # noqa: PLR0913  they are the settings that shape it
    *, sample_rate: int, bands: int, width: int, blocks: int, symbols: int, dropout: float
) -> Recognizer:
    """The model, without its weights."""
    mel = make_mel(sample_rate, bands)
    return Recognizer(mel, SpeechNetwork(bands, width, blocks, symbols, dropout))


def make_mel(sample_rate: int, bands: int) -> MelPower:
    """The first layer, with frames of an even number of samples."""
    window = 2 * round(WINDOW_S * sample_rate / 2)
    return MelPower(sample_rate, window, round(HOP_S * sample_rate), bands)
