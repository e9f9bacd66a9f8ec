"""Finds the inputs of an ONNX file whose values may be missing, as NaN.

Gradient-boosted trees and imputers treat NaN as "not known"; for other models NaN is a fault of the
client's, which would come back as NaN, or as a wrong value where a comparison hides it. So an input
takes missing values only if an operator asks for NaN, and if a run then gives no NaN.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from marship.contract import Arrays, Contract, GoldenCase
from marship.errors import ModelError, UsageError
from marship.proof.cases import batches, draw_random, sizes_to_try
from marship.proof.comparison import RunModel

if TYPE_CHECKING:  # onnx takes a while to import
    from onnx import GraphProto, NodeProto

AUTO, ALLOW, REFUSE, ANY = "auto", "allow", "refuse", "any"
CHOICES = (AUTO, ALLOW, REFUSE, ANY)
ALLOWING = (ALLOW, ANY)
"""Choices by which all inputs of floats take NaN; by the second they take infinity, too."""
SHARE = 0.3
"""Of the values that are NaN in the run that holds the operators' word against the outputs."""
SEEDS = 3

_SAME_VALUES = {
    *("Cast", "CastLike", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split"),
    *("Squeeze", "Transpose", "Unsqueeze", "ArrayFeatureExtractor", "FeatureVectorizer"),
}
"""Operators that hand NaN on unchanged."""
_ASKING = {"IsNaN", "Imputer"}
_TREES = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}


def check_choice(choice: str) -> None:
    """Check the setting for missing values.

    Raises:
        UsageError: It is none of the choices.
    """
    if choice not in CHOICES:
        raise UsageError(f"missing-values must be one of {', '.join(CHOICES)}, got {choice!r}.")


def allowed(contract: Contract, names: set[str] | None = None) -> Contract:
    """The contract whose float inputs, or those of these names alone, take missing values."""
    inputs = tuple(
        replace(s, takes_missing=s.dtype.startswith("float") and (names is None or s.name in names))
        for s in contract.inputs
    )
    return replace(contract, inputs=inputs)


def refused(contract: Contract, golden: list[GoldenCase]) -> tuple[Contract, list[GoldenCase]]:
    """The contract that takes no missing values, and the golden cases without any."""
    gaps = [spec.name for spec in contract.inputs if spec.takes_missing]
    kept = [case for case in golden if not any(np.isnan(case.inputs[name]).any() for name in gaps)]
    return allowed(contract, set()), kept


def decided(contract: Contract, path: Path, run: RunModel, choice: str) -> Contract:
    """The contract that says which inputs take missing values.

    Args:
        contract: The contract.
        path: The ONNX file.
        run: Runs it.
        choice: `allow` or `any` for all inputs of floats, `refuse` for none, `auto` for those
            whose graph asks for NaN and then gives outputs without.
    """
    if choice in ALLOWING:
        return allowed(contract)
    if choice == REFUSE:
        return contract
    import onnx

    from marship.proof import operators

    graph = operators.inlined(onnx.load(str(path), load_external_data=False)).graph
    names = {spec.name for spec in contract.inputs if _asks(graph, spec.name)}
    with_gaps = allowed(contract, names)
    answers = names and all(_answers(with_gaps, run, seed) for seed in range(SEEDS))
    return with_gaps if answers else contract


def golden_from(run: RunModel, contract: Contract) -> list[GoldenCase]:
    """A golden case with missing values, if the model takes some."""
    if not any(spec.takes_missing for spec in contract.inputs):
        return []
    inputs = _inputs_with_gaps(contract, SEEDS)
    return [GoldenCase(inputs, run(inputs))]


def _asks(graph: "GraphProto", name: str) -> bool:
    """Whether an operator that expects NaN gets the input's values."""
    reached = {name}
    for node in graph.node:  # they are sorted: ONNX, IR.md, "Graphs"
        if not reached.intersection(node.input):
            continue
        if node.op_type in _ASKING or (node.op_type in _TREES and any(_tracks(node))):
            return True
        if node.op_type in _SAME_VALUES:
            reached.update(node.output)
    return False


def _tracks(node: "NodeProto") -> Iterator[int]:
    """By tree node, whether a missing value goes the way of a true comparison."""
    from onnx import helper, numpy_helper

    for entry in node.attribute:
        if entry.name == "nodes_missing_value_tracks_true":
            value = helper.get_attribute_value(entry)
            yield from numpy_helper.to_array(value) if entry.HasField("t") else value


def _answers(contract: Contract, run: RunModel, seed: int) -> bool:
    """Whether the model runs on missing values, and gives no NaN."""
    try:
        outputs = run(_inputs_with_gaps(contract, seed))
    except ModelError:
        return False
    return not any(np.isnan(a).any() for a in outputs.values() if a.dtype.kind == "f")


def _inputs_with_gaps(contract: Contract, seed: int) -> Arrays:
    sizes = {**batches(contract)[-1], **sizes_to_try(contract, None)[-1]}
    inputs = draw_random(contract, None, sizes, seed).inputs
    generator = np.random.default_rng(seed)
    for spec in contract.inputs:
        if spec.takes_missing:
            gaps = generator.random(inputs[spec.name].shape) < SHARE
            inputs[spec.name] = np.where(gaps, np.nan, inputs[spec.name]).astype(spec.dtype)
    return inputs
