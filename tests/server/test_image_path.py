"""Pictures on the whole path: training on a folder, serving, and predictions for a folder."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from digits_folder import write_digits
from marship import Client
from marship.engines.torchserve import server
from marship.fit.checkpoint import load_weights
from marship.fit.recipe import resolve
from marship.serving import pictures
from recipes import REPOSITORY, run_marship, run_recipe

SMALL = ["--side", "8", "--width", "16", "--mirror", "0", "--batch-size", "64", "--epochs", "3"]
VARIANTS = ("float32", "int8_static")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as a folder of pictures."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A run folder, exported and optimized."""
    folder = tmp_path_factory.mktemp("image")
    done = run_recipe("image", "--run-dir", str(folder), "--data-dir", str(digits), *SMALL)
    assert done.returncode == 0, done.stderr
    run_marship("export", folder, "--proof-seconds", 10)
    run_marship("optimize", folder, "--measure-s", "0.2", "--search-s", "10")
    return folder


@pytest.fixture(scope="module")
def served(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a server with the model on it, in float32 and in int8."""
    store, home = tmp_path_factory.mktemp("image-store"), tmp_path_factory.mktemp("home")
    for variant in VARIANTS:
        how = ("--name", f"digits-{variant}", "--variant", variant)
        run_marship("package", run_dir, "--model-store", store, *how)
    one = server.start(server.ServeSettings(home=home, model_store=store, free_ports=True))
    with Client(one.home.path) as client:
        for variant in VARIANTS:
            client.register(f"digits-{variant}.mar")
    yield one.home.path
    one.stop()


@pytest.fixture(scope="module")
def expected(run_dir: Path, digits: Path) -> dict[str, tuple[str, float]]:
    """What PyTorch says of each file's pixels, decoded as the handler does: label, probability."""
    settings = json.loads((run_dir / "settings.json").read_text())
    names = ("backbone", "side", "width", "classes")
    model = resolve(str(REPOSITORY / "training/image.py:build"))(
        **{name: settings[name] for name in names}
    )
    load_weights(run_dir / "checkpoint.pt", model)
    model.eval()
    about = json.loads((run_dir / "picture.json").read_text())
    shortest = pictures.shortest_side(about["side"], about["crop"])
    files = list((digits / "train").rglob("*.*"))
    decoded = [pictures.decode(file.read_bytes(), shortest).pixels for file in files]
    answers = {}
    for shape in {pixels.shape for pixels in decoded}:
        alike = [i for i, pixels in enumerate(decoded) if pixels.shape == shape]
        with torch.no_grad():
            batch = model(torch.from_numpy(np.stack([decoded[i] for i in alike])))
        for i, probabilities in zip(alike, batch["probabilities"], strict=True):
            best = int(probabilities.argmax())
            answers[str(files[i])] = (about["labels"][best], float(probabilities[best]))
    return answers


def ask(name: str, home: Path, digits: Path, out: Path) -> dict[str, tuple[str, float]]:
    """What a served model says of each file."""
    run_marship("predict", name, digits / "train", "--home", home, "--out", out)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    return {row["file"]: (row["label"], float(row["probability"])) for row in rows}


def test_a_folder_of_pictures_gets_the_labels_that_pytorch_gives(
    served: Path, expected: dict[str, tuple[str, float]], digits: Path, tmp_path: Path
) -> None:
    """A thousand files and more, JPEG, PNG, WebP, grey and RGB: served labels are PyTorch's."""
    answers = ask("digits-float32", served, digits, tmp_path / "answers.csv")
    kinds = Counter(Path(file).suffix for file in answers)
    assert min(kinds[".jpg"], kinds[".png"]) > 500
    assert kinds[".webp"] > 100
    assert answers.keys() == expected.keys()
    for file, (label, probability) in expected.items():
        assert answers[file] == (label, pytest.approx(probability, abs=1e-4)), file


def test_int8_gives_nearly_all_of_them(
    served: Path, expected: dict[str, tuple[str, float]], digits: Path, tmp_path: Path
) -> None:
    """98 of 100 labels of the static int8 are PyTorch's, and its probabilities are its own."""
    answers = ask("digits-int8_static", served, digits, tmp_path / "answers.csv")
    equal = sum(answers[file][0] == label for file, (label, _) in expected.items())
    assert equal > 0.98 * len(expected)
    assert max(abs(answers[file][1] - said) for file, (_, said) in expected.items()) > 1e-3
