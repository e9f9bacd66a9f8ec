"""Networks for sequences, small and with random weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  as everybody writes it

WIDTH, WORDS = 16, 50


class Recurrent(nn.Module):
    """Embeddings, recurrent layers and the last state."""

    def __init__(self, layer: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(WORDS, WIDTH), layer, nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Classes by the last step."""
        steps, _ = self.layer(self.words(ids))
        return self.head(steps[:, -1])


def lstm() -> nn.Module:
    """One LSTM."""
    return Recurrent(nn.LSTM(WIDTH, WIDTH, batch_first=True))


def gru() -> nn.Module:
    """Two layers of GRU."""
    return Recurrent(nn.GRU(WIDTH, WIDTH, 2, batch_first=True))


def rnn() -> nn.Module:
    """The plain one."""
    return Recurrent(nn.RNN(WIDTH, WIDTH, batch_first=True))


def both_ways() -> nn.Module:
    """A bidirectional LSTM."""
    return Recurrent(nn.LSTM(WIDTH, 8, batch_first=True, bidirectional=True))


class Stack(nn.Module):
    """Several recurrent layers one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(4, 8, batch_first=True)
        self.second = nn.GRU(8, 8, batch_first=True)
        self.third = nn.LSTM(8, 2, batch_first=True)

    def forward(self, signal: Tensor) -> Tensor:
        """Two numbers for each step."""
        steps, _ = self.third(self.second(self.first(signal)[0])[0])
        return steps


class Stateful(nn.Module):
    """One step of an LSTM; the client carries the state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 8), nn.Linear(8, 1)

    def forward(self, step: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        """The value, and the next state."""
        h, c = self.cell(step, (h, c))
        return {"value": self.head(h), "next_h": h, "next_c": c}


class TextCnn(nn.Module):
    """Convolutions over words, and the largest of each."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([nn.Conv1d(WIDTH, 8, n) for n in (2, 3, 4)])
        self.head = nn.Linear(24, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Classes."""
        x = self.words(ids).transpose(1, 2)
        return self.head(torch.cat([F.relu(layer(x)).amax(-1) for layer in self.layers], 1))


class CausalConv(nn.Module):
    """Dilated convolutions that see the past alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(4, 4, 2, dilation=2**i) for i in range(3)])

    def forward(self, signal: Tensor) -> Tensor:
        """A signal of the same length."""
        for i, layer in enumerate(self.layers):
            signal = signal + torch.tanh(layer(F.pad(signal, (2**i, 0))))
        return signal


class Encoder(nn.Module):
    """A transformer encoder with a key padding mask, and the mean of the words."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        """A vector for each text."""
        padding = ids == 0
        x = self.encoder(self.words(ids), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(x.dtype)
        return (x * kept).sum(1) / kept.sum(1).clamp(min=1)


class Masked(nn.Module):
    """Attention with a boolean mask that the client sends."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States; True in the mask is padding."""
        return self.attention(states, states, states, key_padding_mask=mask)[0]


class Additive(nn.Module):
    """Attention with an additive mask, written by hand."""

    def forward(self, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
        """Weights of attention."""
        return (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]) + bias).softmax(-1)


class Decoder(nn.Module):
    """Causal self-attention and the next word's scores."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(32, WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores of all words for each place."""
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        parts = self.mix(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        return self.out(x.transpose(1, 2).flatten(2))


class Translator(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.body = nn.Transformer(WIDTH, 2, 1, 1, 32, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """States of the target."""
        return self.body(self.words(source), self.words(target))


class Rotary(nn.Module):
    """Rotary positions and RMS norm, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.register_buffer("rates", 1 / 100 ** (torch.arange(0, WIDTH, 2) / WIDTH))

    def forward(self, states: Tensor) -> Tensor:
        """Products of all places with all."""
        x = self.norm(states)
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.rates
        angles = torch.cat([angles, angles], -1)
        left, right = x.chunk(2, -1)
        x = x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()
        return x @ x.transpose(1, 2)


class LinearAttention(nn.Module):
    """Attention without a softmax, by running sums."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One vector for each place, of its past."""
        products = F.elu(key).add(1).unsqueeze(-1) * value.unsqueeze(-2)
        return (F.elu(query).add(1).unsqueeze(-1) * products.cumsum(1)).sum(-2)


class Speech(nn.Module):
    """Convolutions that shorten, a GRU, and log-probabilities for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv1d(8, 16, 3, 2, 1)
        self.layer, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 6)

    def forward(self, features: Tensor) -> Tensor:
        """Scores of letters."""
        steps, _ = self.layer(F.relu(self.body(features)).transpose(1, 2))
        return self.head(steps).log_softmax(-1)
