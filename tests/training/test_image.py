"""The image recipe: from a folder of pictures to a model that is exported and packed."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from digits_folder import write_digits
from marship.contract import Contract
from marship.errors import DataError, MarshipError, UsageError
from marship.fit.checkpoint import load_weights
from marship.fit.recipe import Recipe, resolve
from recipes import REPOSITORY, run_marship, run_recipe

SMALL = ["--side", "8", "--width", "16", "--mirror", "0", "--shift", "0.1", "--batch-size", "64"]


@pytest.fixture(scope="module")
def image() -> ModuleType:
    """training/image.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/image.py:build")).__module__]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as a folder of pictures."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The run folder of a small network that learned them, exported."""
    folder = tmp_path_factory.mktemp("image")
    flags = ["--run-dir", str(folder), "--data-dir", str(digits), "--epochs", "8", *SMALL]
    done = run_recipe("image", *flags, "--validation", "0.2")
    assert done.returncode == 0, done.stderr
    assert "expected calibration error" in done.stdout
    assert "too few" not in done.stdout
    run_marship("export", folder, "--proof-seconds", 10)
    return folder


def metrics_of(run_dir: Path) -> dict[str, Any]:
    """metrics.json."""
    found: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return found


def trained(image: ModuleType, run_dir: Path) -> Any:
    """The model, built and loaded from its run folder."""
    settings = json.loads((run_dir / "settings.json").read_text())
    names = ("backbone", "side", "width", "classes")
    model = image.build(**{name: settings[name] for name in names})
    load_weights(run_dir / "checkpoint.pt", model)
    return model.eval()


def test_it_learns_digits(image_run: Path) -> None:
    """In eight short epochs nearly all held-out digits are told apart, each class among them."""
    test = metrics_of(image_run)["test"]
    assert test["accuracy"] > 0.93
    assert list(test["classes"]) == list("0123456789")
    assert all(row["precision"] > 0.8 and row["recall"] > 0.8 for row in test["classes"].values())
    assert sum(row["pictures"] for row in test["classes"].values()) == 450


def test_its_files_are_those_that_later_steps_read(image_run: Path) -> None:
    """The folder holds the files of marship.fit.recipe's list, the pictures, and bounded data."""
    assert {path.name for path in image_run.iterdir()} == {
        *("settings.json", "checkpoint.pt", "metrics.json", "curve.png", "recipe.json"),
        *("examples.npz", "calibration.npz", "heldout.npz", "picture.json"),
        *("confusion.png", "mistakes.png", "reliability.png"),
        *("model.onnx", "contract.json", "golden.npz", "parity.json"),
    }
    assert json.loads((image_run / "picture.json").read_text()) == {
        "labels": list("0123456789"),
        "side": 8,
        "crop": 1.0,
        "tag_threshold": 0.3,
    }
    heldout, calibration = (
        np.load(image_run / f"{name}.npz") for name in ("heldout", "calibration")
    )
    assert heldout["pixels"].shape == (450, 8, 8, 3)
    assert calibration["pixels"].shape == (512, 8, 8, 3)
    assert heldout["pixels"].dtype == calibration["pixels"].dtype == np.uint8
    assert calibration["target/probabilities"].shape == (512, 10)
    np.testing.assert_allclose(calibration["target/probabilities"].sum(1), 1, rtol=1e-5)


def test_the_judge_takes_labels_or_probabilities(image: ModuleType) -> None:
    """By probabilities a picture counts as much as its chosen class is probable."""
    answers = {"probabilities": np.array([[0.6, 0.4], [0.2, 0.8]])}
    assert image.judge(answers, {"label": np.array([0, 0])}) == {"accuracy": 0.5}
    sure = np.array([[0.7, 0.3], [0.9, 0.1]])
    assert image.judge(answers, {"probabilities": sure}) == {"accuracy": pytest.approx(0.4)}


def test_its_run_folder_gives_its_figures_again(image: ModuleType, image_run: Path) -> None:
    """Built, loaded and judged from the folder alone, the model has the accuracy stated."""
    heldout = np.load(image_run / "heldout.npz")
    with torch.no_grad():
        answers = trained(image, image_run)(torch.from_numpy(heldout["pixels"]))
    recipe = Recipe.load(image_run)
    assert recipe.judge is not None
    got = resolve(str(REPOSITORY / recipe.judge))(
        {"probabilities": answers["probabilities"].numpy()}, {"label": heldout["target/label"]}
    )
    assert got["accuracy"] == pytest.approx(metrics_of(image_run)["test"]["accuracy"], abs=1e-9)


