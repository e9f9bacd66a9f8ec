"""Small models of many kinds, built by reference as a reader's own would be."""

import torch
from torch import nn
from torch.nn import functional

ITEMS = 30
LONGEST = 12


def mlp(hidden: int = 10) -> nn.Module:
    """Ten numbers in, one out; its single input is called `input`."""
    return nn.Sequential(nn.Linear(10, hidden), nn.ReLU(), nn.Linear(hidden, 1))


class Sequence(nn.Module):
    """A causal transformer over items and ratings that ignores padding on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, 16, padding_idx=0)
        self.places = nn.Embedding(LONGEST, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.scores = nn.Linear(16, ITEMS)

    def forward(self, items: torch.Tensor, ratings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Answer for a batch."""
        length = items.shape[1]
        state = self.items(items) + self.places(torch.arange(length)) + ratings.unsqueeze(-1)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        state = self.encoder(state, mask=mask, src_key_padding_mask=items == 0)
        last = ((items != 0).sum(1) - 1).clamp(min=0)
        return {"scores": self.scores(state[torch.arange(items.shape[0]), last])}


class Digits(nn.Module):
    """A small residual CNN over 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.drop = nn.Dropout()
        self.last = nn.Linear(256, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        state = self.first(image)
        state = functional.max_pool2d(state + self.second(state), 2)
        return self.last(self.drop(state.flatten(1)))


class Recurrent(nn.Module):
    """An LSTM whose outputs are nested, and do not all start with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        """Answer for a batch."""
        states, last = self.lstm(x)
        return {"states": states, "last": last}


class Reader(nn.Module):
    """A GRU that reads its padding, so that padding changes its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return self.gru(self.tokens(tokens))[0][:, -1]


class Mixing(nn.Module):
    """Rows of a batch influence each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x - x.mean(0)


class Random(nn.Module):
    """Another answer each time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x + torch.randn_like(x)


class Branching(nn.Module):
    """A branch on a value, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        if x.sum() > 0:
            return x
        return -x


class FourRows(nn.Module):
    """Takes four rows, never more or less."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x.reshape(4, 5) * 2


class Counting(nn.Module):
    """Counts its rows with len, which a plain trace makes a constant of the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x + torch.arange(len(x)).unsqueeze(1)


class Several(nn.Module):
    """Outputs in a tuple, one of them of whole numbers, one named as an input elsewhere."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Answer for a batch."""
        values, indices = x.topk(2)
        return x * 2, (values, indices)


class Echo(nn.Module):
    """An output that has the name of an input."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Answer for a batch."""
        return {"x": x + 1}


class Stacked(nn.Module):
    """Two kinds of recurrent layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return self.gru(self.lstm(x)[0])[0]


class Single(nn.Module):
    """Another answer where a batch has one row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x * 2 if x.shape[0] == 1 else x


class Squeezed(nn.Module):
    """Removes every axis of size 1, that of a batch of one row too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x.mean(1, keepdim=True).squeeze()


class Dropped(nn.Module):
    """Removes the axis of a batch of one row by its number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        return x.squeeze(0)


class Tiny(nn.Module):
    """Outputs in other units."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer for a batch."""
        return x * 1e-5, x


class Encoder(nn.Module):
    """A transformer that masks its padding and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        mask = tokens == 0
        state = self.encoder(self.tokens(tokens), src_key_padding_mask=mask)
        return (state * ~mask.unsqueeze(-1)).sum(1)


def failing() -> nn.Module:
    """A build that raises."""
    raise RuntimeError("the data is on another machine")


def compiled() -> nn.Module:
    """A build that gives a module wrapped by torch.compile."""
    return torch.compile(mlp())


def traced() -> nn.Module:
    """A build that gives a module whose Python code is gone."""
    return torch.jit.trace(mlp(), torch.zeros(2, 10))


def no_model() -> int:
    """A build that gives no model."""
    return 3


def judge(outputs: dict[str, object], targets: dict[str, object]) -> dict[str, float]:
    """Accuracy of `Digits`."""
    return {"accuracy": float((outputs["output"].argmax(1) == targets["label"]).mean())}


def failing_judge(outputs: dict[str, object], targets: dict[str, object]) -> dict[str, float]:
    """A judge that looks for a target that is not there."""
    return {"accuracy": float(targets["missing"]) + len(outputs)}


class Spiked(nn.Module):
    """A CNN over uint8 pictures: normalised in the graph, and its answers are probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(256, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8, shape (batch, 8, 8, 1), 0 to 16, to probabilities."""
        state = image.permute(0, 3, 1, 2).float() * 0.125 - 1
        state = functional.relu(self.first(state))
        state = functional.relu(self.third(functional.relu(self.second(state))))
        state = functional.max_pool2d(state, 2).flatten(1)
        return {"output": self.last(state).softmax(1)}

    def spike(self, factor: float) -> None:
        """Make one channel of the second layer's so many times larger; no answer changes."""
        with torch.no_grad():
            self.second.weight[0] *= factor
            self.second.bias[0] *= factor
            self.third.weight[:, 0] /= factor


class Attending(nn.Module):
    """Attention by torch's operator itself, with one mask for all queries."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Mix rows of x, (batch, length, width), that keep, bool (batch, length), has."""
        rows, mask = x[:, None], keep[:, None, None, :]
        attend = torch.ops.aten.scaled_dot_product_attention
        mixed: torch.Tensor = attend(rows, rows, rows, mask)
        return mixed.masked_fill(~keep.any(1)[:, None, None, None], 0.0)
