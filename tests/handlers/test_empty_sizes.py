"""Axes of size 0: a decoder's cache before its first step, a graph without edges, no boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Contract, write_golden
from marship.proof import onnx_proof, parity
from marship.serving.message import JSON_TYPE, Reply, Request
from marship.serving.service import Placement, Service
from odd_models import FLOAT, INT64, Shape, graph_of

pytestmark = pytest.mark.slow

node = helper.make_node
Stated = dict[str, tuple[int, Shape]]
CACHE: Shape = ["n", 2, "past", 4]
DECODER = (
    [
        node("Concat", ["cache", "new"], ["next"], axis=2),
        node("ReduceMean", ["next", "axes"], ["y"], keepdims=0),
    ],
    {"cache": (FLOAT, CACHE), "new": (FLOAT, ["n", 2, "step", 4])},
    {"y": (FLOAT, ["n", 4]), "next": (FLOAT, ["n", 2, "total", 4])},
    {"axes": np.array([1, 2])},
)
NEW = np.arange(8, dtype=np.float32).reshape(1, 2, 1, 4)


class Loaded:
    """A model, proven as `package` does, and loaded as a worker does."""

    def __init__(
        self,
        folder: Path,
        nodes: list[NodeProto],
        inputs: Stated,
        outputs: Stated,
        constants: dict[str, Any] | None = None,
    ) -> None:
        source = graph_of(folder / "model.onnx", nodes, inputs, outputs, constants or {})
        self.proof = onnx_proof._prove(source, folder, onnx_proof.Wishes(proof_seconds=5))
        self.run = parity.runner(source)
        (folder / CONTRACT_FILE).write_text(self.contract.to_json())
        write_golden(folder / GOLDEN_FILE, self.proof.cases)
        self.service = Service()
        self.service.load(Placement(folder=folder, name="odd"))

    @property
    def contract(self) -> Contract:
        """What was found of the model."""
        return self.proof.contract

    def ask(self, *values: Any) -> list[Reply]:
        """The replies to JSON requests that come at once."""
        replies, _ = self.service.reply(
            [Request(json.dumps(v).encode(), JSON_TYPE) for v in values]
        )
        return list(replies)


def test_a_cache_may_be_empty(tmp_path: Path) -> None:
    """The first step, beside later ones: alone, joined, as JSON that cannot show the last axis."""
    model = Loaded(tmp_path, *DECODER)
    assert model.contract.batch_axis == "n"
    assert model.contract.bounds["past"] == (0, None)
    assert any(case.inputs["cache"].shape[2] == 0 for case in model.proof.cases)
    caches: list[Any] = [[[[], []]], np.ones((1, 2, 3, 4)).tolist(), [[[], []]]]
    bodies = [{"cache": cache, "new": NEW.tolist()} for cache in caches]
    for body, reply in zip(bodies, model.ask(*bodies), strict=True):
        assert reply.status == 200, reply.body
        cache = np.asarray(body["cache"], np.float32).reshape(1, 2, -1, 4)
        for name, wanted in model.run({"cache": cache, "new": NEW}).items():
            assert np.allclose(json.loads(reply.body)[name], wanted)
    (both,) = model.ask({"cache": [[[], []]] * 2, "new": np.tile(NEW, (2, 1, 1, 1)).tolist()})
    assert len(json.loads(both.body)["y"]) == 2


def test_a_graph_may_have_no_edges(tmp_path: Path) -> None:
    """Outputs may be empty, too."""
    model = Loaded(
        tmp_path,
        [node("Gather", ["x", "edges"], ["y"])],
        {"x": (FLOAT, ["nodes", 4]), "edges": (INT64, ["count"])},
        {"y": (FLOAT, ["count", 4])},
    )
    full, empty = model.ask({"x": [[1, 2, 3, 4]], "edges": [0]}, {"x": [[1, 2, 3, 4]], "edges": []})
    assert json.loads(full.body) == {"y": [[1, 2, 3, 4]]}
    assert (empty.status, json.loads(empty.body)) == (200, {"y": []})
    (none,) = model.ask({"x": [], "edges": []})
    assert b"axis nodes of x must be at least 1, got 0" in none.body


def test_the_largest_of_nothing_is_refused(tmp_path: Path) -> None:
    """It runs, and is minus infinity."""
    model = Loaded(
        tmp_path,
        [
            node("ReduceMax", ["x", "axes"], ["most"], keepdims=0),
            node("Add", ["most", "bias"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "length", 3]), "bias": (FLOAT, ["n", 3])},
        {"y": (FLOAT, ["n", 3])},
        {"axes": np.array([1])},
    )
    assert model.contract.bounds == {}
    (reply,) = model.ask({"x": [[]], "bias": [[1, 2, 3]]})
    assert b"axis length of x must be at least 1, got 0" in reply.body


def test_a_request_without_any_value_is_refused(tmp_path: Path) -> None:
    """A text of no words, where the model has no other input."""
    model = Loaded(
        tmp_path, [node("Relu", ["x"], ["y"])],
        {"x": (FLOAT, ["n", "length"])}, {"y": (FLOAT, ["n", "length"])},
    )  # fmt: skip
    assert b"axis length of x must be at least 1, got 0" in model.ask({"x": [[]]})[0].body


def test_steps_of_recurrent_networks_are_not_tried_at_none(tmp_path: Path) -> None:
    """ONNX Runtime's LSTM ends the process, or leaves its outputs as memory was."""
    generator = np.random.default_rng(0)
    model = Loaded(
        tmp_path,
        [node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["", "y"], hidden_size=2)],
        {"x": (FLOAT, ["t", "n", 3]), "h": (FLOAT, [1, "n", 2]), "c": (FLOAT, [1, "n", 2])},
        {"y": (FLOAT, [1, "n", 2])},
        {
            "w": generator.normal(size=(1, 8, 3)).astype(np.float32),
            "r": generator.normal(size=(1, 8, 2)).astype(np.float32),
        },
    )
    assert model.contract.bounds == {}


def test_a_crash_at_an_empty_axis_is_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is proven again, without such sizes."""
    script = "import os; from marship.proof import empty; empty._repeats = lambda *_: os.abort(); "
    monkeypatch.setattr(onnx_proof, "_START", script + onnx_proof._START)
    nodes, inputs, outputs, constants = DECODER
    source = graph_of(tmp_path / "model.onnx", nodes, inputs, outputs, constants)
    found = onnx_proof.describe(source, tmp_path, onnx_proof.Wishes(proof_seconds=5))
    assert found.contract.bounds == {}
    assert found.contract.batch_axis == "n"
