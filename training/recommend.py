"""Recommend films from a person's history: a self-attentive sequential model.

    python training/recommend.py
    python training/recommend.py --split time --run-dir runs/recommend-time

SASRec (Kang and McAuley 2018) with full softmax, and with ratings, times, and the films' genres
and years as further inputs. It maps a history to a score for each of 1,682 films, so new users
need no training. docs/recommend.md shows what each part contributes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import movielens
import numpy as np
import torch
from movielens import ITEMS, LONGEST, TOP, History, Split, inputs_of, judge, targets_of
from torch import nn
from torch.nn import functional

from marship import console
from marship.contract import Array, Arrays
from marship.errors import UsageError
from marship.fit import run
from marship.fit.loop import Task, fit, start, steps, warmup_cosine
from marship.fit.recipe import Recipe
from marship.settings import flags, setting
from marship.storage import write_json

FIRST_S, WEEK_S, WEEKS = 874_724_710, 604_800, 32
"""MovieLens-100k was collected in these weeks; other times are clamped to them."""
GAPS = 26
LOWEST = -1e4
"""The score of padding: below every item's, and within the range of 16-bit floats."""
BATCH = 128
ITEMS_FILE = "items.json"
REQUEST_FILE = "request.json"
GOLDEN_REQUEST_FILE = "golden_request.json"
"""Goes into the archive, so it is nobody's: the first items of the catalogue."""


@dataclass(frozen=True)
class Settings(run.RunSettings):
    """The settings of every run, with this recipe's defaults, and its own."""

    run_dir: Path = setting(Path("runs/recommend"), "folder for everything that the run writes")
    epochs: int = setting(40, "passes over the training data", minimum=1)
    batch_size: int = setting(32, "people for each step", minimum=1)
    learning_rate: float = setting(5e-3, "largest step size of AdamW")
    weight_decay: float = setting(0.01, "of matrices; biases and norms have none")
    width: int = setting(64, "size of an item's vector", minimum=2)
    blocks: int = setting(2, "attention blocks", minimum=1)
    heads: int = setting(2, "attention heads in a block", minimum=1)
    dropout: float = setting(0.2, "share of activations dropped", minimum=0, maximum=0.9)
    smoothing: float = setting(0.1, "share of the targets that is uniform", minimum=0, maximum=0.9)
    unknown: float = setting(
        0.1, "share of histories trained without ratings; also without times", minimum=0, maximum=1
    )
    average: float = setting(0.99, "decay of the weights' moving average", minimum=0, maximum=1)
    split: str = setting("last", "last: leave one out; time: one point in time")
    data_dir: Path | None = setting(None, "folder with ml-100k.inter and .item; else fetched")


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
    padding changes nothing.
    """

    def __init__(self, width: int, blocks: int, heads: int, dropout: float) -> None:
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
            at: bool (batch, length): predict after these events (for training); by default
                after each row's last one.

        Returns:
            `scores`, float32 (batch, 1683), or (events in `at`, 1683).
        """
        table = self.item.weight + self.fact(self.facts)
        x = self.dropout(functional.embedding(items, table) + self._event_features(ratings, times))
        bias = self._attention_bias(times)
        for block in self.blocks:
            x = block(x, bias)
        if at is None:
            last = ((items > 0).sum(1) - 1).clamp(min=0)
            x = x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
        else:
            x = x[at]
        scores = self.norm(x) @ table.T + self.popularity
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


def build(width: int, blocks: int, heads: int, dropout: float) -> nn.Module:
    """The model, without its weights."""
    return Recommender(width, blocks, heads, dropout)


def make_loss(smoothing: float) -> Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]:
    """Cross entropy of the next item among the unseen ones, with label smoothing."""

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        at = batch["next"] > 0
        scores = model(batch["items"], batch["ratings"], batch["times"], at=at)["scores"]
        seen = seen_at(batch["items"], batch["earlier"], at)
        hit = scores.gather(1, batch["next"][at][:, None])[:, 0]
        total = scores.masked_fill(seen, LOWEST).logsumexp(1)
        mean = scores.masked_fill(seen, 0).sum(1) / (~seen).sum(1)
        return (total - (1 - smoothing) * hit - smoothing * mean).mean()

    return loss


