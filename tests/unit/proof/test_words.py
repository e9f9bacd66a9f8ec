"""Values that a graph knows by name: what is drawn of them, and what only they show."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Contract
from marship.proof import graph, onnx_proof, parity, patterns, words

S, F, I = TensorProto.STRING, TensorProto.FLOAT, TensorProto.INT64  # noqa: E741
OTHERS = [
    helper.make_node("Cast", ["known"], ["number"], to=F),
    helper.make_node("ReduceMax", ["number"], ["any"], axes=[0], keepdims=1),
    helper.make_node("Add", ["number", "any"], ["y"]),
]
"""Any row that is known shifts all others."""
OWN = [helper.make_node("Cast", ["known"], ["y"], to=F)]


def ml(name: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    """A node of ai.onnx.ml."""
    return helper.make_node(name, inputs, outputs, domain="ai.onnx.ml", **attributes)


def saved(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, np.ndarray] | None = None,
) -> Path:
    """A file with an output y: float32 of the inputs' rows, and any number of columns."""
    rows = next(iter(inputs.values()))[1][0]
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, *form) for name, form in inputs.items()],
        [helper.make_tensor_value_info("y", F, [rows, None])],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(made, opset_imports=sets, ir_version=9), str(path))
    return path


def proven(path: Path, **settings: Any) -> onnx_proof.OnnxProof:
    """As packing does it, in this process."""
    return onnx_proof._prove(path, path.parent, onnx_proof.Wishes(**settings))


def stated(path: Path) -> Contract:
    """The contract with known values."""
    return words.worded(graph.contract_of(path), path)


KNOWING: dict[str, tuple[int, list[Any], dict[str, np.ndarray]]] = {
    "an encoder of labels": (S, [
        ml("LabelEncoder", ["x"], ["known"], keys_strings=["zebra", "yak"], values_floats=[1., 2.],
           default_float=0.0),
    ], {}),
    "an encoder of numbers": (I, [
        ml("LabelEncoder", ["x"], ["known"], keys_int64s=[417, -90], values_floats=[1.0, 2.0],
           default_float=0.0),
    ], {}),
    "a category": (S, [
        ml("OneHotEncoder", ["x"], ["hot"], cats_strings=["zebra", "yak"], zeros=1),
        helper.make_node("ReduceMax", ["hot"], ["known"], axes=[2], keepdims=0),
    ], {}),
    "a vocabulary": (S, [
        helper.make_node(
            "TfIdfVectorizer", ["x"], ["known"], mode="TF", min_gram_length=1, max_gram_length=1,
            max_skip_count=0, ngram_counts=[0], ngram_indexes=[0, 1], pool_strings=["zebra", "yak"],
        ),
    ], {}),
    "a mapping behind upper case": (S, [
        helper.make_node("Reshape", ["x", "flat"], ["row"]),
        helper.make_node("StringNormalizer", ["row"], ["upper"], case_change_action="UPPER",
                         locale="C.UTF-8"),
        helper.make_node("Reshape", ["upper", "column"], ["again"]),
        ml("CategoryMapper", ["again"], ["known"], cats_strings=["ZEBRA"], cats_int64s=[3],
           default_int64=0),
    ], {"flat": np.array([-1]), "column": np.array([-1, 1])}),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWING)
@pytest.mark.parametrize("mixes", [True, False])
def test_rows_that_meet_only_in_known_values_are_not_joined(
    name: str, mixes: bool, tmp_path: Path
) -> None:
    """Values of no vocabulary pass all rows as zeros."""
    kind, nodes, constants = KNOWING[name]
    path = saved(tmp_path / "g.onnx", [*nodes, *(OTHERS if mixes else OWN)],
                 {"x": (kind, ["n", 1])}, constants)  # fmt: skip
    found = parity.row_influence(stated(path), parity.runner(path))
    assert found is not None
    assert found.agrees is not mixes


def test_examples_without_a_known_word_hide_nothing(tmp_path: Path) -> None:
    """The graph's words are drawn beside those of the examples."""
    kind, nodes, _ = KNOWING["an encoder of labels"]
    path = saved(tmp_path / "g.onnx", [*nodes, *OTHERS], {"x": (kind, ["n", 1])})
    np.savez(tmp_path / "some.npz", x=np.array([["good"], ["bad"], ["fair"]]))
    assert proven(path, example=tmp_path / "some.npz").contract.batch_axis is None


def test_golden_cases_hold_the_graphs_words(tmp_path: Path) -> None:
    """Else they would compare nothing of the vocabulary, nor of the weights behind it."""
    nodes = [*KNOWING["a vocabulary"][1], *OWN]
    path = saved(tmp_path / "g.onnx", nodes, {"x": (S, ["n", 20])})
    found = proven(path)
    assert found.contract.batch_axis == "n"
    outputs = np.concatenate([case.outputs["y"] for case in found.cases])
    assert (outputs > 0).any(axis=0).all()
    texts = {text for case in found.cases for text in case.inputs["x"].ravel()}
    assert len(texts - {"zebra", "yak"}) > 3


