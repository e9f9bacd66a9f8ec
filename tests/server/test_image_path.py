"""Pictures on the whole path: a folder of them is learned, served, and a folder is asked for."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from digits_folder import write_digits
from marship import Client, server
from marship.checkpoint import load_weights
from marship.recipe import resolve
from marship.serving import pictures
from recipes import REPOSITORY, run_marship, run_recipe

SMALL = ["--side", "8", "--width", "16", "--mirror", "0", "--batch-size", "64", "--epochs", "3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as a folder of pictures."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A run folder, exported."""
    folder = tmp_path_factory.mktemp("image")
    done = run_recipe("image", "--run-dir", str(folder), "--data-dir", str(digits), *SMALL)
    assert done.returncode == 0, done.stderr
    run_marship("export", folder)
    return folder


@pytest.fixture(scope="module")
def served(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a server with the model on it."""
    store, home = tmp_path_factory.mktemp("image-store"), tmp_path_factory.mktemp("home")
    run_marship("package", run_dir, "--model-store", store, "--name", "digits")
    one = server.start(server.ServeSettings(home=home, model_store=store, free_ports=True))
    with Client(one.home.path) as client:
        client.register("digits.mar")
    yield one.home.path
    one.stop()


def test_a_folder_of_pictures_gets_the_labels_that_pytorch_gives(
    served: Path, run_dir: Path, digits: Path, tmp_path: Path
) -> None:
    """A thousand files and more, grey and RGB, of two sizes: served labels are PyTorch's."""
    out = tmp_path / "answers.csv"
    run_marship("predict", "digits", digits / "train", "--home", served, "--out", out)
    with out.open() as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    settings = json.loads((run_dir / "settings.json").read_text())
    names = ("backbone", "side", "width", "classes")
    model = resolve(str(REPOSITORY / "training/image.py:build"))(
        **{name: settings[name] for name in names}
    )
    load_weights(run_dir / "checkpoint.pt", model)
    model.eval()
    about = json.loads((run_dir / "picture.json").read_text())
    labels, shortest = about["labels"], round(about["side"] / about["crop"])
    files = sorted((digits / "train").rglob("*.png"))
    assert len(files) == len(rows) > 1000
    for file in files:
        pixels = torch.from_numpy(pictures.decode(file.read_bytes(), shortest).pixels)[None]
        with torch.no_grad():
            probabilities = model(pixels)["probabilities"][0]
        row = rows[file.name]
        assert row["label"] == labels[int(probabilities.argmax())], file
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-4)