def test_the_temperature_is_part_of_the_model(image: ModuleType, image_run: Path) -> None:
    """The graph answers softmax(logits / temperature), with the temperature of metrics.json."""
    model = trained(image, image_run)
    temperature = metrics_of(image_run)["test"]["calibration"]["temperature"]
    assert float(model.temperature) == pytest.approx(temperature)
    assert abs(temperature - 1) > 0.05
    pixels = np.load(image_run / "heldout.npz")["pixels"][:50]
    with torch.no_grad():
        logits = model.network(model.pixels(torch.from_numpy(pixels)))
    session = onnxruntime.InferenceSession(image_run / "model.onnx")
    (got,) = session.run(["probabilities"], {"pixels": pixels})
    np.testing.assert_allclose(got, (logits / temperature).softmax(1), rtol=1e-3, atol=1e-4)
    assert np.abs(got - logits.softmax(1).numpy()).max() > 0.01


def test_the_temperature_lowers_the_loss_where_it_was_fitted(
    image: ModuleType, digits: Path, image_run: Path
) -> None:
    """On the held-out part of train the log loss is lower with it, and these are not the test."""
    folder = image.load(digits, 8)
    settings = json.loads((image_run / "settings.json").read_text())
    _, held = image.hold_out(folder.train, settings["validation"], settings["seed"])
    model = trained(image, image_run)
    logits = image.evaluation.logits_of(model, folder.train.part(held))
    labels = torch.from_numpy(folder.train.labels[held])
    loss = torch.nn.functional.cross_entropy
    assert loss(logits / model.temperature, labels) < loss(logits, labels)
    assert metrics_of(image_run)["pictures"] == {
        "train": len(folder.train) - len(held),
        "validation": len(held),
        "test": len(folder.test),
    }


def test_pictures_of_any_size_are_predicted(image: ModuleType, image_run: Path) -> None:
    """The exported graph takes any height and width, and answers as PyTorch does."""
    contract = Contract.from_json((image_run / "contract.json").read_text())
    assert str(contract.inputs[0]) == "pixels: uint8[batch, height, width, 3]"
    assert contract.batch_axis == "batch"
    model = trained(image, image_run)
    session = onnxruntime.InferenceSession(image_run / "model.onnx")
    for shape in [(1, 1, 1, 3), (2, 5, 40, 3), (1, 300, 200, 3)]:
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        (got,) = session.run(["probabilities"], {"pixels": pixels})
        with torch.no_grad():
            want = model(torch.from_numpy(pixels))["probabilities"]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_it_is_packed_with_its_handler(image_run: Path, tmp_path: Path) -> None:
    """The run folder becomes an archive with the handler, the labels and how it was trained."""
    run_marship("package", image_run, "--model-store", tmp_path)
    with zipfile.ZipFile(tmp_path / "image.mar") as archive:
        assert {"image_handler.py", "picture.json", "contract.json"} <= set(archive.namelist())
        assert json.loads(archive.read("picture.json"))["labels"] == list("0123456789")


