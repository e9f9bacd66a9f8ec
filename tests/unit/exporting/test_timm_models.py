"""Classifiers of timm by name, with a stand-in for timm: it needs the torchvision of PyTorch."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import marship
from marship.errors import ParityError, UsageError
from marship.pretrained import timm_model
from marship.serving.placement import Placement
from workers import load_module

SIDE = 24
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Tiny(nn.Module):
    """A network with a head that is called fc, as timm's ResNets have."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {"classifier": "fc", "num_classes": 1000}

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 24, 24) to logits."""
        return self.fc(self.conv(x).relu().mean((2, 3)) * 20)


def transform(**data: Any) -> Any:
    """The steps of timm.data.create_transform for pictures, with Pillow and NumPy."""

    def prepare(image: Any) -> torch.Tensor:
        resized = int(SIDE / data["crop_pct"])
        scale = resized / min(image.size)
        image = image.resize([int(size * scale) for size in image.size], Image.Resampling.BICUBIC)
        left, top = (round((size - SIDE) / 2) for size in image.size)
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
        return torch.from_numpy((pixels - MEAN) / STD).float().permute(2, 0, 1)

    assert not data.pop("is_training")
    return prepare


def stand_in(**changed: Any) -> SimpleNamespace:
    """What is used of timm."""
    config = {"input_size": (3, SIDE, SIDE), "interpolation": "bicubic", "crop_pct": 0.8}
    config |= {"mean": MEAN, "std": STD, "crop_mode": "center"} | changed

    def create_model(name: str, num_classes: int) -> Tiny:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        return Tiny(num_classes)

    data = SimpleNamespace(
        resolve_model_data_config=lambda _: config,
        create_transform=transform,
        infer_imagenet_subset=lambda _: None,
    )
    return SimpleNamespace(create_model=create_model, data=data, __version__="1.0")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights for three classes."""
    torch.manual_seed(3)
    save_file(Tiny(3).state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_a_worker_gives_timms_scores(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of classes is that of the weights; pixels are those of timm's transform."""
    timm = stand_in()
    monkeypatch.setitem(sys.modules, "timm", timm)
    quick = marship.ExportSettings(proof_seconds=0.5)
    done = marship.export("timm:tiny", quick, weights=weights, out=tmp_path / "run")
    assert done.contract.outputs[0].shape == ("batch", 3)
    handler = load_module("image_handler").ImageHandler()
    handler.load(Placement(folder=tmp_path / "run", name="m"))
    model = Tiny(3)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights))
    prepare = transform(**timm.data.resolve_model_data_config(model), is_training=False)
    for name in ("sample_wide.png", "sample_high.png"):
        file = tmp_path / "run" / name
        want = model(prepare(Image.open(file))[None]).softmax(-1)[0].tolist()
        rows = json.loads(handler.respond(file.read_bytes(), "image/png").body)["top"]
        got = {row["label"]: row["probability"] for row in rows}
        assert [got[str(place)] for place in range(3)] == pytest.approx(want, abs=1e-5)


def test_a_distilled_model_has_two_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one size: either says how many classes there are."""
    monkeypatch.setitem(sys.modules, "timm", stand_in())
    monkeypatch.setitem(Tiny.pretrained_cfg, "classifier", ("head", "fc"))
    assert timm_model.classes_of("tiny", Tiny(3).state_dict()) == 3
    with pytest.raises(UsageError, match=r"its classifier, head\.weight or fc\.weight, got none"):
        timm_model.classes_of("tiny", {})


def test_other_pixels_than_timms_are_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here timm's transform resizes with another filter than its configuration says."""
    monkeypatch.setitem(sys.modules, "timm", stand_in(interpolation="bilinear"))
    with pytest.raises(ParityError, match="pixels must be those of timm's tiny"):
        marship.export("timm:tiny", weights=weights, out=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "timm", stand_in(crop_mode="border"))
    with pytest.raises(UsageError, match=r"centre of a picture, got 3 x 24 x 24, border"):
        marship.export("timm:tiny", weights=weights, out=tmp_path / "run")


def test_what_is_missing_is_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm, weights, a model, and a classifier in the weights."""
    with pytest.raises(UsageError, match="weights of timm:tiny must be a file, got none"):
        marship.export("timm:tiny")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="pip install timm torchvision"):
        marship.export("timm:tiny", weights=weights)
    monkeypatch.setitem(sys.modules, "timm", stand_in())
    with pytest.raises(UsageError, match=r"got: Unknown model \(small\)"):
        marship.export("timm:small", weights=weights)
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"must have those of its classifier, fc\.weight"):
        marship.export("timm:tiny", weights=tmp_path / "other.safetensors")
