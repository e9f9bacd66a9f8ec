"""Networks for vectors, tables, sets and graphs, and outputs of many forms."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  as everybody writes it


def linear() -> nn.Module:
    """The smallest."""
    return nn.Linear(4, 2)


def mlp() -> nn.Module:
    """With dropout, which serves as nothing."""
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))


def normalized() -> nn.Module:
    """Batch norm, layer norm, and norms of weights."""
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4))
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), weighted, nn.SiLU(), nn.LayerNorm(8), spectral
    )


class Squeezed(nn.Module):
    """A regressor that drops the axis of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One number for each row."""
        return self.layer(x).squeeze(-1)


class SqueezedAll(Squeezed):
    """The same with squeeze() of all axes of one."""

    def forward(self, x: Tensor) -> Tensor:
        """One number for each row."""
        return self.layer(x).squeeze()


class Nested(nn.Module):
    """A dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> dict[str, object]:
        """Parts of one vector."""
        first, second, third = self.layer(x).chunk(3, -1)
        return {"first": first, "rest": (second, third)}


class Forms(nn.Module):
    """Outputs of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, classes, whether one is sure, and the two best."""
        scores = self.layer(x).softmax(-1)
        best, place = scores.max(-1)
        return scores, place, best > 0.5, scores.topk(2).indices


class Bfloat(nn.Module):
    """Weights and output of bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """A vector."""
        return self.layer(x.to(torch.bfloat16))


class Half(nn.Module):
    """Casts to float16 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """A vector."""
        return self.layer(x).half().float().tanh()


def double() -> nn.Module:
    """float64 throughout."""
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


class Bag(nn.Module):
    """Means of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(30, 8, mode="mean"), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Classes."""
        return self.head(self.bag(ids))


class WideAndDeep(nn.Module):
    """Numbers and categories of a table's row."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n, 4) for n in (5, 9)])
        self.deep = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 1))
        self.wide = nn.Linear(3, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """A probability."""
        parts = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        return torch.sigmoid(self.deep(torch.cat([numbers, *parts], 1)) + self.wide(numbers))


class Factors(nn.Module):
    """A factorization machine."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factors = nn.Linear(12, 1), nn.Parameter(torch.randn(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Products of all pairs (Rendle 2010, lemma 3.1)."""
        pairs = (x @ self.factors) ** 2 - (x**2) @ (self.factors**2)
        return self.linear(x) + 0.5 * pairs.sum(-1, keepdim=True)


class Towers(nn.Module):
    """Two towers, compared by their angle."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 8), nn.Linear(5, 8)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """A similarity from -1 to 1."""
        return F.cosine_similarity(self.user(user), self.item(item), dim=-1)


class Coder(nn.Module):
    """A variational autoencoder, which serves its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rebuilt vector, and the spread."""
        mean, spread = self.down(x).chunk(2, -1)
        return self.up(mean), spread.exp()


class Flow(nn.Module):
    """A coupling layer with its log-determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Mish(), nn.Linear(16, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The changed vector, and how its density changes."""
        kept, changed = x.chunk(2, -1)
        scale, shift = self.net(kept).chunk(2, -1)
        return torch.cat([kept, changed * scale.exp() + shift], -1), scale.sum(-1)


class Experts(nn.Module):
    """A mixture with the best two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.Parameter(torch.randn(4, 6, 6) / 2)

    def forward(self, x: Tensor) -> Tensor:
        """A vector."""
        weights, chosen = self.gate(x).topk(2, -1)
        made = torch.einsum("bi,eij->bej", x, self.experts)
        picked = made.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 6))
        return (picked * weights.softmax(-1).unsqueeze(-1)).sum(1)


class DeepSet(nn.Module):
    """Members of a set with a mask, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 8), nn.Linear(16, 2)

    def forward(self, members: Tensor, present: Tensor) -> Tensor:
        """Two numbers for each set."""
        x = F.relu(self.each(members)) * present.unsqueeze(-1)
        return self.head(torch.cat([x.sum(1), x.amax(1)], -1))


class DenseGraph(nn.Module):
    """Graph convolutions over matrices of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, nodes: Tensor, neighbours: Tensor) -> Tensor:
        """Two numbers for each node."""
        share = neighbours / neighbours.sum(-1, keepdim=True).clamp(min=1)
        return self.second(share @ F.relu(self.first(share @ nodes)))


class Splines(nn.Module):
    """Learned functions over a grid of radial bases."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 8))
        self.weights = nn.Parameter(torch.randn(5, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Three numbers."""
        bases = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2))
        return torch.einsum("big,igo->bo", bases, self.weights)


class Rules(nn.Module):
    """Branches by values: where, clamp, round and remainder."""

    def forward(self, x: Tensor) -> Tensor:
        """A vector."""
        x = torch.where(x > 0, x.clamp(max=2), x.abs().sqrt())
        return (x * 8).floor() % 3 + x.sort(-1, descending=True).values


class Normalizer(nn.Module):
    """Statistics of each row."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The row in units of its spread, and both."""
        mean, spread = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return {"row": (x - mean) / (spread + 1e-5), "mean": mean, "spread": spread}
