"""Predict the progression of diabetes: the smallest complete recipe. Copy it.

    python training/regression.py --epochs 200
    python training/regression.py --activation square
    python training/regression.py --dp-epsilon 8

The data are ten measurements of each of 442 patients, and the progression of the disease after a
year, 25 to 346 (Efron et al. 2004, Least Angle Regression). They are part of scikit-learn.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from activation import activated
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

from marship import console
from marship.contract import Array, Arrays
from marship.fit import run
from marship.fit.loop import Task, fit, start
from marship.fit.privacy import PrivateSettings
from marship.fit.recipe import Recipe
from marship.settings import flags, setting

RANGES = np.array(
    [[20, 1, 15, 60, 100, 40, 20, 1, 3, 50, 0], [80, 2, 45, 140, 300, 240, 100, 9, 6.5, 130, 350]],
    np.float32,
)
"""What the ten inputs and the output usually are: lowest and highest. Private runs are scaled by
these, which no patient of the data has a part in."""


@dataclass(frozen=True)
class Settings(PrivateSettings):
    """The settings of every run, with this recipe's defaults, and its own."""

    run_dir: Path = setting(Path("runs/regression"), "folder for everything that the run writes")
    epochs: int = setting(100, "passes over the training data", minimum=1)
    learning_rate: float = setting(0.01, "step size of SGD")
    activation: str = setting("relu", "relu; square: for encrypted inputs", usual=("square",))


class Regression(nn.Module):
    """Two linear layers; inputs and outputs have the data's units: scaling is in the model."""

    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        hidden = activated(activation, "none", 10)  # scaled inputs are norm enough
        self.layers = nn.Sequential(nn.Linear(10, 10), *hidden, nn.Linear(10, 1))
        self.register_buffer("mean", torch.zeros(11))  # of the ten inputs and the output
        self.register_buffer("std", torch.ones(11))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  its name when served
        """float32, shape (batch, 10), to float32, shape (batch, 1)."""
        scaled = (input - self.mean[:10]) / self.std[:10]
        return self.layers(scaled) * self.std[10:] + self.mean[10:]


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """R2 of the predictions, both arrays (rows, 1)."""
    return {"r2": float(r2_score(targets["output"], outputs["output"]))}


def scale(model: Regression, rows: Array, private: bool) -> float:
    """Set the model's scaling, from the training rows unless private; returns the output's."""
    low, high = RANGES
    mean, std = ((low + high) / 2, (high - low) / 4) if private else (rows.mean(0), rows.std(0))
    model.mean.copy_(torch.from_numpy(mean))
    model.std.copy_(torch.from_numpy(std))
    return float(std[10])


@flags(Settings)
def main(settings: Settings) -> None:
    """Train a small network on scikit-learn's diabetes data."""
    private = settings.dp_epsilon is not None
    accelerator = start(settings)
    x, y = (a.astype(np.float32) for a in load_diabetes(return_X_y=True, scaled=False))
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    if run.is_finished(settings, digest):
        return
    x, x_test, y, y_test = train_test_split(x, y[:, None], test_size=0.2, random_state=0)
    model = Regression(settings.activation)
    unit = scale(model, np.hstack([x, y]), private)

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1]) / unit**2

    def validate(model: nn.Module) -> dict[str, float]:
        outputs = model(torch.from_numpy(x_test).to(accelerator.device))
        return judge({"output": outputs.cpu().numpy()}, {"output": y_test})

    task = Task(
        model=model,
        train=TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=settings.learning_rate),
        data_digest=digest,
        clip_norm=1.0 if settings.activation == "square" else None,
        validate=validate,  # reported only: without `metric`, the last epoch's weights are kept
        privacy=settings.privacy(),
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
    arrays = {"examples": {"input": x_test[:64]}}
    arrays["heldout"] = {"input": x_test, "target/output": y_test}
    metrics = {"r2": fitted.history[-1]["r2"]}
    told = f"R2 on held-out patients: {metrics['r2']:.3f}"
    if private:  # nothing else that training rows decide goes into the folder
        told += f"; epsilon {fitted.privacy['epsilon']:.2f} at delta {settings.dp_delta:g}"
    else:
        arrays["calibration"] = {"input": x}
        metrics["r2_linear"] = float(LinearRegression().fit(x, y).score(x_test, y_test))
        told += f"; linear regression: {metrics['r2_linear']:.3f}"
    run.finish(settings, fitted, recipe, metrics=metrics, arrays=arrays)
    console.out.print(told)


if __name__ == "__main__":
    console.run_recipe(main)
