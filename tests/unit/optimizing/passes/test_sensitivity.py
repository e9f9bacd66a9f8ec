"""Static int8 finds by itself which layers must stay float, and looks at no held-out row for it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import zoo
from marship.cli import tables
from marship.contract import Contract
from marship.exporting.step import ExportSettings, export_run
from marship.fit.recipe import Recipe, resolve
from marship.optimizing.passes import saturation
from marship.optimizing.passes.int8_static import CONVOLUTIONAL, Quantizer
from marship.optimizing.passes.layers import plan
from marship.optimizing.passes.prepare import prepared
from marship.optimizing.passes.sensitivity import fewest
from marship.optimizing.source import ExportedModel
from marship.optimizing.step import OptimizeSettings, optimize

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torchlib_read_once")]

ZOO = Path(zoo.__file__)
QUICK = OptimizeSettings(measure_s=0.2)
RECIPE = Recipe(
    "spiked", build=f"{ZOO}:Spiked", judge=f"{ZOO}:judge", metric="accuracy", budget=0.02
)
TYPES = ("Conv", "Gemm", "MatMul", "Relu", "MaxPool", "Mul", "Add")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported CNN that int8 ruins: one channel is a thousand times larger than the others."""
    from sklearn import datasets  # here: test-fast collects this file and needs it not

    folder = tmp_path_factory.mktemp("spiked")
    digits = datasets.load_digits()
    images, labels = digits.images[..., None].astype(np.uint8), digits.target
    torch.manual_seed(0)
    model = resolve(f"{ZOO}:Spiked")()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for start in [*range(0, 1200, 50)] * 2:
        x, y = (torch.from_numpy(a[start : start + 50]) for a in (images, labels))
        optimizer.zero_grad()
        nn.functional.nll_loss(model(x)["output"].log(), y).backward()
        optimizer.step()
    model.spike(1000)
    torch.save(model.state_dict(), folder / "checkpoint.pt")
    (folder / "settings.json").write_text("{}")
    np.savez(folder / "examples.npz", image=images[:32])
    calibration = {"image": images[1000:1400], "target/label": labels[1000:1400]}
    np.savez(folder / "calibration.npz", **calibration)
    np.savez(folder / "heldout.npz", image=images[1400:], **{"target/label": labels[1400:]})
    RECIPE.save(folder)
    export_run(folder, ExportSettings())
    return folder


@pytest.fixture
def run_dir(exported: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "spiked"))


def optimized(folder: Path, settings: OptimizeSettings = QUICK) -> dict[str, Any]:
    """The report's entry of static int8."""
    tables.show_optimized(optimize(folder, settings))
    report = json.loads((folder / "optimize.json").read_text())
    return {entry["name"]: entry for entry in report["variants"]}["int8_static"]


def operators(folder: Path) -> dict[str, str]:
    """By the name of each product of the exported model, what it multiplies: its weight's name."""
    graph = onnx.load(folder / "model.onnx").graph
    return {n.name: n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}


