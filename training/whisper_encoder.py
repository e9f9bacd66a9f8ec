"""Whisper's encoder as the body of a CTC model: it was trained on very many speakers.

Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 2.2. The
modules have the names of transformers' WhisperEncoder, so that its weights fit. It is defined here
because the published one reads 30 seconds and no less, and knows no padding: this one reads
recordings of any length up to that, and a row's output is the same alone and in a batch.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from speech_network import inside
from torch import nn
from torch.nn import functional

from marship.errors import DataError
from marship.pretrained.folder import quiet, reason_of

TINY = "whisper-tiny.en"
"""Its weights are those of ctranslate2_whisper.py."""
TOP_HZ = 8000
"""Highest frequency of the bands, whatever the rate of the samples."""
LONGEST_S = 30
BEFORE, AFTER = 20, 80
"""Silent frames around each recording. Whisper has learned from 30 s with silence at their end; of
single words without it, many are misrecognized."""
POSITIONS = LONGEST_S * 51 + (BEFORE + AFTER) // 2
"""About one for each 20 ms: frames have a whole number of samples, so not all rates have 50."""
HEAD = 64
"""Channels of an attention head, in all published sizes."""
EXPANSION = 4
LEAST_POWER = 1e-10
QUIETEST = 1e-4
"""Lower bound of the power that a recording is normalized by."""
RANGE = 8.0
"""Dynamic range of the spectrogram, in powers of ten: 80 dB below the maximum is clipped."""
LOUDEST = 1.25
"""The spectrogram's maximum: about that of loud speech in Whisper's, whose scale is absolute."""
SILENCE = LOUDEST - RANGE / 4


class Attention(nn.Module):
    """Self-attention; keys have no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width), and which positions are unpadded, (batch, 1, 1, positions)."""
        queries, keys, values = (
            projection(hidden).unflatten(2, (-1, HEAD)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention, then a small perceptron at each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width), and which positions are unpadded, (batch, 1, 1, positions)."""
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), mask)
        wide = functional.gelu(self.fc1(self.final_layer_norm(hidden)))
        return hidden + self.fc2(wide)  # type: ignore[no-any-return]


