"""Recommenders of six items, and their archives."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from marship.packaging.mar import Contents, build
from marship.packaging.step import PackageSettings
from marship.proof import graph, parity
from models import write_model
from workers import HANDLERS

ITEMS = 6
LENGTH = 4


def pack_recommender(folder: Path) -> Path:
    """A recommender of six items: item i scores 10 i + the sum of the history's ratings.

    Padding has rating 0, so it adds nothing.
    """
    base = numpy_helper.from_array(10 * np.arange(ITEMS + 1, dtype=np.float32)[None], "base")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    nodes = [
        helper.make_node("Cast", ["items"], ["mask"], to=TensorProto.BOOL),
        helper.make_node("Cast", ["mask"], ["known"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["known", "ratings"], ["rated"]),
        helper.make_node("ReduceSum", ["rated", "axes"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "base"], ["scores"]),
    ]
    return _pack(folder, nodes, [base, axes])


def pack_neighbours(folder: Path, *, step: float = 0) -> Path:
    """A recommender of six items: item i scores `step` times i, and what the events say of it.

    Each adds a row of random numbers from -0.7 to 0.7, times 1 + its rating.
    """
    rows = np.random.default_rng(0).uniform(-0.7, 0.7, (ITEMS + 1, ITEMS + 1)).astype(np.float32)
    rows[0] = 0  # padding
    initializers = [
        numpy_helper.from_array(rows, "rows"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(
            np.float32(step) * np.arange(ITEMS + 1, dtype=np.float32)[None], "base"
        ),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "axes"),
    ]
    nodes = [
        helper.make_node("Gather", ["rows", "items"], ["near"]),
        helper.make_node("Add", ["ratings", "one"], ["weights"]),
        helper.make_node("Unsqueeze", ["weights", "last"], ["factors"]),
        helper.make_node("Mul", ["near", "factors"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axes"], ["added"], keepdims=0),
        helper.make_node("Add", ["added", "base"], ["scores"]),
    ]
    return _pack(folder, nodes, initializers)


def _pack(folder: Path, nodes: list[NodeProto], initializers: list[TensorProto]) -> Path:
    history = [
        helper.make_tensor_value_info("items", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("ratings", TensorProto.FLOAT, ["batch", "length"]),
    ]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", ITEMS + 1])
    model = write_model(
        folder / "model.onnx",
        helper.make_graph(nodes, "recommender", history, [scores], initializers),
    )
    contract = graph.contract_of(
        model, pad_values={"items": 0, "ratings": 0}, bounds={"length": (1, LENGTH)}
    )
    contract, golden = parity.describe(contract, parity.runner(model))
    titles = folder / "items.json"
    titles.write_text(json.dumps({str(i): {"title": f"Film {i}"} for i in range(1, ITEMS + 1)}))
    return build(
        Contents(
            name="recommend",
            handler=HANDLERS / "recommend_handler.py",
            model=model,
            contract=replace(contract, batch_axis="batch"),
            golden=golden,
            evidence={},
            assets=(titles,),
        ),
        PackageSettings(model_store=folder / "store"),
    )
