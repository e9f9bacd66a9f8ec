"""Classify pictures: train on a folder with one folder for each class, or fine-tune.

    python training/image.py --data-dir photos
    python training/image.py --data-dir photos --backbone efficientnet-lite0

The folder holds `train/<class>/*` and `test/<class>/*`. docs/image.md lists what it writes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import efficientnet_lite
import evaluation
import numpy as np
import torch
from augment import Augmentation, Augmented
from imagefolder import (
    ImageFolder,
    Pictures,
    arrays_of,
    calibration_of,
    hold_out,
    load,
    near_copies,
)
from pixels import Pixels
from resnet import ResNet
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from marship import console
from marship.contract import Array, Arrays
from marship.errors import DataError, UsageError
from marship.fit import checkpoint, run
from marship.fit.loop import Task, fit, start, steps, warmup_cosine
from marship.fit.recipe import Recipe
from marship.fit.run import Fitted
from marship.serving.pictures import shortest_side
from marship.settings import flags, setting
from marship.storage import write_json

PICTURE_FILE = "picture.json"
TAG_THRESHOLD = 0.3


@dataclass(frozen=True, slots=True)
class Defaults:
    """Input and default settings of a backbone.

    Attributes:
        crop: Share of a picture's shorter side that the network reads.
        mean: Mean of pixels from 0 to 1, for normalisation.
        std: Their standard deviation.
    """

    side: int
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    optimizer: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    zoom: float


DEFAULTS = {
    "none": Defaults(
        side=32,
        crop=1.0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        optimizer="sgd",
        epochs=20,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        zoom=1.0,
    ),
    "efficientnet-lite0": Defaults(
        side=efficientnet_lite.SIDE,
        crop=efficientnet_lite.CROP,
        mean=efficientnet_lite.MEAN,
        std=efficientnet_lite.STD,
        optimizer="adamw",
        epochs=5,
        batch_size=32,
        learning_rate=5e-4,
        weight_decay=0.05,
        zoom=0.35,
    ),
}


@dataclass(frozen=True)
class Settings(run.RunSettings):
    """The settings of every run, and this recipe's own; None takes the backbone's default."""

    run_dir: Path = setting(Path("runs/image"), "folder for everything that the run writes")
    data_dir: Path | None = setting(None, "required: holds train/<class>/* and test/<class>/*")
    backbone: str = setting("none", "none: from scratch; efficientnet-lite0: fine-tune it")
    epochs: int | None = setting(None, "passes over the training data; by backbone", minimum=1)
    batch_size: int | None = setting(None, "pictures for each step; by backbone", minimum=1)
    optimizer: str | None = setting(None, "sgd (with Nesterov's momentum) or adamw; by backbone")
    learning_rate: float | None = setting(None, "largest step size of the optimizer; by backbone")
    weight_decay: float | None = setting(None, "of kernels and matrices alone; by backbone")
    warmup: float = setting(0.15, "share of the steps in which the rate rises", maximum=1)
    smoothing: float = setting(0.1, "label smoothing", minimum=0, maximum=0.9)
    side: int | None = setting(
        None, "height and width that the network reads; by backbone", minimum=4
    )
    width: int = setting(32, "channels of a network from scratch, at its input", minimum=1)
    shift: float = setting(
        0.09, "largest move of a training picture, as a share of the side", minimum=0, maximum=0.5
    )
    zoom: float | None = setting(
        None, "smallest share of the area shown, 1 is all; by backbone", minimum=0.01, maximum=1
    )
    mirror: float = setting(0.5, "share of training pictures mirrored", minimum=0, maximum=1)
    cutout: float = setting(
        0.0, "edge of the cutout square, as a share of the side", minimum=0, maximum=1
    )
    validation: float = setting(
        0.05, "share of the training pictures to watch and calibrate on", minimum=0.001, maximum=0.5
    )
    classes: int | None = setting(
        None, "number of classes that the data must have; else as many as it has", minimum=2
    )


class Classifier(nn.Module):
    """Pictures of any size to calibrated probabilities."""

    def __init__(self, pixels: Pixels, network: nn.Module) -> None:
        super().__init__()
        self.pixels, self.network = pixels, network
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, pixels: torch.Tensor, augmented: bool = False) -> dict[str, torch.Tensor]:
        """uint8 (batch, height, width, 3), RGB, to `probabilities`, float32 (batch, classes).

        Augmented pictures have the network's size already, and give `logits` for training.
        """
        if augmented:
            return {"logits": self.network(self.pixels.normalise(pixels))}
        logits = self.network(self.pixels(pixels))
        return {"probabilities": (logits / self.temperature).softmax(1)}


def build(backbone: str, side: int, width: int, classes: int) -> Classifier:
    """The model, without its weights."""
    defaults = DEFAULTS[backbone]
    network = (
        ResNet(side, width, classes)
        if backbone == "none"
        else efficientnet_lite.EfficientNetLite0(classes)
    )
    return Classifier(Pixels(side, defaults.crop, defaults.mean, defaults.std), network)


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """Accuracy: the share of pictures whose most probable class is the true one.

    If the targets are `probabilities`, the expected accuracy if they were true. With few pictures
    its variance is lower: a class nearly as probable as the first one counts nearly as much.
    """
    chosen = outputs["probabilities"].argmax(1)
    if "probabilities" in targets:
        right = np.take_along_axis(targets["probabilities"], chosen[:, None], 1)
    else:
        right = chosen == targets["label"]
    return {"accuracy": float(right.mean())}


def validated(settings: Settings) -> Settings:
    """Validate the settings, and replace None by the backbone's defaults.

    Raises:
        UsageError: One of them is invalid.
    """
    if settings.data_dir is None:
        raise UsageError(
            "data_dir must be a folder of pictures, got none. Give --data-dir, with "
            "train/<class>/* and test/<class>/* in it."
        )
    if settings.backbone not in DEFAULTS:
        raise UsageError(
            f"backbone must be one of {', '.join(DEFAULTS)}, got {settings.backbone!r}."
        )
    defaults = DEFAULTS[settings.backbone]
    names = ("side", "optimizer", "epochs", "batch_size", "learning_rate", "weight_decay", "zoom")
    left_out = {name: getattr(defaults, name) for name in names if getattr(settings, name) is None}
    settings = replace(settings, **left_out)
    if settings.optimizer not in ("sgd", "adamw"):
        raise UsageError(f"optimizer must be sgd or adamw, got {settings.optimizer!r}.")
    if settings.backbone != "none" and settings.side % 32:
        raise UsageError(
            f"side must be a multiple of 32 for {settings.backbone}, got {settings.side}."
        )
    return settings


def stored_side(settings: Settings) -> int:
    """Edge of the stored squares, of which the model crops `side`."""
    return shortest_side(settings.side, DEFAULTS[settings.backbone].crop)


def make_task(
    model: Classifier, folder: ImageFolder, places: tuple[Array, Array], settings: Settings
) -> Task:
    """Training data, loss, optimizer and validation."""
    train = Augmented(folder.train, places[0], augmentation(settings))
    watched = folder.train.part(places[1])
    labels = torch.from_numpy(watched.labels)
    optimizer = make_optimizer(model, settings)
    total = steps(settings, train)

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = model(batch["pixels"], augmented=True)["logits"]
        return functional.cross_entropy(logits, batch["label"], label_smoothing=settings.smoothing)

    def validate(model: nn.Module) -> dict[str, float]:
        logits = evaluation.logits_of(model, watched)
        return {
            "accuracy": evaluation.accuracy(logits, labels),
            "log_loss": float(functional.cross_entropy(logits, labels)),
        }

    return Task(
        model=model,
        train=train,
        loss=loss,
        optimizer=optimizer,
        data_digest=folder.digest,
        schedule=warmup_cosine(optimizer, warmup=round(settings.warmup * total), total=total),
        validate=validate,  # reported only: the last epoch's weights, at rate 0, are kept
        collate=lambda batch: batch,  # the dataset returns batches
    )


def augmentation(settings: Settings) -> Augmentation:
    """The settings of data augmentation."""
    return Augmentation(
        side=settings.side,
        shift=round(settings.shift * settings.side),
        zoom=settings.zoom,
        mirror=settings.mirror,
        cutout=settings.cutout,
    )


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """SGD with Nesterov's momentum, or AdamW; biases and norms do not decay."""
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) is decays], "weight_decay": decay}
        for decays, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def calibrate(model: Classifier, logits: torch.Tensor, labels: torch.Tensor, run_dir: Path) -> None:
    """Fit the temperature on the logits of held-out pictures, and save it with the weights."""
    temperature = evaluation.fit_temperature(logits, labels)
    model.temperature.fill_(temperature)
    path = run_dir / run.CHECKPOINT_FILE
    content = checkpoint.load(path)
    content["weights"]["temperature"] = model.temperature.cpu()
    checkpoint.save(path, content)


