"""docs/onnx.md: a voice activity detector whose state the client carries, over real HTTP."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from marship import Client
from marship.engines.torchserve.server import Server
from marship.errors import InvalidInputError
from marship.packaging.step import PackageSettings, package
from odd_models import FLOAT, graph_of, skip

WIDTH, CHUNK = 8, 160
PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GRU over the loudness of chunks, with the state as an input and an output."""
    generator = np.random.default_rng(2)
    weights = {
        "w": generator.normal(size=(1, 3 * WIDTH, 1)),
        "r": generator.normal(size=(1, 3 * WIDTH, WIDTH)) / 4,
        "head": generator.normal(size=(WIDTH, 1)),
    }
    return graph_of(
        tmp_path_factory.mktemp("detector") / "detector.onnx",
        [
            helper.make_node("ReduceL2", ["chunk", "one"], ["loudness"]),
            helper.make_node("Unsqueeze", ["loudness", "zero"], ["series"]),
            helper.make_node(
                "GRU", ["series", "w", "r", "", "", "state"], ["", "next_state"], hidden_size=WIDTH
            ),
            helper.make_node("Squeeze", ["next_state", "zero"], ["last"]),
            helper.make_node("MatMul", ["last", "head"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
        ],
        {"chunk": (FLOAT, ["batch", CHUNK]), "state": (FLOAT, [1, "batch", WIDTH])},
        {"probability": (FLOAT, ["batch", 1]), "next_state": (FLOAT, [1, "batch", WIDTH])},
        {
            **{name: array.astype(np.float32) for name, array in weights.items()},
            "zero": np.array([0]),
            "one": np.array([1]),
        },
    )


def test_a_detector_is_asked_chunk_by_chunk(
    detector: Path, running: Server, client: Client, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's code gives, chunk by chunk, what one process gives that keeps the state."""
    client.register(package(detector, PackageSettings(model_store=store)).name)
    generator = np.random.default_rng(1)
    loudness = np.repeat(generator.uniform(0, 0.5, 30), CHUNK)
    sound = (loudness * generator.normal(size=loudness.size)).astype(np.float32)
    monkeypatch.setenv("MARSHIP_HOME", str(running.home.path))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if '"detector"' in block)
    names = {"sound": sound}
    exec(code, names)  # noqa: S102  the page's own
    session = onnxruntime.InferenceSession(detector)
    state, want = np.zeros((1, 1, WIDTH), np.float32), []
    for chunk in sound.reshape(-1, 1, CHUNK):
        probability, state = session.run(None, {"chunk": chunk, "state": state})
        want.append(bool(probability[0, 0] > 0.5))
    assert names["is_speech"] == want
    assert len(set(want)) == 2
    np.testing.assert_allclose(names["state"], state, atol=1e-6)
    client.unregister("detector")


def test_sizes_that_a_model_refuses_are_400_at_both_addresses(
    running: Server, store: Path, tmp_path: Path
) -> None:
    """By TorchServe and straight to the worker: the rule, and then the next request is served."""
    example = np.ones((1, 1, 32, 16), np.float32)
    np.savez(tmp_path / "example.npz", x=example)
    settings = PackageSettings(model_store=store, example=tmp_path / "example.npz")
    archive = package(skip(tmp_path / "skip.onnx", 16), settings).name
    record = running.record
    for url in (record.inference_url, record.direct_url):
        with Client(running.home.path, inference_url=url, retry_s=0) as one:
            one.register(archive)
            with pytest.raises(InvalidInputError, match="at least 16 and a multiple of 16, got 17"):
                one.predict("skip", {"x": np.ones((1, 1, 32, 17), np.float32)})
            assert one.predict("skip", {"x": example}) == {"y": (2 * example).tolist()}
            one.unregister("skip")