class WhisperNetwork(nn.Module):
    """Mel spectrograms to log probabilities of the symbols, at half their frame rate.

    Args:
        bands: Bands of the spectrogram.
        width: Channels, a multiple of 64.
        layers: Number of layers.
        symbols: Characters, and the blank of CTC.
        dropout: Share of the last layer's channels dropped in training.
    """

    def __init__(self, bands: int, width: int, layers: int, symbols: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout1d(dropout)
        self.spell = nn.Linear(width, symbols)
        # constants, not weights
        self.register_buffer("positions", sinusoids(POSITIONS, width), persistent=False)

    def freeze(self, layers: int) -> None:
        """Keep the convolutions and so many of the lower layers as they are, unless it is 0."""
        if layers:
            for part in (self.conv1, self.conv2, *self.layers[:layers]):
                part.requires_grad_(False)

    def forward(self, mel: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (batch, bands, frames), and int64 (batch,), the numbers of unpadded frames.

        Returns:
            float32 (batch, frames / 2, symbols), and the numbers of unpadded frames.
        """
        kept, length = (frames + 1) // 2, (mel.shape[-1] + 1) // 2
        mel = torch.where(inside(mel, frames)[:, None] > 0, mel, SILENCE)
        mel = functional.pad(mel, (BEFORE, AFTER), value=SILENCE)
        all_frames = frames + BEFORE + AFTER
        present = inside(mel, all_frames)[:, None]
        hidden = functional.gelu(self.conv1(mel * present)) * present
        hidden = functional.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.places(hidden.shape[1])
        mask = inside(hidden.transpose(1, 2), (all_frames + 1) // 2)[:, None, None] > 0
        for layer in self.layers:
            hidden = layer(hidden, mask)
        hidden = self.layer_norm(hidden[:, BEFORE // 2 : BEFORE // 2 + length]).transpose(1, 2)
        hidden = self.dropout(hidden) * inside(hidden, kept)[:, None]
        logits = self.spell(hidden.transpose(1, 2))
        return logits.float().log_softmax(-1), kept

    def places(self, count: int) -> torch.Tensor:
        """The encoding of that many positions: float32 (count, width).

        In training there may be more than in 30 s, as recordings are joined and slowed down.
        """
        if self.training:
            return sinusoids(count, self.positions.shape[1]).to(self.positions)
        return self.positions[:count]


def scaled(power: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Whisper's logarithmic scale, relative to each recording's maximum: float32, to `LOUDEST`.

    So a recording's loudness changes nothing, unless it is hardly more than silence. The maximum
    is that of frames within the recording: later ones may reach back to its last samples.
    """
    log = power.clamp(min=LEAST_POWER).log10()
    loudest = (power * inside(power, frames)[:, None]).amax((1, 2), keepdim=True)
    return (log - loudest.clamp(min=QUIETEST).log10()).clamp(min=-RANGE) / 4 + LOUDEST


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Whisper's encoding of positions: float32 (length, width)."""
    steps = torch.arange(width // 2) * (-math.log(10_000) / (width // 2 - 1))
    angles = torch.arange(length)[:, None] * steps.exp()
    return torch.cat([angles.sin(), angles.cos()], 1)


def pretrained(name: str) -> dict[str, torch.Tensor]:
    """The encoder's weights under the names of `WhisperNetwork`.

    Args:
        name: `TINY`, a folder of a Whisper in Hugging Face form, or the name of one on the hub.

    Raises:
        DataError: They cannot be fetched or read, or it is no Whisper.
    """
    if name == TINY:
        import ctranslate2_whisper as tiny

        state = tiny.weights()
    else:
        state = by_transformers(name)
    prefix = "model.encoder."
    return {
        key.removeprefix(prefix): weights.float()
        for key, weights in state.items()
        if key.startswith(prefix) and "embed_positions" not in key
    }


def by_transformers(name: str) -> dict[str, torch.Tensor]:
    """All weights of a Whisper in a folder, for which no network is needed, or on the hub.

    Raises:
        DataError: They cannot be read, or it is no Whisper of this form.
    """
    kind = read("AutoConfig", name).model_type
    if kind != "whisper":
        raise refusal(name, f"a model of type {kind}")
    model, report = read("WhisperForConditionalGeneration", name, output_loading_info=True)
    width, heads = model.config.d_model, model.config.encoder_attention_heads
    if missing := [key for key in report["missing_keys"] if key.startswith("model.encoder.")]:
        raise refusal(name, f"no weights {missing[0]}")
    if (width, model.config.encoder_ffn_dim) != (HEAD * heads, EXPANSION * width):
        raise refusal(name, f"{width} channels in {heads} attention heads")
    return dict(model.state_dict())


def read(kind: str, name: str, **options: object) -> Any:  # noqa: ANN401  a class of many
    """What `transformers.<kind>.from_pretrained` reads.

    Raises:
        DataError: It cannot.
    """
    import transformers

    try:
        with quiet():
            return getattr(transformers, kind).from_pretrained(
                name, local_files_only=Path(name).is_dir(), **options
            )
    except Exception as error:  # transformers raises errors of many unrelated types
        raise refusal(name, reason_of(error)) from error


def refusal(name: str, got: str) -> DataError:
    """The error about a backbone that cannot be used."""
    return DataError(
        f"backbone must be {TINY}, none, or a Whisper of OpenAI's form: its folder or its name on "
        f"the Hugging Face hub; got {name}: {got}."
    )


def shape_of(weights: dict[str, torch.Tensor]) -> dict[str, int]:
    """The settings `bands`, `width` and `blocks` of an encoder."""
    width, bands, _ = weights["conv1.weight"].shape
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    return {"bands": bands, "width": width, "blocks": blocks}


def digest_of(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, values in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
