"""A recipe of a second, that tests start as a process of its own."""

import hashlib
import itertools
import os
import signal
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import TensorDataset

from marship import console
from marship.fit import run
from marship.fit.loop import Task, fit, start, steps, warmup_cosine
from marship.fit.recipe import Recipe
from marship.settings import flags, setting

ROWS = 64


@dataclass(frozen=True)
class Settings(run.RunSettings):
    """The run's settings, and ways to make it go wrong."""

    epochs: int = setting(4, "passes")
    batch_size: int = setting(8, "rows")
    learning_rate: float = setting(0.01, "step size")
    dropout: float = setting(0.3, "share dropped: makes a run depend on random states")
    bad_row: int = setting(-1, "a row whose target is no number")
    stubborn: bool = setting(False, "hang when stopped, as a slow clean-up would")


class Tiny(nn.Module):
    """Has dropout, so random states matter, and a buffer that training changes."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout))
        self.norm, self.out = nn.BatchNorm1d(8, affine=False, momentum=0.1), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 4) to (batch, 1)."""
        hidden = self.layers(x)
        self.norm(hidden)
        return self.out(hidden)


def make_data(bad_row: int = -1) -> TensorDataset:
    """64 rows whose target is the sum of their features."""
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True)
    if bad_row >= 0:
        y[bad_row] = float("nan")
    return TensorDataset(x, y)


def make_task(settings: Settings) -> Task:
    """Adam with all that a checkpoint must hold: schedule, average, validation."""
    data = make_data(settings.bad_row)
    model = Tiny(settings.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    hold_at = int(os.environ.get("TINY_HOLD_AT", "0"))
    steps_begun = itertools.count(1)

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        if next(steps_begun) == hold_at:  # until a signal comes
            console.out.print("holding")
            signal.pause()
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def validate(model: nn.Module) -> dict[str, float]:
        x, y = data.tensors
        return {"error": nn.functional.mse_loss(model(x), y).item()}

    return Task(
        model=model,
        train=data,
        loss=loss,
        optimizer=optimizer,
        data_digest="tiny",
        schedule=warmup_cosine(optimizer, warmup=2, total=steps(settings, data)),
        clip_norm=1.0,
        average=0.5,
        validate=validate,
        metric="error",
        greater_is_better=False,
    )


@flags(Settings)
def main(settings: Settings) -> None:
    """Train, and say what each process ended with."""
    accelerator = start(settings)
    if run.is_finished(settings, "tiny"):
        return
    task = make_task(settings)
    try:
        fitted = fit(task, settings, accelerator)
    except KeyboardInterrupt:
        if settings.stubborn:
            console.out.print("hanging")
            while True:
                signal.pause()
        raise
    weights = b"".join(value.numpy().tobytes() for value in task.model.state_dict().values())
    console.out.print(accelerator.process_index, hashlib.sha256(weights).hexdigest())
    if accelerator.is_main_process:
        recipe = Recipe(name="tiny", build="tiny_recipe.py:Tiny")
        run.finish(settings, fitted, recipe, metrics={}, arrays={})


if __name__ == "__main__":
    console.run_recipe(main)
