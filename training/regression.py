"""Predict the progression of diabetes: the smallest complete recipe. Copy it.

    python training/regression.py --epochs 200

The data are ten measurements of each of 442 patients, and the progression of the disease after a
year, 25 to 346 (Efron et al. 2004, Least Angle Regression). They are part of scikit-learn.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

from marship import console
from marship.contract import Arrays
from marship.fit import run
from marship.fit.loop import Task, fit, start
from marship.fit.recipe import Recipe
from marship.settings import flags, setting


@dataclass(frozen=True)
class Settings(run.RunSettings):
    """The settings of every run, with this recipe's defaults."""

    run_dir: Path = setting(Path("runs/regression"), "folder for everything that the run writes")
    epochs: int = setting(100, "passes over the training data", minimum=1)
    learning_rate: float = setting(0.01, "step size of SGD")


class Regression(nn.Module):
    """Two linear layers; inputs and outputs have the data's units: scaling is in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 1))
        self.register_buffer("mean", torch.zeros(11))  # of the ten inputs and the output
        self.register_buffer("std", torch.ones(11))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  its name when served
        """float32, shape (batch, 10), to float32, shape (batch, 1)."""
        scaled = (input - self.mean[:10]) / self.std[:10]
        return self.layers(scaled) * self.std[10:] + self.mean[10:]


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """R2 of the predictions, both arrays (rows, 1)."""
    return {"r2": float(r2_score(targets["output"], outputs["output"]))}


@flags(Settings)
def main(settings: Settings) -> None:
    """Train a small network on scikit-learn's diabetes data."""
    accelerator = start(settings)
    x, y = (a.astype(np.float32) for a in load_diabetes(return_X_y=True, scaled=False))
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    if run.is_finished(settings, digest):
        return
    x, x_test, y, y_test = train_test_split(x, y[:, None], test_size=0.2, random_state=0)
    model = Regression()
    model.mean.copy_(torch.from_numpy(np.hstack([x, y]).mean(0)))
    model.std.copy_(torch.from_numpy(np.hstack([x, y]).std(0)))

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1]) / float(y.var())

    def validate(model: nn.Module) -> dict[str, float]:
        outputs = model(torch.from_numpy(x_test).to(accelerator.device))
        return judge({"output": outputs.cpu().numpy()}, {"output": y_test})

    task = Task(
        model=model,
        train=TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=settings.learning_rate),
        data_digest=digest,
        validate=validate,  # reported only: without `metric`, the last epoch's weights are kept
    )
    fitted = fit(task, settings, accelerator)
    if not accelerator.is_main_process:
        return
    recipe = Recipe(
        name="regression",
        build="training/regression.py:Regression",
        judge="training/regression.py:judge",
        metric="r2",
        budget=0.01,
        evidence={"data": "scikit-learn diabetes, Efron et al. 2004"},
    )
    arrays = {"examples": {"input": x_test[:64]}, "calibration": {"input": x}}
    arrays["heldout"] = {"input": x_test, "target/output": y_test}
    r2 = fitted.history[-1]["r2"]
    linear = float(LinearRegression().fit(x, y).score(x_test, y_test))
    run.finish(settings, fitted, recipe, metrics={"r2": r2, "r2_linear": linear}, arrays=arrays)
    console.out.print(f"R2 on held-out patients: {r2:.3f}; linear regression: {linear:.3f}")


if __name__ == "__main__":
    console.run_recipe(main)
