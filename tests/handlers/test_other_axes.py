"""Models whose batch is not the first axis of everything are served without joining requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from marship.packaging.step import PackageSettings, package
from marship.serving.handler import OnnxHandler
from marship.trust import archive
from odd_models import FLOAT, INT64, Shape, graph_of
from workers import Worker

pytestmark = pytest.mark.slow

Start = Callable[[Path, type], Worker]
WIDTH, STATE = 3, 4


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers, float32."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def lstm(path: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """An LSTM with its state in and out: x [batch, time, width], h and c [layers, batch, width]."""
    state: Shape = [1, "batch", STATE]
    source = graph_of(
        path,
        [
            helper.make_node("Transpose", ["x"], ["series"], perm=[1, 0, 2]),
            helper.make_node(
                "LSTM", ["series", "w", "r", "", "", "h0", "c0"], ["all", "h", "c"],
                hidden_size=STATE,
            ),
            helper.make_node("Squeeze", ["h", "zero"], ["y"]),
        ],
        {"x": (FLOAT, ["batch", "time", WIDTH]), "h0": (FLOAT, state), "c0": (FLOAT, state)},
        {"y": (FLOAT, ["batch", STATE]), "h": (FLOAT, state), "c": (FLOAT, state)},
        {"w": normal(1, 4 * STATE, WIDTH), "r": normal(1, 4 * STATE, STATE), "zero": np.array([0])},
    )  # fmt: skip
    sizes = [(1, 2), (1, 2), (3, 5), (2, 1)]
    return source, [
        {
            "x": normal(rows, time, WIDTH, seed=seed),
            "h0": normal(1, rows, STATE, seed=seed),
            "c0": normal(1, rows, STATE, seed=seed + 9),
        }
        for seed, (rows, time) in enumerate(sizes)
    ]


def time_first(path: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A GRU over [time, batch, width], to as many."""
    source = graph_of(
        path,
        [
            helper.make_node("GRU", ["x", "w", "r"], ["all"], hidden_size=STATE),
            helper.make_node("Squeeze", ["all", "one"], ["y"]),
        ],
        {"x": (FLOAT, ["time", "batch", WIDTH])},
        {"y": (FLOAT, ["time", "batch", STATE])},
        {"w": normal(1, 3 * STATE, WIDTH), "r": normal(1, 3 * STATE, STATE), "one": np.array([1])},
    )
    sizes = [(4, 1), (4, 1), (2, 3), (1, 1)]
    return source, [{"x": normal(t, n, WIDTH, seed=i)} for i, (t, n) in enumerate(sizes)]


def suppression(path: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """The best boxes of pictures: as many rows as there are, none in one case."""
    source = graph_of(
        path,
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["y"])],
        {"boxes": (FLOAT, ["n", "boxes", 4]), "scores": (FLOAT, ["n", 1, "boxes"])},
        {"y": (INT64, ["n", 3])},
        {
            "most": np.array([5]),
            "iou": np.array([0.5], np.float32),
            "least": np.array([0.5], np.float32),
        },
    )
    requests = []
    for seed, (rows, count) in enumerate([(1, 3), (1, 3), (2, 6), (1, 1)]):
        generator = np.random.default_rng(seed)
        low = generator.random((rows, count, 2), np.float32)
        scores = generator.random((rows, 1, count), np.float32) * (seed != 3) * 0.9
        requests.append({"boxes": np.concatenate([low, low + 0.3], 2), "scores": scores})
    return source, requests


@pytest.mark.parametrize("model", [lstm, time_first, suppression])
def test_each_request_has_its_own_outputs(model: Any, tmp_path: Path, worker: Start) -> None:
    """One batch of requests of equal and of other sizes: each has what the file gives it alone."""
    source, requests = model(tmp_path / "odd.onnx")
    settings = PackageSettings(model_store=tmp_path / "store", profile="throughput")
    mar = package(source, settings)
    contract = archive.read(mar).contract
    assert contract is not None
    assert contract.batch_axis is None
    bodies = [{name: array.tolist() for name, array in one.items()} for one in requests]
    answers = worker(mar, OnnxHandler)(
        *({"body": json.dumps(body).encode()} for body in bodies), content_type="application/json"
    )
    session = onnxruntime.InferenceSession(source)
    names = [output.name for output in session.get_outputs()]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.status == 200, answer.body
        found = answer.json() if isinstance(answer.json(), dict) else {names[0]: answer.json()}
        for name, want in zip(names, session.run(None, request), strict=True):
            got = np.array(found[name], want.dtype).reshape(want.shape)
            np.testing.assert_allclose(got, want, atol=1e-6)
