"""The smallest recipe."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from marship.fit.checkpoint import load_weights
from marship.fit.recipe import Recipe, resolve
from recipes import REPOSITORY, run_recipe
from small_disk import run_on


def test_it_is_as_good_as_linear_regression(regression_run: Path) -> None:
    """R2 on the held-out split is near linear regression's on the same, or above."""
    metrics = json.loads((regression_run / "metrics.json").read_text())
    assert 0.3 < metrics["r2_linear"] < 0.4
    assert metrics["r2"] > metrics["r2_linear"] - 0.05
    assert len(metrics["history"]) == 100


def test_its_run_folder_gives_its_figures_again(regression_run: Path) -> None:
    """Built, loaded and judged from the folder alone, the model answers in the data's units."""
    recipe = Recipe.load(regression_run)
    model = resolve(str(REPOSITORY / recipe.build))()
    load_weights(regression_run / "checkpoint.pt", model)
    heldout = np.load(regression_run / "heldout.npz")
    with torch.no_grad():
        answers = model(torch.from_numpy(heldout["input"])).numpy()
    assert answers.shape == heldout["target/output"].shape
    assert 25 < answers.mean() < 346
    assert recipe.judge is not None
    got = resolve(str(REPOSITORY / recipe.judge))(
        {"output": answers}, {"output": heldout["target/output"]}
    )
    metrics = json.loads((regression_run / "metrics.json").read_text())
    assert abs(got["r2"] - metrics["r2"]) < 1e-5


def test_its_files_are_those_that_later_steps_read(regression_run: Path) -> None:
    """The folder holds the files of marship.fit.recipe's list, and nothing half-written."""
    assert {path.name for path in regression_run.iterdir()} == {
        *("settings.json", "checkpoint.pt", "metrics.json", "curve.png", "recipe.json"),
        *("examples.npz", "calibration.npz", "heldout.npz"),
    }
    examples = np.load(regression_run / "examples.npz")
    assert examples["input"].dtype == np.float32
    assert examples["input"].shape == (64, 10)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """Training into a 12 KB file system says so and leaves no half-written checkpoint."""
    train = '"$1" training/regression.py --epochs 1 --run-dir "$0/run"; ls -A "$0/run"'
    done = run_on(tmp_path / "full", 12, train, sys.executable, cwd=REPOSITORY)
    assert "checkpoint.pt must fit on the disk" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.split() == ["settings.json"]


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run with squares."""
    folder = tmp_path_factory.mktemp("private")
    flags = ("--run-dir", str(folder), "--threads", "1", "--epochs", "40")
    done = run_recipe("regression", *flags, "--dp-epsilon", "8", "--activation", "square")
    assert done.returncode == 0, done.stderr
    assert "epsilon 7.9" in done.stdout or "epsilon 8.00" in done.stdout
    return folder


def test_a_private_model_has_no_number_of_a_patient(private_run: Path) -> None:
    """Its scaling is of stated ranges, not of the data, and its folder has no training rows."""
    model = resolve(str(REPOSITORY / "training/regression.py:Regression"))("square")
    load_weights(private_run / "checkpoint.pt", model)
    assert model.mean.tolist()[:3] == [50, 1.5, 30]
    assert model.std.tolist()[:3] == [15, 0.25, 7.5]
    assert not (private_run / "calibration.npz").exists()
    metrics = json.loads((private_run / "metrics.json").read_text())
    assert metrics["privacy"]["epsilon"] <= 8
    assert "r2_linear" not in metrics


def test_a_private_model_has_learned(private_run: Path) -> None:
    """Squares and noise leave more than the mean's R2 of 0."""
    assert json.loads((private_run / "metrics.json").read_text())["r2"] > 0.05
