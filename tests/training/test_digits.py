"""The digits recipe: its networks, its activation for encrypted inputs, and private training."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from marship.errors import UsageError
from marship.fit import run
from marship.fit.checkpoint import load_weights
from marship.fit.recipe import Recipe, resolve
from marship.storage import read_json
from recipes import REPOSITORY, run_recipe


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    """training/digits.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/digits.py:build")).__module__]


def trained(digits: ModuleType, run_dir: Path, **changes: Any) -> Path:
    """The run folder of a run in this process."""
    settings = digits.Settings(run_dir=run_dir, threads=1, **changes)
    digits.main.__wrapped__(settings)  # without its flags
    return run_dir


@pytest.fixture(scope="module")
def square_run(digits: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the small network with squares."""
    folder = tmp_path_factory.mktemp("square")
    return trained(digits, folder, activation="square", epochs=15)


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short private run, started as a person starts it."""
    folder = tmp_path_factory.mktemp("private")
    done = run_recipe(
        *("digits", "--run-dir", str(folder), "--dp-epsilon", "8"),
        *("--epochs", "5", "--threads", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "at delta 1e-05, noise multiplier" in done.stdout
    assert "Warning" not in done.stderr
    return folder


def rebuilt(digits: ModuleType, run_dir: Path) -> nn.Module:
    """The model of a run folder, as export builds it."""
    settings = read_json(run_dir / run.SETTINGS_FILE)
    model: nn.Module = digits.build(*(settings[n] for n in ("network", "activation", "norm")))
    load_weights(run_dir / run.CHECKPOINT_FILE, model)
    return model.eval()


def test_squares_learn_digits(square_run: Path) -> None:
    """A short run is right nine times of ten on 540 test pictures."""
    assert read_json(square_run / run.METRICS_FILE)["accuracy"] > 0.93


def test_the_run_folder_gives_its_figure_again(digits: ModuleType, square_run: Path) -> None:
    """Built, loaded and judged from the folder alone, the model has the accuracy it was told."""
    heldout = np.load(square_run / "heldout.npz")
    assert heldout["pixels"].shape == (540, 64)
    with torch.no_grad():
        logits = rebuilt(digits, square_run)(torch.from_numpy(heldout["pixels"]))["logits"]
    found = digits.judge({"logits": logits.numpy()}, {"label": heldout["target/label"]})
    assert found["accuracy"] == read_json(square_run / run.METRICS_FILE)["accuracy"]
    assert Recipe.load(square_run).handler == "onnx_handler.py"


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_with_squares_the_network_is_a_polynomial(digits: ModuleType, network: str) -> None:
    """Along a line, degree 2 for each of its squares: the next difference is 0."""
    degree = {"mlp": 2, "cnn": 4}[network]
    torch.manual_seed(0)
    model = digits.build(network, "square", "batch").double().eval()
    shape = {"mlp": (64,), "cnn": (1, 28, 28)}[network]
    start, way = torch.rand(2, *shape, dtype=torch.float64) * 16
    places = torch.linspace(-1, 1, degree + 2, dtype=torch.float64)
    with torch.no_grad():
        logits = torch.stack([model((start + place * way)[None])["logits"][0] for place in places])
    assert torch.diff(logits, n=degree, dim=0).abs().max() > 1e-9
    assert torch.diff(logits, n=degree + 1, dim=0).abs().max() < 1e-11


def test_the_parts_share_no_picture(digits: ModuleType) -> None:
    """Train, validation and test are all rows once; the test's are the same for each seed."""
    parts, digest = digits.read(digits.validated(digits.Settings(seed=1)))
    others, same = digits.read(digits.validated(digits.Settings(seed=2)))
    assert digest == same
    assert [len(part.labels) for part in parts.values()] == [1131, 126, 540]
    assert np.array_equal(parts["test"].pixels, others["test"].pixels)
    assert not np.array_equal(parts["validation"].pixels, others["validation"].pixels)
    rows = np.concatenate([part.pixels for part in parts.values()])
    assert len(np.unique(rows, axis=0)) == len(rows) == 1797


def test_pictures_for_the_convolution_are_28_x_28(digits: ModuleType) -> None:
    """They keep the range of the pixels."""
    parts, _ = digits.read(digits.validated(digits.Settings(network="cnn")))
    pixels = parts["train"].pixels
    assert pixels.shape == (1131, 1, 28, 28)
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < pixels.max() <= digits.WHITE


def test_a_private_run_tells_its_bound(private_run: Path) -> None:
    """metrics.json has epsilon, delta, noise, clip and sampling, and epsilon is what was asked."""
    privacy = read_json(private_run / run.METRICS_FILE)["privacy"]
    assert 7 < privacy["epsilon"] <= 8
    assert privacy["delta"] == 1e-5
    assert privacy["noise_multiplier"] > 0.3
    assert privacy["sample_rate"] == pytest.approx(256 / 1131)
    assert privacy["steps"] == 25


def test_a_private_run_keeps_training_rows_to_itself(private_run: Path) -> None:
    """No calibration rows are in its folder, from which optimize would take ranges."""
    assert not (private_run / "calibration.npz").exists()
    assert (private_run / "heldout.npz").exists()
    assert read_json(private_run / run.SETTINGS_FILE)["norm"] == "none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "batch", "dp_epsilon": 8.0}, "BatchNorm1d at layers.1, .*--norm group"),
        ({"activation": "gelu"}, "activation must be one of relu, square, got 'gelu'"),
        ({"norm": "layer"}, "norm must be one of batch, group, none, got 'layer'"),
        ({"network": "vit"}, "network must be one of mlp, cnn, got 'vit'"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    digits: ModuleType, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """A usage error, before anything is written."""
    with pytest.raises(UsageError, match=words):
        trained(digits, tmp_path, **changes)
    assert not list(tmp_path.iterdir())
