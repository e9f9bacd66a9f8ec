"""Recommend films from a person's history: a self-attentive sequential model.

    python training/recommend.py
    python training/recommend.py --split time --run-dir runs/recommend-time

SASRec (Kang and McAuley 2018) with full softmax, and with ratings, times, and the films' genres
and years as further inputs. It maps a history to a score for each of 1,682 films, so new users
need no training. docs/recommend.md shows what each part contributes.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import movielens
import numpy as np
import ranking
import torch
from movielens import ITEMS, LONGEST, History, Split, inputs_of
from ranking import TOP, judge, targets_of
from recommend_network import Recommender
from torch import nn

from marship import console
from marship.contract import Array, Arrays
from marship.errors import UsageError
from marship.fit import run
from marship.fit.loop import Task, fit, start, steps, warmup_cosine
from marship.fit.recipe import Recipe
from marship.settings import flags, setting
from marship.storage import write_json

NEVER = -100.0
"""The score of seen items in the loss: below all, and small enough to be summed in float32."""
BATCH = 128
SPLITS = {"last": movielens.split_last, "time": movielens.split_time}
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
    ease: float = setting(3.0, "weight of EASE's scores beside the network's; 0: none", minimum=0)
    penalty: float = setting(30.0, "of EASE's weights; more is smoother", minimum=0.01)
    average: float = setting(0.99, "decay of the weights' moving average", minimum=0, maximum=1)
    split: str = setting("last", "last: leave one out; time: one point in time")
    judged: str = setting("test", "test: the last event; valid: the one before, to choose settings")
    skip_latest: bool = setting(False, "do not train on the event before the judged one")
    data_dir: Path | None = setting(None, "folder with ml-100k.inter and .item; else fetched")


def build(width: int, blocks: int, heads: int, dropout: float, ease: float) -> Recommender:
    """The model, without its weights."""
    return Recommender(width, blocks, heads, dropout, ease=ease > 0)


def make_loss(smoothing: float) -> Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]:
    """Cross entropy of the next item among the unseen ones, with label smoothing."""

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        at = batch["next"] > 0
        scores = model(batch["items"], batch["ratings"], batch["times"], at=at)["scores"]
        seen = seen_at(batch["items"], batch["earlier"], at)
        # in few passes over scores, which are most of a step's time
        logs = scores.masked_fill(seen, NEVER).log_softmax(1)
        hit = logs.gather(1, batch["next"][at][:, None])[:, 0]
        count = seen.sum(1)  # padding is seen, and all seen items have its value
        mean = (logs.sum(1) - count * logs[:, 0]) / (ITEMS - count)
        return -((1 - smoothing) * hit + smoothing * mean).mean()

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
        # the last epoch's weights are kept: none is chosen by what judges it
        validate=None if settings.judged == "test" else lambda m: evaluate(m, split.judged),
        collate=movielens.collate,
    )


def measure(model: Recommender, split: Split, genres: Array) -> dict[str, dict[str, float]]:
    """The final metrics: the model, parts of it, the model with inputs hidden, and baselines."""

    def hiding(*hidden: str, model: nn.Module = model) -> ranking.Scorer:
        def score(histories: Sequence[History]) -> Array:
            inputs = inputs_of(histories)
            return predict(model, inputs | {name: np.zeros_like(inputs[name]) for name in hidden})

        return score

    network = copy.deepcopy(model)
    network.together = None
    scorers = {
        "model": hiding(),
        "its network alone": hiding(model=network),
        "model, no ratings": hiding("ratings"),
        "model, no times": hiding("times"),
        "model, only items": hiding("ratings", "times"),
        "EASE": ranking.ease(split.train),
        "popularity": ranking.popularity(split.train),
    }
    return {name: ranking.measure(scorer, split, genres) for name, scorer in scorers.items()}


def check(settings: Settings) -> None:
    """Refuse unknown values of `split` and `judged`.

    Raises:
        UsageError: `split` or `judged` is unknown.
    """
    for name, known in {"split": SPLITS, "judged": ("test", "valid")}.items():
        if (given := getattr(settings, name)) not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, got {given!r}.")


def split_of(histories: list[History], settings: Settings) -> Split:
    """What is learned and what is judged."""
    split = SPLITS[settings.split](histories, final=settings.judged == "test")
    if settings.skip_latest:
        split = replace(split, train=[h[:-1] for h in split.train])
    return split


def arrays_of(split: Split) -> dict[str, Arrays]:
    """Inputs for the later steps: examples, calibration and held-out data."""
    heldout = inputs_of([h[:-1] for h in split.judged])
    targets = {f"target/{name}": array for name, array in targets_of(split.judged).items()}
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
    check(settings)
    accelerator = start(settings)
    with accelerator.main_process_first():
        folder = settings.data_dir or movielens.fetch()
    digest = movielens.digest(folder)
    if run.is_finished(settings, digest):
        return
    histories = movielens.read_histories(folder)
    split = split_of(histories, settings)
    items = movielens.read_items(folder)

    model = build(settings.width, settings.blocks, settings.heads, settings.dropout, settings.ease)
    facts = torch.from_numpy(movielens.fact_table(items))
    model.get_buffer("facts").copy_(facts)
    if settings.ease:
        weights = ranking.ease_weights(split.train, settings.penalty)
        model.get_buffer("together").copy_(torch.from_numpy(settings.ease * weights))
    fitted = fit(make_task(model, split, settings, digest), settings, accelerator)
    if not accelerator.is_main_process:
        return

    genres = facts[:, : len(movielens.GENRES)].numpy()
    results = measure(model, split, genres)
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
            "judged": settings.judged,
            "users": len(split.judged),
        },
    )
    write_json(settings.run_dir / ITEMS_FILE, items)
    write_json(settings.run_dir / REQUEST_FILE, request_of(split.judged[0][:-1]))
    first = sorted(map(int, items))[:3]
    write_json(settings.run_dir / GOLDEN_REQUEST_FILE, {"history": first, "k": 3})
    users = len(split.judged)
    metrics = {settings.judged: results, "users": users}
    run.finish(settings, fitted, recipe, metrics=metrics, arrays=arrays_of(split))
    print_metrics(results, users)


def print_metrics(results: dict[str, dict[str, float]], users: int) -> None:
    """Print the metrics as a table."""
    from rich.table import Table

    columns = [name.replace("hr@", "HR@").replace("ndcg@", "NDCG@") for name in results["model"]]
    table = Table("", *columns, title=f"Next film of {users} people")
    for name, row in results.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    console.out.print(table)


if __name__ == "__main__":
    console.run_recipe(main)