def test_the_layers_to_blame_stay_float(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all in int8 loses the accuracy, the fewest layers are left out that keep it."""
    entry = optimized(run_dir)
    details = entry["details"]
    assert min(details["loss_all_int8"].values()) > 0.1
    weights = operators(run_dir)
    blamed = {weights[layer["node"]] for layer in details["stays_float"]}
    assert blamed
    assert blamed <= {"model.second.weight", "model.third.weight"}
    assert details["layers_tried"] == details["layers"]
    assert details["loss_by_float_layers"][str(len(blamed))] <= 0.02
    if len(blamed) > 1:
        assert details["loss_by_float_layers"][str(len(blamed) - 1)] > 0.02
    assert entry["metric_drop"] <= 0.02
    assert "stay float, else" in capsys.readouterr().out


def test_what_stays_float_is_float_in_the_file(run_dir: Path) -> None:
    """Its weights are float32 in the graph, those of the others int8."""
    details = optimized(run_dir)["details"]
    blamed = {layer["node"] for layer in details["stays_float"]}
    graph = onnx.load(run_dir / "model.int8_static.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            dequantized = makers.get(node.input[1])
            assert (dequantized is None) == (node.name in blamed)


def test_what_is_left_float_runs_in_float(exported: Path, tmp_path: Path) -> None:
    """ONNX Runtime, which quantizes float layers between int8 ones by itself, leaves these."""
    contract = Contract.from_json((exported / "contract.json").read_bytes())
    with np.load(exported / "calibration.npz") as rows:
        source = ExportedModel(exported / "model.onnx", contract, {"image": rows["image"]})
    with prepared(source, tmp_path) as model:
        found = plan(model, CONVOLUTIONAL)
        quantizer = Quantizer(source, model, tuple(CONVOLUTIONAL))
        middle = found.layers[1]
        path = quantizer.write(tmp_path / "int8.onnx", [*found.outside, *middle.nodes])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(path, options)
    graph = onnx.load(tmp_path / "loaded.onnx").graph
    kinds = [node.op_type for node in graph.node if "Conv" in node.op_type]
    assert kinds.count("QLinearConv") == 2
    assert len(kinds) == 3


def test_without_targets_nothing_is_searched(run_dir: Path) -> None:
    """What int8 loses then shows on the held-out rows only, and rules it out."""
    with np.load(run_dir / "calibration.npz") as rows:
        np.savez(run_dir / "calibration.npz", image=rows["image"])
    entry = optimized(run_dir)
    assert entry["details"] == saturation.entry()  # bits of the weights on this processor
    assert entry["metric_drop"] > 0.1
    assert "over the budget" in entry["why"]


def test_held_out_rows_have_no_say_in_the_search(run_dir: Path) -> None:
    """With other held-out rows the same layers stay float: they only judge in the end."""
    before = optimized(run_dir)["details"]
    with np.load(run_dir / "heldout.npz") as rows:
        labels = np.roll(rows["target/label"], 7)
        np.savez(run_dir / "heldout.npz", image=rows["image"], **{"target/label": labels})
    assert optimized(run_dir)["details"] == before


def test_the_search_ends_in_time(run_dir: Path) -> None:
    """With no time at all no layer is tried, and the variant is built and ruled out."""
    entry = optimized(run_dir, replace(QUICK, search_s=0))
    assert entry["details"]["layers_tried"] == 0
    assert entry["details"]["stays_float"] == []
    assert "over the budget" in entry["why"]


def test_a_budget_that_is_kept_needs_no_search(run_dir: Path) -> None:
    """With a budget wide enough all layers are in int8."""
    replace(RECIPE, budget=1.0).save(run_dir)
    details = optimized(run_dir)["details"]
    assert details["stays_float"] == []
    assert "layers_tried" not in details


def test_a_few_rows_are_too_few(run_dir: Path) -> None:
    """Of three rows with targets none could be asked that gives no ranges."""
    with np.load(run_dir / "calibration.npz") as rows:
        np.savez(run_dir / "calibration.npz", **{name: rows[name][:3] for name in rows.files})
    assert "fewer than 4 rows" in optimized(run_dir)["why"]


def test_only_what_lies_between_products_is_quantized(exported: Path, tmp_path: Path) -> None:
    """Normalising before and the softmax after stay float; a ReLU goes with its layer."""
    contract = Contract.from_json((exported / "contract.json").read_bytes())
    with prepared(ExportedModel(exported / "model.onnx", contract, None), tmp_path) as model:
        found = plan(model, TYPES)
        kinds = {node.name: node.op_type for node in onnx.load(model).graph.node}
    assert [kinds[name] for name in found.outside] == ["Mul"]
    assert [layer.operator for layer in found.layers] == ["Conv", "Conv", "Conv", "MaxPool", "Gemm"]
    assert [len(layer.nodes) for layer in found.layers] == [2, 2, 2, 1, 1]
    nodes = [name for layer in found.layers for name in layer.nodes]
    assert set(found.all_but(found.layers[0].name)) == set(nodes) - set(found.layers[0].nodes)


@pytest.mark.parametrize("enough", [1, 2, 3, 7, 20, 37])
def test_the_fewest_that_suffice_are_found(enough: int) -> None:
    """Whatever the number, and by far fewer trials than there are layers."""
    tried = []

    def loss(count: int) -> float:
        tried.append(count)
        return 0.5 if count < enough else 0.1

    assert fewest(40, loss, budget=0.1) == enough
    assert len(tried) <= 12


def test_none_suffice() -> None:
    """Where even the most allowed lose too much, there is no answer."""
    assert fewest(5, lambda _: 1.0, budget=0.1) is None