def encoded(column: str, place: int, **values: Any) -> list[Any]:
    """A column of x cut out, and encoded by an encoder that refuses other values."""
    return [
        ml("ArrayFeatureExtractor", ["x", f"place{place}"], [column]),
        ml("OneHotEncoder", [column], [f"hot {column}"], zeros=0, **values),
        helper.make_node("Reshape", [f"hot {column}", "rows"], [f"row {column}"]),
    ]


STRICT: dict[str, tuple[list[Any], dict[str, tuple[int, list[Any]]]]] = {
    "two inputs": ([
        ml("OneHotEncoder", ["a"], ["hot a"], zeros=0, cats_strings=["f", "m"]),
        ml("OneHotEncoder", ["b"], ["hot b"], zeros=0, cats_strings=["C", "Q", "S"]),
        helper.make_node("Reshape", ["hot a", "rows"], ["row a"]),
        helper.make_node("Reshape", ["hot b", "rows"], ["row b"]),
        helper.make_node("Concat", ["row a", "row b"], ["y"], axis=1),
    ], {"a": (S, [None, 1]), "b": (S, [None, 1])}),
    "columns of one": (
        [*encoded("a", 0, cats_strings=["f", "m"]), *encoded("b", 1, cats_strings=["C", "Q", "S"]),
         helper.make_node("Concat", ["row a", "row b"], ["y"], axis=1)],
        {"x": (S, [None, 2])}),
    "whole numbers": (
        [*encoded("a", 0, cats_int64s=[7, 9]), *encoded("b", 1, cats_int64s=[100, 200, -5]),
         helper.make_node("Concat", ["row a", "row b"], ["y"], axis=1)],
        {"x": (I, [None, 2])}),
    "floats": (
        [ml("OneHotEncoder", ["x"], ["hot"], zeros=0, cats_int64s=[7, 9]),
         helper.make_node("Reshape", ["hot", "rows"], ["y"])], {"x": (F, [None, 1])}),
    "numbers as text": (
        [helper.make_node("Cast", ["x"], ["y"], to=F)], {"x": (S, [None, 2])}),
}  # fmt: skip


@pytest.mark.parametrize("name", STRICT)
def test_encoders_that_refuse_other_values_need_no_example(name: str, tmp_path: Path) -> None:
    """scikit-learn's default, handle_unknown="error": all that is drawn is of their categories."""
    nodes, inputs = STRICT[name]
    constants = {"rows": np.array([0, -1]), "place0": np.array([0]), "place1": np.array([1])}
    found = proven(saved(tmp_path / "g.onnx", nodes, inputs, constants))
    assert found.contract.batch_axis is not None
    assert "refuses" not in str(found.summary)
    assert len(found.cases) == 3
    assert all(np.any(case.outputs["y"] != found.cases[0].outputs["y"][:1]) for case in
               found.cases[1:])  # fmt: skip


def test_contracts_are_stored_without_vocabularies(tmp_path: Path) -> None:
    """They may be long, and the graph has them."""
    nodes, inputs = STRICT["numbers as text"]
    contract = proven(saved(tmp_path / "g.onnx", nodes, inputs)).contract
    assert Contract.from_json(contract.to_json()) == contract
    assert "known" not in contract.to_json()


@pytest.mark.parametrize(
    "pattern",
    [r"[0-9]{4}-[0-9]{2}", r"a|bc|d{2,}", r"[^a-z]\w+?\s*", r"(?:x|yz)*\.end$", r"^.[\d_-]?\D$",
     "[\u03b1-\u03c9]+", ""],
)  # fmt: skip
def test_texts_that_match_a_pattern_are_drawn(pattern: str) -> None:
    """What an operator compares with, such as a date."""
    drawn = patterns.matching(pattern)
    assert drawn
    assert all(re.fullmatch(pattern, text) for text in drawn)


def test_a_pattern_of_another_syntax_has_no_texts() -> None:
    """RE2 knows more than Python."""
    assert patterns.matching(r"\pL+") == []


def test_rows_that_meet_only_in_a_pattern_are_not_joined(tmp_path: Path) -> None:
    """A date in one row changes the others."""
    match = helper.make_node("RegexFullMatch", ["x"], ["known"], pattern="[0-9]{4}-[0-9]{2}")
    largest = helper.make_node("ReduceMax", ["number", "axis"], ["any"], keepdims=1)
    made = helper.make_graph(
        [match, OTHERS[0], largest, OTHERS[2]],
        "g",
        [helper.make_tensor_value_info("x", S, ["n", 1])],
        [helper.make_tensor_value_info("y", F, ["n", 1])],
        [numpy_helper.from_array(np.array([0]), "axis")],
    )
    sets = [helper.make_opsetid("", 20)]
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(made, opset_imports=sets, ir_version=9), str(path))
    found = parity.row_influence(stated(path), parity.runner(path))
    assert found is not None
    assert not found.agrees
