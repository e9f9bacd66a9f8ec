"""Whisper as one module, from samples to tokens: spectrogram, encoder and decoding loop.

Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision. Weights, layers
and encoder are those of transformers' WhisperForConditionalGeneration. Implemented here is what
runs once for each token: the decoder with a key-value cache of fixed size, in a loop that
torch.onnx.export turns into ONNX's Loop, and greedy decoding by the rules of OpenAI's
whisper/decoding.py. So one graph maps samples to tokens, and rows of a batch may have different
lengths.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from logmel import MelPower
from torch import nn
from torch._higher_order_ops import while_loop
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

RATE = 16_000
WINDOW, HOP = 400, 160
SAMPLES = 30 * RATE
"""The encoder's input size; shorter input is padded with silence."""
LEAST_POWER = 1e-10
RANGE = 8.0
"""Dynamic range of the spectrogram, in powers of ten: 80 dB below the maximum is clipped."""
FRAME_S = 0.02
"""Duration of one encoder position."""
LEAST_DEVIATION = 1e-4
SHARPNESS = 8.0
"""Scale of the standardized attention before the softmax over positions."""


@dataclass(frozen=True)
class Rules:
    """Decoding rules, as token ids.

    Attributes:
        prefix: The decoder's first tokens.
        end: End of text.
        no_speech: Its probability after the first token is the probability of silence.
        banned: Never chosen.
        banned_first: Not chosen for the first token.
        aligned: Layers and heads of the decoder whose attention follows the audio.
        most: Maximum number of output tokens.
    """

    prefix: tuple[int, ...]
    end: int
    no_speech: int
    banned: tuple[int, ...]
    banned_first: tuple[int, ...]
    aligned: tuple[tuple[int, int], ...]
    most: int