def seen_at(items: torch.Tensor, earlier: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Mask of the items seen up to and including each event in `at`; padding counts as seen.

    Args:
        items: int64 (batch, length).
        earlier: bool (batch, 1683), items seen before the row's first event.
        at: bool (batch, length).

    Returns:
        bool (events in `at`, 1683).
    """
    length = items.shape[1]
    places = torch.arange(length, dtype=torch.int16, device=items.device).expand_as(items)
    first = torch.where(earlier, -1, length).to(torch.int16)
    first = first.scatter_reduce(1, items, places, "amin")
    first[:, 0] = -1
    rows, columns = at.nonzero(as_tuple=True)
    return first[rows] <= columns[:, None].to(torch.int16)


def predict(model: nn.Module, inputs: Arrays) -> Array:
    """Scores, float32 (rows, 1683); rows of similar length share a batch, to reduce padding."""
    device = next(model.parameters()).device
    lengths = (inputs["items"] > 0).sum(1)
    scores = np.empty((len(lengths), ITEMS), np.float32)
    order = np.argsort(lengths, kind="stable")
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        longest = max(1, lengths[rows].max())
        part = (torch.from_numpy(array[rows, :longest]).to(device) for array in inputs.values())
        with torch.no_grad():
            scores[rows] = model(*part)["scores"].float().cpu().numpy()
    return scores


def evaluate(model: nn.Module, histories: Sequence[History]) -> dict[str, float]:
    """HR@10 and NDCG@10 of predicting each history's last event from those before it."""
    inputs = inputs_of([h[:-1] for h in histories])
    return judge({"scores": predict(model, inputs)}, targets_of(histories))


def make_task(model: Recommender, split: Split, settings: Settings, digest: str) -> Task:
    """Training data, loss, optimizer and validation."""
    train = movielens.RandomWindows([h for h in split.train if len(h) >= 2], settings.unknown)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    return Task(
        model=model,
        train=train,
        loss=make_loss(settings.smoothing),
        optimizer=optimizer,
        data_digest=digest,
        schedule=warmup_cosine(optimizer, warmup=100, total=steps(settings, train), floor=0.02),
        clip_norm=1.0,
        average=settings.average,
        validate=lambda model: evaluate(model, split.valid),
        metric="ndcg@10",
        collate=movielens.collate,
    )


def measure(model: nn.Module, split: Split) -> dict[str, dict[str, float]]:
    """The final metrics: the model, the model with inputs hidden, and baselines."""
    targets = targets_of(split.test)
    results = {}
    for name, hidden in {
        "model": (),
        "model, no ratings": ("ratings",),
        "model, no times": ("times",),
        "model, only items": ("ratings", "times"),
    }.items():
        inputs = inputs_of([h[:-1] for h in split.test])
        inputs |= {key: np.zeros_like(inputs[key]) for key in hidden}
        results[name] = judge({"scores": predict(model, inputs)}, targets)
    results["EASE"] = movielens.ease(split.known, split.test)
    results["popularity"] = movielens.popularity(split.known, split.test)
    return results


def arrays_of(split: Split) -> dict[str, Arrays]:
    """Inputs for the later steps: examples, calibration and held-out data."""
    heldout = inputs_of([h[:-1] for h in split.test])
    targets = {f"target/{name}": array for name, array in targets_of(split.test).items()}
    return {
        "examples": {name: array[:64] for name, array in heldout.items()},
        "calibration": inputs_of(split.train[:256]),
        "heldout": heldout | targets,
    }


def request_of(history: History) -> dict[str, object]:
    """A request with the latest events, for handlers/recommend_handler.py."""
    latest = history[-20:]
    return {
        "history": latest.items.tolist(),
        "ratings": latest.ratings.tolist(),
        "times": latest.times.tolist(),
        "k": TOP,
    }


@flags(Settings)
def main(settings: Settings) -> None:
    """Train the recommender on MovieLens-100k."""
    splits = {"last": movielens.split_last, "time": movielens.split_time}
    if settings.split not in splits:
        raise UsageError(f"split must be one of {', '.join(splits)}, got {settings.split!r}.")
    accelerator = start(settings)
    with accelerator.main_process_first():
        folder = settings.data_dir or movielens.fetch()
    digest = movielens.digest(folder)
    if run.is_finished(settings, digest):
        return
    split = splits[settings.split](movielens.read_histories(folder))
    items = movielens.read_items(folder)

    model = Recommender(settings.width, settings.blocks, settings.heads, settings.dropout)
    model.facts.copy_(torch.from_numpy(movielens.fact_table(items)))
    fitted = fit(make_task(model, split, settings, digest), settings, accelerator)
    if not accelerator.is_main_process:
        return

    results = measure(model, split)
    recipe = Recipe(
        name="recommend",
        build="training/recommend.py:build",
        handler="recommend_handler.py",
        judge="training/recommend.py:judge",
        metric="ndcg@10",
        budget=0.002,
        pad_values={"items": 0, "ratings": 0, "times": 0},
        bounds={"length": (1, LONGEST)},
        assets=(ITEMS_FILE,),
        requests=(GOLDEN_REQUEST_FILE,),
        evidence={
            "data": "MovieLens-100k, from the recbole 1.2.1 wheel; not for redistribution",
            "data_digest": digest,
            "split": settings.split,
            "test_users": len(split.test),
        },
    )
    write_json(settings.run_dir / ITEMS_FILE, items)
    write_json(settings.run_dir / REQUEST_FILE, request_of(split.test[0][:-1]))
    first = sorted(map(int, items))[:3]
    write_json(settings.run_dir / GOLDEN_REQUEST_FILE, {"history": first, "k": 3})
    metrics = {"test": results, "test_users": len(split.test)}
    run.finish(settings, fitted, recipe, metrics=metrics, arrays=arrays_of(split))
    print_metrics(results, len(split.test))


def print_metrics(results: dict[str, dict[str, float]], users: int) -> None:
    """Print the metrics as a table."""
    from rich.table import Table

    table = Table("", "HR@10", "NDCG@10", title=f"Next film of {users} people")
    for name, row in results.items():
        table.add_row(name, f"{row['hr@10']:.3f}", f"{row['ndcg@10']:.3f}")
    console.out.print(table)


if __name__ == "__main__":
    console.run_recipe(main)