def evaluate(
    model: Classifier, folder: ImageFolder, learned: Pictures, settings: Settings
) -> dict[str, Any]:
    """Metrics and plots for the test pictures."""
    test = folder.test
    logits, labels = evaluation.logits_of(model, test), torch.from_numpy(test.labels)
    temperature = model.temperature.cpu()
    before, after = logits.softmax(1), (logits / temperature).softmax(1)
    evaluation.draw(test, before, after, folder.classes, settings.run_dir)
    copied = near_copies(test, learned, settings.seed)
    return evaluation.measure(
        logits, labels, float(temperature), folder.classes
    ) | evaluation.apart(logits, labels, copied)


def calibration_rows(
    model: Classifier, train: Pictures, places: tuple[Array, Array], seed: int
) -> Arrays:
    """Pictures for int8 calibration, with float32's probabilities as the target."""
    chosen = calibration_of(train, places, seed)
    logits = evaluation.logits_of(model, chosen) / model.temperature.cpu()
    return {"pixels": chosen.pixels, "target/probabilities": logits.softmax(1).numpy()}


def make_model(settings: Settings) -> Classifier:
    """The model to train; a backbone has its pretrained weights."""
    model = build(settings.backbone, settings.side, settings.width, settings.classes)
    if settings.backbone != "none":
        model.network = efficientnet_lite.load(settings.classes)
    return model.to(memory_format=torch.channels_last)