def test_equal_seeds_give_equal_runs(image: ModuleType, tmp_path: Path) -> None:
    """Two runs of one seed have the same weights bit by bit, another seed has not."""
    digits, weights = write_digits(tmp_path / "digits", most=200), []
    for number, seed in enumerate((1, 1, 2)):
        given = {"data_dir": digits, "epochs": 1, "side": 8, "width": 4, "seed": seed, "threads": 1}
        settings = image.Settings(run_dir=tmp_path / str(number), batch_size=256, **given)
        image.main.__wrapped__(settings=settings)
        model = image.build("none", 8, 4, 10)
        load_weights(settings.run_dir / "checkpoint.pt", model)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_interrupted_run_resumes_to_the_same_result(
    image: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its third epoch and resumed, it ends with the weights of a run in one piece."""
    digits, weights = write_digits(tmp_path / "digits", most=200), []
    make_task, seen = image.make_task, []

    def failing_task(*given: Any) -> Any:
        task = make_task(*given)

        def validate(model: torch.nn.Module) -> dict[str, float]:
            seen.append(model)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return task.validate(model)

        return replace(task, validate=validate)

    whole = image.Settings(
        run_dir=tmp_path / "whole", data_dir=digits, epochs=4, side=8, width=4, threads=1
    )
    image.main.__wrapped__(settings=whole)
    torn = replace(whole, run_dir=tmp_path / "torn")
    with monkeypatch.context() as patched:
        patched.setattr(image, "make_task", failing_task)
        with pytest.raises(KeyboardInterrupt):
            image.main.__wrapped__(settings=torn)
    image.main.__wrapped__(settings=replace(torn, resume=True))
    for run_dir in (whole.run_dir, torn.run_dir):
        model = image.build("none", 8, 4, 10)
        load_weights(run_dir / "checkpoint.pt", model)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert [row["epoch"] for row in metrics_of(torn.run_dir)["history"]] == [1, 2, 3, 4]


def test_held_out_and_test_are_judged_without_near_copies(image_run: Path) -> None:
    """metrics.json has both accuracies, whole and without pictures that train has copies of."""
    metrics = metrics_of(image_run)
    for part in ("validation", "test"):
        found = metrics[part]
        others = metrics["pictures"][part] - found["near_copies"]
        right = found["accuracy"] * metrics["pictures"][part]
        assert others > 0.98 * metrics["pictures"][part]
        assert found["accuracy_without_near_copies"] * others <= right + 1e-9
    assert metrics["validation"]["near_copies"] == 0


def test_few_pictures_to_calibrate_on_are_reported(digits: Path, tmp_path: Path) -> None:
    """A temperature from a few held-out pictures is not trusted, and the run says so."""
    flags = ["--run-dir", str(tmp_path / "run"), "--data-dir", str(digits), "--epochs", "1"]
    few = run_recipe("image", *flags, *SMALL, "--width", "4")
    assert "held-out pictures, too few to trust" in few.stdout


def test_a_finished_run_is_not_trained_again(digits: Path, image_run: Path) -> None:
    """The same command says that the folder holds this run already."""
    flags = ["--run-dir", str(image_run), "--data-dir", str(digits), "--epochs", "8", *SMALL]
    done = run_recipe("image", *flags, "--validation", "0.2")
    assert "holds this run already" in done.stdout


@pytest.mark.parametrize(("side", "shape"), [(8, 4), (32, 4), (64, 4), (224, 7)])
def test_the_small_network_fits_pictures_of_any_size(
    image: ModuleType, side: int, shape: int
) -> None:
    """Whatever the side, the last stage sees at least 4 x 4, and few of them."""
    network = image.ResNet(side, 4, 3).eval()
    with torch.no_grad():
        assert network.layers(torch.zeros(1, 3, side, side)).shape[2:] == (shape, shape)
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data_dir": None}, UsageError("data_dir must be a folder of pictures")),
        ({"data_dir": Path("none")}, UsageError("none must hold train/<class>/")),
        ({"backbone": "vgg"}, UsageError("backbone must be one of none, efficientnet-lite0")),
        ({"optimizer": "adam"}, UsageError("optimizer must be sgd or adamw")),
        (
            {"backbone": "efficientnet-lite0", "side": 100},
            UsageError("side must be a multiple of 32"),
        ),
        ({"classes": 7}, DataError("must hold 7 classes, got 10")),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    image: ModuleType,
    digits: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    expected: MarshipError,
) -> None:
    """Such a setting ends with an error that names it, and without a run folder."""
    given = {"run_dir": tmp_path / "run", "data_dir": digits, "side": 8, **changes}
    with pytest.raises(type(expected), match=str(expected)):
        image.main.__wrapped__(settings=image.Settings(**given))
    assert not (tmp_path / "run").exists()


def test_damaged_data_end_before_training(tmp_path: Path) -> None:
    """A file that is no picture is one line on the screen, before the first epoch."""
    copy = write_digits(tmp_path / "digits", most=100)
    (copy / "train/3/0000.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = run_recipe("image", "--run-dir", str(tmp_path / "run"), "--data-dir", str(copy), *SMALL)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "train/3/0000.png" in done.stderr
    assert not (tmp_path / "run").exists()
