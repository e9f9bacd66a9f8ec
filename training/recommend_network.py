"""The networks of recommend.py: self-attention over a history, with times, ratings and facts."""

import math

import movielens
import torch
from movielens import ITEMS, LONGEST
from torch import nn
from torch.nn import functional

from marship.errors import UsageError

FIRST_S, WEEK_S, WEEKS = 874_724_710, 604_800, 32
"""MovieLens-100k was collected in these weeks; other times are clamped to them."""
GAPS = 26
LOWEST = -1e4
"""The score of padding: below every item's, and within the range of 16-bit floats."""


class Block(nn.Module):
    """Pre-norm residual block: causal self-attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.forward_layer = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """X is (batch, length, width); bias, (batch, heads, length, length), is added to scores."""
        batch, length, width = x.shape
        parts = self.query_key_value(self.before(x))
        parts = parts.reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads) + bias
        mixed = weights.softmax(-1) @ value
        x = x + self.dropout(self.merge(mixed.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.forward_layer(self.between(x)))


class Recommender(nn.Module):
    """Scores from a history, oldest first, padded with 0 on the right.

    Attention is causal, positions are relative, and the output is taken at the last event, so
    padding changes nothing. `together`, (1683, 1683), is what each item of the history adds to
    every score, whatever its place: EASE's weights, which are not trained by gradients. Without
    `ease` there is no such table.
    """

    def __init__(self, width: int, blocks: int, heads: int, dropout: float, *, ease: bool) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"width must be a multiple of heads, got {width} and {heads}.")
        self.item = nn.Embedding(ITEMS, width)
        self.fact = nn.Linear(movielens.FACTS, width, bias=False)
        self.rating = nn.Embedding(6, width)
        self.gap = nn.Embedding(GAPS, width)
        self.week = nn.Embedding(WEEKS + 1, width)
        self.distance, self.pause = nn.Embedding(LONGEST, heads), nn.Embedding(GAPS, heads)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.popularity = nn.Parameter(torch.zeros(ITEMS))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("facts", torch.zeros(ITEMS, movielens.FACTS))
        self.register_buffer("together", torch.zeros(ITEMS, ITEMS) if ease else None)
        nn.init.normal_(self.item.weight, std=width**-0.5)
        for part in (self.rating, self.gap, self.week):
            nn.init.normal_(part.weight, std=0.02)
        nn.init.zeros_(self.fact.weight)
        nn.init.zeros_(self.distance.weight)
        nn.init.zeros_(self.pause.weight)

    def forward(
        self,
        items: torch.Tensor,
        ratings: torch.Tensor,
        times: torch.Tensor,
        at: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scores for every item; higher is preferred.

        Args:
            items: int64 (batch, length), 1 to 1682; 0 is padding.
            ratings: float32 (batch, length), 1 to 5; 0 is unknown.
            times: int64 (batch, length), seconds since 1970; 0 is unknown.
            at: bool (batch, length): predict after these events, and without `together`, since
                it knows what follows (for training); by default after each row's last one.

        Returns:
            `scores`, float32 (batch, 1683), or (events in `at`, 1683); that of padding is below
            all others, but for training means nothing.
        """
        table = self.item.weight + self.fact(self.facts)
        x = self.dropout(functional.embedding(items, table) + self._event_features(ratings, times))
        bias = self._attention_bias(times)
        for block in self.blocks:
            x = block(x, bias)
        if at is not None:
            return {"scores": functional.linear(self.norm(x[at]), table, self.popularity)}
        last = ((items > 0).sum(1) - 1).clamp(min=0)
        x = x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
        scores = functional.linear(self.norm(x), table, self.popularity)
        if self.together is not None:
            scores = scores + torch.zeros_like(scores).scatter(1, items, 1.0) @ self.together
        # at the end: a range that LOWEST is part of leaves int8 no steps for the others
        return {"scores": torch.cat([torch.full_like(scores[:, :1], LOWEST), scores[:, 1:]], 1)}

    def _event_features(self, ratings: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Embeddings of each event's rating, time since the event before, and week."""
        before = torch.cat([times[:, :1], times[:, :-1]], 1)
        gap = gap_bucket(before, times)
        week = (((times - FIRST_S) // WEEK_S).clamp(0, WEEKS - 1) + 1) * (times > 0)
        stars = ratings.round().clamp(0, 5).to(torch.int64)
        return self.rating(stars) + self.gap(gap) + self.week(week)

    def _attention_bias(self, times: torch.Tensor) -> torch.Tensor:
        """Bias by distance in events and in time; later events are masked."""
        places = torch.arange(times.shape[1], device=times.device)
        back = places[:, None] - places[None, :]
        pause = self.pause(gap_bucket(times[:, None, :], times[:, :, None]))
        bias = self.distance(back.clamp(min=0)) + pause
        return bias.permute(0, 3, 1, 2).masked_fill(back < 0, LOWEST)


def gap_bucket(earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """Bucket of the logarithm of the seconds between, below GAPS; 0 where a time is unknown."""
    gap = (later - earlier).clamp(min=0).to(torch.float32)
    bucket = torch.log2(gap + 1).to(torch.int64).clamp(max=GAPS - 2) + 1
    return bucket * ((earlier > 0) & (later > 0))