@flags(Settings)
def main(settings: Settings) -> None:
    """Train a classifier on a folder of pictures."""
    settings = validated(settings)
    accelerator = start(settings)
    folder = load(settings.data_dir, stored_side(settings))
    settings = with_classes(settings, folder)
    if run.is_finished(settings, folder.digest):
        return
    places = hold_out(folder.train, settings.validation, settings.seed)
    with accelerator.main_process_first():
        model = make_model(settings)
    fitted = fit(make_task(model, folder, places, settings), settings, accelerator)
    if accelerator.is_main_process:
        write_results(model.cpu(), folder, places, settings, fitted)


def with_classes(settings: Settings, folder: ImageFolder) -> Settings:
    """The settings with the number of classes.

    Raises:
        DataError: The data have another number than `--classes`.
    """
    if settings.classes not in (None, len(folder.classes)):
        raise DataError(
            f"{settings.data_dir} must hold {settings.classes} classes, "
            f"got {len(folder.classes)}. Leave out --classes, or look for missing folders."
        )
    return replace(settings, classes=len(folder.classes))


def write_results(
    model: Classifier,
    folder: ImageFolder,
    places: tuple[Array, Array],
    settings: Settings,
    fitted: Fitted,
) -> None:
    """Calibrate and evaluate the model, and write the files for the later steps."""
    learned, watched = (folder.train.part(part) for part in places)
    logits, labels = evaluation.logits_of(model, watched), torch.from_numpy(watched.labels)
    calibrate(model, logits, labels, settings.run_dir)
    held_out = evaluation.apart(logits, labels, near_copies(watched, learned, settings.seed))
    results = evaluate(model, folder, learned, settings)
    write_json(
        settings.run_dir / PICTURE_FILE,
        {
            "labels": folder.classes,
            "side": settings.side,
            "crop": DEFAULTS[settings.backbone].crop,
            "tag_threshold": TAG_THRESHOLD,
        },
    )
    counts = {"train": len(learned), "validation": len(watched), "test": len(folder.test)}
    recipe = Recipe(
        name="image",
        build="training/image.py:build",
        handler="image_handler.py",
        judge="training/image.py:judge",
        metric="accuracy",
        budget=0.005,
        dynamic=("pixels:1=height", "pixels:2=width"),
        bounds={"height": (1, None), "width": (1, None)},
        assets=(PICTURE_FILE,),
        evidence={"data_digest": folder.digest, "pictures": counts, "backbone": settings.backbone},
    )
    run.finish(
        settings,
        fitted,
        recipe,
        metrics={"test": results, "validation": held_out, "pictures": counts},
        arrays=arrays_of(folder, settings.seed)
        | {"calibration": calibration_rows(model, folder.train, places, settings.seed)},
    )
    evaluation.show(results, counts)


if __name__ == "__main__":
    console.run_recipe(main)
