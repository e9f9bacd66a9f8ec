"""Where values may be missing: in the columns that operators ask for NaN, from their operators."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Contract
from marship.proof import graph, missing, parity

ML = "ai.onnx.ml"
COLUMNS = 4


def node(kind: str, takes: str, gives: str, **attributes: Any) -> Any:
    """A node; names of tensors are separated by spaces."""
    known = ("Scaler", "Imputer", "ArrayFeatureExtractor", "TreeEnsembleRegressor")
    domain = ML if kind in known else ""
    return helper.make_node(kind, takes.split(), gives.split(), domain=domain, **attributes)


def imputer(takes: str, gives: str, columns: int = COLUMNS, replaced: float = np.nan) -> Any:
    """An Imputer that puts 7 in place of a value."""
    return node(
        "Imputer", takes, gives, imputed_value_floats=[7.0] * columns, replaced_value_float=replaced
    )


def tree(takes: str, gives: str, *, mode: str = "BRANCH_LEQ", track: int = 0) -> Any:
    """A tree over the second column."""
    return node(
        *("TreeEnsembleRegressor", takes, gives), n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0],
        nodes_modes=[mode, "LEAF", "LEAF"], nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[track, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0],
        target_weights=[10.0, 20.0],
    )  # fmt: skip


def scaled(takes: str, gives: str) -> Any:
    """A Scaler as skl2onnx writes StandardScaler."""
    return node("Scaler", takes, gives, offset=[1.0] * COLUMNS, scale=[2.0] * COLUMNS)


STORED = {
    "first": np.array([0]), "rest": np.array([1, 2, 3]), "last two": np.array([3, 2]),
    "mean": np.ones(COLUMNS, np.float32), "two": np.array(2.0, np.float32),
    "zero": np.array(0.0, np.float32), "starts": np.array([1]), "ends": np.array([3]),
    "axes": np.array([1]), "pair": np.array([1, 3]),
}  # fmt: skip


def decide(
    tmp_path: Path, nodes: Sequence[Any], choice: str = missing.AUTO, producer: str = ""
) -> tuple[Contract, str | None]:
    """What is decided for a model from `x`, float32[n, 4], to `y`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])
    used = {name.replace("_", " ") for one in nodes for name in one.input}
    stored = [
        numpy_helper.from_array(array, name.replace(" ", "_"))
        for name, array in STORED.items()
        if name in used
    ]
    body = helper.make_graph(list(nodes), "g", [x], [y], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
    path = tmp_path / "m.onnx"
    onnx.save(
        helper.make_model(body, opset_imports=opsets, ir_version=8, producer_name=producer),
        str(path),
    )
    return missing.decided(graph.contract_of(path), path, parity.runner(path), choice)


ALL = set(range(COLUMNS))
GRAPHS: dict[str, tuple[list[Any], set[int]]] = {
    "imputer": ([imputer("x", "y")], ALL),
    "imputer of zeros": ([imputer("x", "y", replaced=0.0)], set()),
    "zeros, then the largest": (
        [
            imputer("x", "t", replaced=0.0),
            node("ArgMax", "t", "i", axis=1),
            node("Cast", "i", "y", to=TensorProto.FLOAT),
        ],
        set(),
    ),
    "scaler": ([scaled("x", "s"), imputer("s", "y")], ALL),
    "scaler, tree": ([scaled("x", "s"), tree("s", "y", track=1)], ALL),
    "arithmetic": (
        [
            node("Sub", "x mean", "a"),
            node("Div", "a two", "b"),
            node("Mul", "b mean", "c"),
            node("Add", "two c", "d"),
            imputer("d", "y"),
        ],
        ALL,
    ),
    "x == x": ([node("Equal", "x x", "e"), node("Where", "e x zero", "y")], ALL),
    "tree without ways": ([tree("x", "y")], set()),
    "one column imputed": (
        [
            node("ArrayFeatureExtractor", "x first", "a"),
            imputer("a", "b", 1),
            node("ArrayFeatureExtractor", "x rest", "c"),
            node("Concat", "b c", "d", axis=1),
            tree("d", "y"),
        ],
        {0},
    ),
    "two columns gathered, one imputed": (
        [
            node("Gather", "x last_two", "a", axis=1),
            node("Add", "a two", "s"),
            node("ArrayFeatureExtractor", "s first", "b"),
            imputer("b", "c", 1),
            node("Concat", "c x", "d", axis=1),
            tree("d", "y"),
        ],
        set(),  # the tree gets column 3 as it is, too
    ),
    "slice imputed": (
        [node("Slice", "x starts ends axes", "a"), imputer("a", "y", 2)],
        {1, 2},
    ),
    "split, put together otherwise": (
        [
            node("Split", "x pair", "a b", axis=1),
            node("Concat", "b a", "c", axis=1),
            node("Gather", "c first", "d", axis=1),
            imputer("d", "y", 1),
        ],
        {1},
    ),
    "asked for NaN, and cast to integers": (
        [
            node("IsNaN", "x", "n"),
            node("Cast", "n", "f", to=TensorProto.FLOAT),
            node("Cast", "x", "i", to=TensorProto.INT64),
            node("Cast", "i", "g", to=1),
            node("Add", "f g", "y"),
        ],
        set(),
    ),
    "NaN of logarithms imputed": ([node("Log", "x", "l"), imputer("l", "y")], set()),
    "NaN of 0 / 0 imputed": ([node("Div", "x x", "d"), imputer("d", "y")], set()),
    "cast to another float": ([node("Cast", "x", "w", to=1), imputer("w", "y")], ALL),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_values_may_be_missing_in_the_columns_that_are_asked_for_nan(
    name: str, tmp_path: Path
) -> None:
    """And where no operator hides it on another way."""
    nodes, wanted = GRAPHS[name]
    contract, _ = decide(tmp_path, nodes)
    (spec,) = contract.inputs
    assert spec.takes_missing is bool(wanted)
    assert set(spec.full_columns) == (ALL - wanted if wanted else set())
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("producer", "mode", "takes"),
    [
        ("OnnxMLTools", "BRANCH_LT", True),
        ("skl2onnx", "BRANCH_LT", True),
        ("OnnxMLTools", "BRANCH_LEQ", False),
        ("", "BRANCH_LT", False),
        ("CatBoost", "BRANCH_GT", True),
        ("CatBoost", "BRANCH_LT", False),
        ("OnnxMLTools", "BRANCH_GT", False),
    ],
)
def test_trees_of_xgboost_and_catboost_take_missing_values(
    producer: str, mode: str, takes: bool, tmp_path: Path
) -> None:
    """They always have a way for them: the false one, where training had none missing."""
    contract, _ = decide(tmp_path, [tree("x", "y", mode=mode)], producer=producer)
    assert contract.inputs[0].takes_missing is takes


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("imputer", "missing values (null, NaN) are taken in x"),
        ("one column imputed", r"taken in x[:, 0], and refused elsewhere; --missing-values allow"),
        ("tree without ways", "are refused: no operator asks for them; --missing-values allow"),
    ],
)
def test_what_was_decided_is_said(name: str, line: str, tmp_path: Path) -> None:
    """With the setting that decides otherwise."""
    _, said = decide(tmp_path, GRAPHS[name][0])
    assert said is not None
    assert line in said


def test_a_model_that_gives_nan_all_the_same_is_said_to(tmp_path: Path) -> None:
    """An operator asks for NaN, another one lets it through."""
    nodes = [imputer("x", "a"), node("Add", "a x", "y")]
    contract, said = decide(tmp_path, nodes)
    assert not contract.inputs[0].takes_missing
    assert said is not None
    assert "a run with some fails or gives NaN" in said


def test_a_golden_case_has_gaps_in_its_columns_alone(tmp_path: Path) -> None:
    """Elsewhere no request may have one."""
    contract, _ = decide(tmp_path, GRAPHS["one column imputed"][0])
    (case,) = missing.golden_from(parity.runner(tmp_path / "m.onnx"), contract)
    has_gaps = np.isnan(case.inputs["x"]).any(axis=0)
    assert has_gaps.tolist() == [True, False, False, False]


def test_what_allows_gaps_everywhere_leaves_no_column_out(tmp_path: Path) -> None:
    """Not those either that were found to take none when the model was optimized."""
    found, _ = decide(tmp_path, GRAPHS["one column imputed"][0])
    assert found.inputs[0].full_columns
    (spec,) = missing.allowed(found).inputs
    assert spec.takes_missing
    assert not spec.full_columns
