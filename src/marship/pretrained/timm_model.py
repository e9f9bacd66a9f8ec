"""An image classifier of timm by its name, with weights of a local file: nothing is downloaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from marship.contract import Array
from marship.errors import UsageError
from marship.serving.pictures.processor import Processor

_RESAMPLES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""PIL.Image.Resampling by timm's names (timm.data.transforms)."""


def imported() -> Any:  # noqa: ANN401  timm ships few types
    """The package timm.

    Raises:
        UsageError: It is not installed, or torchvision, which it imports, does not fit PyTorch.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another PyTorch
        raise UsageError(
            f"timm must be importable for its models, got {type(error).__name__}: "
            f"{str(error).rstrip('.')}. Install it with the torchvision of this PyTorch "
            f"({torch.__version__}): pip install timm torchvision"
        ) from error
    return timm


def build(name: str, num_classes: int) -> nn.Module:
    """A model without its weights; `marship export timm:NAME` calls it.

    Raises:
        UsageError: timm does not know it.
    """
    try:
        model: nn.Module = imported().create_model(name, num_classes=num_classes)
    except RuntimeError as error:
        raise UsageError(
            f"{name} must be a model of timm {imported().__version__}, got: {error}. "
            "timm.list_models() has their names."
        ) from error
    return model.eval()


def classes_of(name: str, content: object) -> int:
    """The number of classes by weights.

    Args:
        name: The model.
        content: What their file holds.

    Raises:
        UsageError: timm does not know the model, or the weights have no classifier.
    """
    cfg: Any = build(name, 2).pretrained_cfg
    heads = cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads  # distilled ones have two, of one size
    for head in heads:
        if (rows := _rows(content, f"{head}.weight")) is not None:
            return rows
    wanted = " or ".join(f"{head}.weight" for head in heads) or "one"
    raise UsageError(
        f"weights of {name} must have those of its classifier, {wanted}, got none. Take those of a "
        "whole classifier."
    )


def _rows(content: object, name: str) -> int | None:
    """The first size of the tensor of this name, however it is nested or prefixed."""
    if not isinstance(content, Mapping):
        return None
    for key, value in content.items():
        if isinstance(value, torch.Tensor) and f".{key}".endswith(f".{name}"):
            return len(value)
    return next((rows for value in content.values() if (rows := _rows(value, name))), None)


@dataclass(frozen=True)
class Classifier:
    """What is served of a model: its labels, and how pictures are prepared for it."""

    model: nn.Module

    @property
    def _data(self) -> dict[str, Any]:
        found: dict[str, Any] = imported().data.resolve_model_data_config(self.model)
        return found

    def labels(self, count: int) -> list[str]:
        """ImageNet's for a model of so many classes that was made for it; else numbers."""
        data = imported().data
        subset = data.infer_imagenet_subset(self.model)
        cfg: Any = self.model.pretrained_cfg
        if subset and cfg.get("num_classes") == count:
            info = data.ImageNetInfo(subset)
            return [str(info.index_to_description(place)) for place in range(count)]
        return [str(place) for place in range(count)]

    def processor(self) -> Processor:
        """The steps of timm.data.create_transform for evaluation.

        Raises:
            UsageError: The model's configuration has others.
        """
        data = self._data
        (channels, height, width), mode = data["input_size"], data["crop_mode"]
        resample = _RESAMPLES.get(data["interpolation"])
        if (channels, mode, height) != (3, "center", width) or resample is None:
            raise UsageError(
                "a model of timm must read squares of three colours from the centre of a picture, "
                f"got {channels} x {height} x {width}, {mode}, {data['interpolation']}. Export it "
                "from a function of your own."
            )
        return Processor(
            resize=(math.floor(height / data["crop_pct"]),),
            resample=resample,
            crop=(height, width),
            rescale=1 / 255,
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            crop_rounds=True,
        )

    def values(self, pixels: Array) -> Array:
        """What timm itself makes of a picture, float32 (1, 3, height, width)."""
        from PIL import Image

        transform = imported().data.create_transform(**self._data, is_training=False)
        return np.asarray(transform(Image.fromarray(pixels)).numpy()[None], np.float32)

    @torch.no_grad()
    def scores(self, pixels: Array) -> Array:
        """The probabilities of a picture, float32 (classes,)."""
        logits = self.model(torch.from_numpy(self.values(pixels)))
        return np.asarray(logits.softmax(-1)[0].numpy())
