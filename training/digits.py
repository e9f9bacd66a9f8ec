"""Recognize handwritten digits: the recipe for models that answer in private. Copy it.

    python training/digits.py --activation square
    python training/digits.py --network cnn --activation square
    python training/digits.py --dp-epsilon 8

The data are 1,797 pictures of 8 x 8 pixels, 0 to 16, by 43 people (Alpaydin and Kaynak 1998,
Optical Recognition of Handwritten Digits). They are part of scikit-learn. docs/training.md says
what the square and differential privacy cost.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from activation import activated
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from marship import console
from marship.contract import Array, Arrays
from marship.errors import UsageError
from marship.fit import run
from marship.fit.loop import Task, fit, start, steps, warmup_cosine
from marship.fit.privacy import PrivateSettings
from marship.fit.recipe import Recipe
from marship.settings import flags, setting

WHITE = 16
"""The largest value of a pixel."""
SIDE = 28
"""Height and width of the pictures that the convolutional network reads."""
TEST_ROWS = 540


@dataclass(frozen=True, slots=True)
class Defaults:
    """Settings of a network, with and without differential privacy, chosen on validation."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


DEFAULTS = {
    ("mlp", False): Defaults(60, 64, 1e-2, 0.1),
    ("mlp", True): Defaults(30, 256, 5e-2, 0.01),
    ("cnn", False): Defaults(30, 64, 3e-3, 0.5),
    ("cnn", True): Defaults(20, 256, 1e-2, 0.01),
}


@dataclass(frozen=True)
class Settings(PrivateSettings):
    """The settings of every run, and this recipe's own; None takes the network's default."""

    run_dir: Path = setting(Path("runs/digits"), "folder for everything that the run writes")
    network: str = setting("mlp", "mlp: 64-64-10; cnn: pictures of 28 x 28", usual=("mlp", "cnn"))
    activation: str = setting("relu", "relu; square: for encrypted inputs", usual=("square",))
    norm: str | None = setting(
        None, "batch, group or none; batch unless private", usual=("batch", "group", "none")
    )
    epochs: int | None = setting(None, "passes over the training data; by network", minimum=1)
    batch_size: int | None = setting(None, "rows for each step; by network", minimum=1)
    learning_rate: float | None = setting(None, "largest step size of AdamW; by network")
    weight_decay: float | None = setting(None, "of AdamW; by network", minimum=0)
    validation: float = setting(
        0.1, "share of the training data to watch", minimum=0.01, maximum=0.5
    )


class Digits(nn.Module):
    """Pictures with pixels from 0 to 16, to logits of the ten digits: softmax is the client's."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """float32, shape (batch, 64) or (batch, 1, 28, 28), to `logits`, float32 (batch, 10)."""
        return {"logits": self.layers(pixels / WHITE)}


def build(network: str, activation: str, norm: str) -> Digits:
    """The model, without its weights.

    The convolutional one is that of CryptoNets (Gilad-Bachrach et al. 2016) without its pooling:
    five maps of 5 x 5 in steps of two pixels, and a hidden layer of 100.
    """
    if network == "mlp":
        hidden = activated(activation, norm, 64)
        return Digits(nn.Sequential(nn.Linear(64, 64), *hidden, nn.Linear(64, 10)))
    return Digits(
        nn.Sequential(
            nn.Conv2d(1, 5, 5, stride=2, padding=1),
            *activated(activation, norm, 5, axes=3),
            nn.Flatten(),
            nn.Linear(5 * 13 * 13, 100),
            *activated(activation, norm, 100),
            nn.Linear(100, 10),
        )
    )


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """Accuracy of `logits`, (rows, 10), for `label`, (rows,)."""
    return {"accuracy": float((outputs["logits"].argmax(1) == targets["label"]).mean())}


def validated(settings: Settings) -> Settings:
    """Validate the settings, and replace None by the network's defaults.

    Raises:
        UsageError: One of them is invalid.
    """
    if settings.network not in ("mlp", "cnn"):
        raise UsageError(f"network must be one of mlp, cnn, got {settings.network!r}.")
    defaults = DEFAULTS[settings.network, settings.dp_epsilon is not None]
    names = ("epochs", "batch_size", "learning_rate", "weight_decay")
    left_out = {name: getattr(defaults, name) for name in names if getattr(settings, name) is None}
    norm = settings.norm or ("batch" if settings.dp_epsilon is None else "none")
    return replace(settings, norm=norm, **left_out)


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures, float32 (rows, 64) or (rows, 1, 28, 28), and their labels, int64 (rows,)."""

    pixels: Array
    labels: Array


