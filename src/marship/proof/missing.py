"""Finds the inputs of an ONNX file whose values may be missing, as NaN.

Gradient-boosted trees and imputers treat NaN as "not known"; for other models NaN is a fault of the
client's, which would come back as NaN, or as a wrong value where a comparison hides it. So an input
takes missing values only in columns for which an operator asks for NaN, and if a run then gives no
NaN.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from marship.contract import Arrays, Contract, GoldenCase, TensorSpec
from marship.errors import ModelError, UsageError
from marship.proof.cases import batches, draw_random, sizes_to_try
from marship.proof.comparison import RunModel

AUTO, ALLOW, REFUSE, ANY = "auto", "allow", "refuse", "any"
CHOICES = (AUTO, ALLOW, REFUSE, ANY)
ALLOWING = (ALLOW, ANY)
"""Choices by which all inputs of floats take NaN; by the second they take infinity, too."""
SHARE = 0.3
"""Of the values that are NaN in the run that holds the operators' word against the outputs."""
SEEDS = 3

_TABLES = "ai.onnx.ml"
_ALLOWS = "--missing-values allow takes them"


def check_choice(choice: str) -> None:
    """Check the setting for missing values.

    Raises:
        UsageError: It is none of the choices.
    """
    if choice not in CHOICES:
        raise UsageError(f"missing-values must be one of {', '.join(CHOICES)}, got {choice!r}.")


def allowed(contract: Contract) -> Contract:
    """The contract whose float inputs take missing values."""
    inputs = tuple(
        replace(spec, takes_missing=spec.dtype.startswith("float"), full_columns=())
        for spec in contract.inputs
    )
    return replace(contract, inputs=inputs)


def refused(contract: Contract, golden: list[GoldenCase]) -> tuple[Contract, list[GoldenCase]]:
    """The contract that takes no missing values, and the golden cases without any."""
    gaps = [spec.name for spec in contract.inputs if spec.takes_missing]
    kept = [case for case in golden if not any(np.isnan(case.inputs[name]).any() for name in gaps)]
    inputs = tuple(replace(s, takes_missing=False, full_columns=()) for s in contract.inputs)
    return replace(contract, inputs=inputs), kept


def decided(
    contract: Contract, path: Path, run: RunModel, choice: str
) -> tuple[Contract, str | None]:
    """The contract that says where values may be missing, and what was decided in one line.

    Args:
        contract: The contract.
        path: The ONNX file.
        run: Runs it.
        choice: `allow` or `any` for all inputs of floats, `refuse` for none, `auto` for the columns
            whose graph asks for NaN and then gives outputs without.

    Returns:
        Both; no line where nothing was to be decided: no table, and no operator that asks for NaN.
    """
    if choice in ALLOWING:
        return allowed(contract), None
    if choice == REFUSE:
        return contract, None
    import onnx

    from marship.proof import gaps, operators

    model = operators.inlined(onnx.load(str(path), load_external_data=False))
    floats = [spec for spec in contract.inputs if spec.dtype.startswith("float")]
    asked = {spec.name: columns for spec in floats if (columns := gaps.taken(model, spec))}
    tries = [asked, *({name: columns} for name, columns in asked.items())]
    answered = [names for names in tries if names and _answers(_taking(contract, names), run)]
    found = _taking(contract, answered[0] if answered else {})
    is_table = any(entry.domain == _TABLES for entry in model.opset_import)
    return found, _line(found, bool(asked), is_table=is_table and bool(floats))


def _taking(contract: Contract, columns: Mapping[str, Collection[int]]) -> Contract:
    """The contract whose inputs take missing values in columns, by name."""
    from marship.proof import gaps

    def taking(spec: TensorSpec) -> TensorSpec:
        if not (some := columns.get(spec.name)):
            return spec
        full = tuple(place for place in range(gaps.count(spec)) if place not in some)
        return replace(spec, takes_missing=True, full_columns=full)

    return replace(contract, inputs=tuple(map(taking, contract.inputs)))


def _line(contract: Contract, asks: bool, *, is_table: bool) -> str | None:
    """What was decided."""
    floats = [spec for spec in contract.inputs if spec.dtype.startswith("float")]
    names = [spec.missing_in for spec in floats if spec.takes_missing]
    if asks and not names:
        return (
            "missing values are refused: an operator asks for NaN, but a run with some fails or "
            f"gives NaN; {_ALLOWS}"
        )
    if names:
        elsewhere = any(spec.full_columns or not spec.takes_missing for spec in floats)
        rest = f", and refused elsewhere; {_ALLOWS}" if elsewhere else ""
        return f"missing values (null, NaN) are taken in {', '.join(names)}{rest}"
    if is_table:
        return f"missing values (null, NaN) are refused: no operator asks for them; {_ALLOWS}"
    return None


def golden_from(run: RunModel, contract: Contract) -> list[GoldenCase]:
    """A golden case with missing values, if the model takes some."""
    if not any(spec.takes_missing for spec in contract.inputs):
        return []
    inputs = _inputs_with_gaps(contract, SEEDS)
    return [GoldenCase(inputs, run(inputs))]


def _answers(contract: Contract, run: RunModel) -> bool:
    """Whether the model runs on missing values, and gives no NaN."""
    try:
        outputs = [run(_inputs_with_gaps(contract, seed)) for seed in range(SEEDS)]
    except ModelError:
        return False
    arrays = [array for one in outputs for array in one.values()]
    return not any(np.isnan(array).any() for array in arrays if array.dtype.kind == "f")


def _inputs_with_gaps(contract: Contract, seed: int) -> Arrays:
    sizes = {**batches(contract)[-1], **sizes_to_try(contract, None)[-1]}
    inputs = draw_random(contract, None, sizes, seed).inputs
    generator = np.random.default_rng(seed)
    for spec in contract.inputs:
        if spec.takes_missing:
            gaps = generator.random(inputs[spec.name].shape) < SHARE
            if spec.full_columns:
                gaps[..., list(spec.full_columns)] = False
            inputs[spec.name] = np.where(gaps, np.nan, inputs[spec.name]).astype(spec.dtype)
    return inputs