class Spectrogram(nn.Module):
    """The log-mel spectrogram of transformers' WhisperFeatureExtractor."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.mel = MelPower(RATE, WINDOW, HOP, bands, edge="reflect")

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """float32 (batch, samples) to (batch, bands, 3000)."""
        silence = audio.new_zeros(audio.shape[0], SAMPLES)
        filled = torch.cat([audio, silence], 1)[:, :SAMPLES]
        log = self.mel(filled)[:, :, :-1].clamp(min=LEAST_POWER).log10()
        loudest = log.amax((1, 2), keepdim=True)
        return (torch.maximum(log, loudest - RANGE) + 4) / 4


class State(NamedTuple):
    """State of the decoding loop.

    Attributes:
        place: int64 (), index of the last token.
        tokens: int64 (batch, length), filled with the end token.
        log_probs: float32 (batch, length), of the chosen tokens.
        no_speech: float32 (batch,).
        ended: bool (batch,).
        keys: Cached keys of each layer, float32 (batch, heads, length - 1, width).
        values: Cached values, likewise.
        aligned: Queries of the aligned heads, float32 (batch, heads, length - 1, width).
    """

    place: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor
    no_speech: torch.Tensor
    ended: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    aligned: torch.Tensor


class Transcriber(nn.Module):
    """Samples to tokens.

    Attributes:
        finished_rows_stay: Decoding goes on until all rows of a call have ended, and adds nothing
            to those that have; see docs/export.md.
    """

    finished_rows_stay = True

    def __init__(self, whisper: WhisperForConditionalGeneration, rules: Rules) -> None:
        super().__init__()
        config = whisper.config
        self.rules, self.heads = rules, config.decoder_attention_heads
        self.spectrogram = Spectrogram(config.num_mel_bins)
        self.encoder, self.decoder = whisper.model.encoder, whisper.model.decoder
        # constants, not weights
        self.register_buffer("prefix", torch.tensor(rules.prefix), persistent=False)
        for name in ("banned", "banned_first"):
            mask = _mask(getattr(rules, name), config.vocab_size)
            self.register_buffer(name, mask, persistent=False)

    def forward(self, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """float32 (batch, samples), -1 to 1, padded with 0.

        Returns:
            `tokens`, int64 (batch, most), padded with the end token; `log_probs`, float32
            (batch, most), of each token, 0 after the first end token; `times`, float32
            (batch, most), the second at which each is spoken; `no_speech`, float32 (batch,),
            the probability of silence.
        """
        encoded = self.encoder(self.spectrogram(audio)).last_hidden_state
        cross = self.cross(encoded)

        def is_running(*state: torch.Tensor) -> torch.Tensor:
            last = State(*state)
            return (last.place < last.tokens.shape[1] - 1) & ~last.ended.all()

        def step(*state: torch.Tensor) -> State:
            return tuple(self.step(State(*state), cross))

        state = self.initial_state(encoded)
        if torch.compiler.is_exporting():
            state = while_loop(is_running, step, tuple(state))
        else:
            while is_running(*state):
                state = step(*state)
        last, start = State(*state), len(self.rules.prefix)
        return {
            "tokens": last.tokens[:, start:],
            "log_probs": last.log_probs[:, start:],
            "times": self.times(last, cross, used_lengths(audio)),
            "no_speech": last.no_speech,
        }

    def initial_state(self, encoded: torch.Tensor) -> State:
        """The state with only the first token of the prefix."""
        batch, length = encoded.shape[0], len(self.rules.prefix) + self.rules.most
        tokens = torch.full((batch, length), self.rules.end, dtype=torch.int64)
        tokens[:, 0] = self.rules.prefix[0]
        width, layers = encoded.shape[2] // self.heads, self.decoder.layers
        caches = [
            tuple(encoded.new_zeros(batch, self.heads, length - 1, width) for _ in layers)
            for _ in ("keys", "values")
        ]
        return State(
            torch.zeros((), dtype=torch.int64),
            tokens,
            encoded.new_zeros(batch, length),
            encoded.new_zeros(batch),
            torch.zeros(batch, dtype=torch.bool),
            *caches,
            encoded.new_zeros(batch, len(self.rules.aligned), length - 1, width),
        )

    def step(self, state: State, cross: list[tuple[torch.Tensor, torch.Tensor]]) -> State:
        """Decode one token."""
        rules, place = self.rules, state.place
        logits, *cache = self.decode(state, cross)
        first = logits.softmax(1)[:, rules.no_speech]
        banned = self.banned | (self.banned_first & (place == len(rules.prefix) - 1))
        best, chosen = logits.masked_fill(banned, -torch.inf).log_softmax(1).max(1)
        given = self.prefix.index_select(0, (place + 1).clamp(max=len(rules.prefix) - 1)[None])
        is_given = place + 1 < len(rules.prefix)
        chosen = torch.where(is_given, given, torch.where(state.ended, rules.end, chosen))
        best = torch.where(is_given | state.ended, 0.0, best)
        here = torch.arange(state.tokens.shape[1]) == place + 1
        return State(
            place + 1,
            torch.where(here, chosen[:, None], state.tokens),
            torch.where(here, best[:, None], state.log_probs),
            torch.where(place == 0, first, state.no_speech),
            state.ended | (chosen == rules.end),
            *cache,
        )

    def decode(
        self, state: State, cross: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], torch.Tensor]:
        """Logits of the next token, and keys, values and aligned queries including this one."""
        decoder, place = self.decoder, state.place[None]
        token = state.tokens.index_select(1, place)
        x = decoder.embed_tokens(token) + decoder.embed_positions.weight.index_select(0, place)
        slots = torch.arange(state.aligned.shape[2])
        here, later = (slots == place)[:, None], slots > place
        keys, values, queries = [], [], []
        for layer, old_keys, old_values, encoded in zip(
            decoder.layers, state.keys, state.values, cross, strict=True
        ):
            own, other = layer.self_attn, layer.encoder_attn
            normed = layer.self_attn_layer_norm(x)
            keys.append(torch.where(here, self.split(own.k_proj(normed)), old_keys))
            values.append(torch.where(here, self.split(own.v_proj(normed)), old_values))
            scores = self.queries(own, normed) @ keys[-1].transpose(2, 3)
            x = x + self.attend(own, scores.masked_fill(later, -torch.inf), values[-1])
            queries.append(self.queries(other, layer.encoder_attn_layer_norm(x)))
            x = x + self.attend(other, queries[-1] @ encoded[0], encoded[1])
            wide = functional.gelu(layer.fc1(layer.final_layer_norm(x)))
            x = x + layer.fc2(wide)
        logits = functional.linear(decoder.layer_norm(x)[:, 0], decoder.embed_tokens.weight)
        aligned = torch.stack([queries[layer][:, head] for layer, head in self.rules.aligned], 1)
        return logits, tuple(keys), tuple(values), torch.where(here, aligned, state.aligned)

    def queries(self, attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """(batch, 1, width) to (batch, heads, 1, width of one)."""
        return self.split(attention.q_proj(x) * attention.scaling)

    def attend(
        self, attention: nn.Module, scores: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Attention output (batch, 1, width) for scores (batch, heads, 1, positions)."""
        return attention.out_proj((scores.softmax(3) @ values).transpose(1, 2).flatten(2))

    def times(
        self, last: State, cross: list[tuple[torch.Tensor, torch.Tensor]], samples: torch.Tensor
    ) -> torch.Tensor:
        """The second at which each token is spoken, by the aligned heads, (batch, most).

        As in OpenAI's whisper/timing.py, attention is standardized over the tokens and averaged
        over the heads. A soft maximum over the positions replaces dynamic time warping: its
        result changes continuously with the numbers.
        """
        start = len(self.rules.prefix)
        keys = torch.stack([cross[layer][0][:, head] for layer, head in self.rules.aligned], 1)
        scores = last.aligned[:, :, start - 1 :] @ keys
        seconds = torch.arange(keys.shape[3]) * FRAME_S
        silent = (seconds * RATE > samples[:, None])[:, None]
        attention = scores.masked_fill(silent[:, None], -torch.inf).softmax(3)
        is_text = (last.tokens[:, start:] != self.rules.end)[:, :, None]
        count = is_text.sum(1, keepdim=True).clamp(min=1)[:, None]
        mean = (attention * is_text[:, None]).sum(2, keepdim=True) / count
        variance = ((attention - mean).square() * is_text[:, None]).sum(2, keepdim=True) / count
        standardized = ((attention - mean) / (variance.sqrt() + LEAST_DEVIATION)).mean(1)
        shares = (SHARPNESS * standardized).masked_fill(silent, -torch.inf).softmax(2)
        return (shares * is_text) @ seconds

    def cross(self, encoded: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each layer the keys, transposed, and the values of the encoder's output."""
        return [
            (
                self.split(layer.encoder_attn.k_proj(encoded)).transpose(2, 3).contiguous(),
                self.split(layer.encoder_attn.v_proj(encoded)).contiguous(),
            )
            for layer in self.decoder.layers
        ]

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width) to (batch, heads, positions, width of one)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def used_lengths(audio: torch.Tensor) -> torch.Tensor:
    """Number of samples of each row before its trailing zeros, int64 (batch,)."""
    positions = torch.arange(1, audio.shape[1] + 1)
    return ((audio != 0) * positions).amax(1)


def _mask(ids: tuple[int, ...], size: int) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(ids)] = True
    return mask