def read(settings: Settings) -> tuple[dict[str, Part], str]:
    """The parts `train`, `validation` and `test` of the data, and a digest of all of them.

    The test rows are always the same; which training rows are watched depends on the seed.
    """
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if settings.network == "cnn":
        pictures = torch.from_numpy(pixels).reshape(-1, 1, 8, 8)
        pixels = functional.interpolate(pictures, (SIDE, SIDE), mode="bilinear").numpy()
    known, test, known_labels, test_labels = train_test_split(
        pixels, labels, test_size=TEST_ROWS, random_state=0, stratify=labels
    )
    train, watched, train_labels, watched_labels = train_test_split(
        known,
        known_labels,
        test_size=settings.validation,
        random_state=settings.seed,
        stratify=known_labels,
    )
    parts = {
        "train": Part(train, train_labels),
        "validation": Part(watched, watched_labels),
        "test": Part(test, test_labels),
    }
    return parts, digest


def logits_of(model: nn.Module, part: Part) -> Arrays:
    """The outputs for all rows of a part."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return {"logits": model(torch.from_numpy(part.pixels).to(device))["logits"].cpu().numpy()}


def make_task(model: Digits, parts: dict[str, Part], settings: Settings, digest: str) -> Task:
    """Training data, loss, optimizer and validation."""
    train = TensorDataset(*map(torch.from_numpy, (parts["train"].pixels, parts["train"].labels)))
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    total = steps(settings, train)

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0])["logits"], batch[1])

    def validate(model: nn.Module) -> dict[str, float]:
        watched = parts["validation"]
        return judge(logits_of(model, watched), {"label": watched.labels})

    return Task(
        model=model,
        train=train,
        loss=loss,
        optimizer=optimizer,
        data_digest=digest,
        schedule=warmup_cosine(optimizer, warmup=total // 10, total=total),
        clip_norm=1.0,
        validate=validate,  # reported only: the last epoch's weights, at rate 0, are kept
        privacy=settings.privacy(),
    )


def arrays_of(parts: dict[str, Part], settings: Settings) -> dict[str, Arrays]:
    """Inputs for the later steps: examples, held-out data, and calibration unless private."""
    test = parts["test"]
    arrays = {
        "examples": {"pixels": test.pixels[:64]},
        "heldout": {"pixels": test.pixels, "target/label": test.labels},
    }
    if settings.dp_epsilon is None:  # ranges of training rows would be told without noise
        arrays["calibration"] = {"pixels": parts["train"].pixels}
    return arrays


@flags(Settings)
def main(settings: Settings) -> None:
    """Train a small network on scikit-learn's digits."""
    settings = validated(settings)
    accelerator = start(settings)
    parts, digest = read(settings)
    if run.is_finished(settings, digest):
        return
    model = build(settings.network, settings.activation, settings.norm)
    fitted = fit(make_task(model, parts, settings, digest), settings, accelerator)
    if not accelerator.is_main_process:
        return
    found = judge(logits_of(model.cpu(), parts["test"]), {"label": parts["test"].labels})
    recipe = Recipe(
        name="digits",
        build="training/digits.py:build",
        judge="training/digits.py:judge",
        metric="accuracy",
        budget=0.005,
        evidence={"data": "scikit-learn digits, Alpaydin and Kaynak 1998"},
    )
    run.finish(settings, fitted, recipe, metrics=found, arrays=arrays_of(parts, settings))
    console.out.print(f"accuracy on {TEST_ROWS} test pictures: {found['accuracy']:.4f}")
    if fitted.privacy:
        console.out.print(
            f"epsilon {fitted.privacy['epsilon']:.2f} at delta {settings.dp_delta:g}, noise "
            f"multiplier {fitted.privacy['noise_multiplier']:.3f}",
            soft_wrap=True,
        )


if __name__ == "__main__":
    console.run_recipe(main)
