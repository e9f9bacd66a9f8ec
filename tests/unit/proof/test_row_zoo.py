"""The proof of independent rows on generated graphs whose nature is known by construction."""

from pathlib import Path

import onnx
import pytest

import onnx_zoo as zoo
from marship.proof import graph, parity

pytestmark = pytest.mark.slow

ROW_WISE_GRAPHS = 140
LEAST_SHARE = 0.95


def taken_for_independent(model: onnx.ModelProto, path: Path) -> bool:
    """Whether the graph would get a batch axis."""
    onnx.save(model, path)
    found = parity.row_influence(graph.contract_of(path), parity.runner(path))
    assert found is not None
    return found.agrees


@pytest.mark.parametrize("stage", sorted(zoo.MIXING))
def test_no_graph_that_mixes_rows_gets_a_batch_axis(stage: str, tmp_path: Path) -> None:
    """Whatever stands before and after the stage, and whatever the input is."""
    entrances = ("plain", "flat") if stage in zoo.NEEDS_ANY_VALUE else zoo.ENTRANCES
    wrong = []
    for seed in range(3):
        entrance = entrances[(seed + len(stage)) % len(entrances)]
        model, name = zoo.build(seed, stage, entrance, stages=2)
        if taken_for_independent(model, tmp_path / "model.onnx"):
            wrong.append(name)
    assert not wrong


def test_nearly_all_row_wise_graphs_get_a_batch_axis(tmp_path: Path) -> None:
    """Rounding that depends on the batch's size is no influence."""
    refused = []
    for seed in range(ROW_WISE_GRAPHS):
        entrance = zoo.ENTRANCES[seed % len(zoo.ENTRANCES)]
        model, name = zoo.build(1000 + seed, None, entrance, stages=1 + seed % 4)
        if not taken_for_independent(model, tmp_path / "model.onnx"):
            refused.append(name)
    share = 1 - len(refused) / ROW_WISE_GRAPHS
    assert share >= LEAST_SHARE, refused


@pytest.mark.parametrize("stage", sorted(zoo.ROW_WISE))
def test_each_row_wise_stage_alone_gets_a_batch_axis(stage: str, tmp_path: Path) -> None:
    """No operator is refused as such."""
    model, _ = zoo.alone(stage)
    assert taken_for_independent(model, tmp_path / "model.onnx")


@pytest.mark.parametrize("stage", sorted(zoo.UNSHOWN))
def test_what_its_values_alone_make_row_wise_is_not_joined(stage: str, tmp_path: Path) -> None:
    """Graphs of the same operators mix rows, and no run shows it: see docs/decisions.md."""
    model, _ = zoo.alone(stage)
    assert not taken_for_independent(model, tmp_path / "model.onnx")
