"""Checkpoint to ONNX, with the proof that both give the same answers.

`model.onnx`, `contract.json`, `golden.npz` and `parity.json` appear in the run folder
together, or not at all: an export that fails leaves an older one as it was.
"""

import hashlib
import inspect
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship import console, parity
from marship.cases import Case, draw_cases, read_rows, shared_axis
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Arrays,
    Contract,
    Tolerance,
    agree,
    digest_files,
    largest_difference,
    write_golden,
)
from marship.errors import DataError, MarshipError, ParityError, UsageError
from marship.layout import Layout, check_inputs, check_outputs, completed, layout
from marship.parity import Comparison, Run
from marship.recipe import Recipe, resolve
from marship.settings import as_dict, setting
from marship.storage import read_json, replacing_all, write_json

if TYPE_CHECKING:  # torch takes a second to import, and --help needs none of it
    from torch import nn

MODEL_FILE = "model.onnx"
PARITY_FILE = "parity.json"
CHECKPOINT_FILE = "checkpoint.pt"
SETTINGS_FILE = "settings.json"
EXAMPLES_FILE = "examples.npz"

OPSETS = range(18, 25)
"""From what the exporter writes to the newest that ONNX Runtime 1.32 was tried with."""

VERSIONED = ("marship", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a model becomes an ONNX file."""

    dynamic: tuple[str, ...] = setting(
        (),
        "a variable axis beside the batch, as INPUT:AXIS=NAME, like items:1=length; "
        "an input with a pad value varies in its axis 1 in any case",
    )
    bounds: tuple[str, ...] = setting(
        (),
        "smallest and largest size of a variable axis, as NAME=LOW:HIGH, like length=1:50; "
        "without it the size in the example is the largest, and the batch has no limit",
    )
    pad: tuple[str, ...] = setting(
        (),
        "the value that fills an input's short rows on the right, as INPUT=VALUE, like items=0; "
        "the export fails where that changes an answer",
    )
    fixed_batch: bool = setting(False, "the first axis is not a batch of variable size")
    output_names: tuple[str, ...] = setting(
        (), "names of the outputs in their order; else a dict's keys, output_0, 1, ... or output"
    )
    atol: float = setting(1e-4, "largest absolute difference allowed to PyTorch", minimum=0)
    rtol: float = setting(1e-3, "largest relative difference allowed beside it", minimum=0)
    opset: int = setting(
        23,
        "ONNX operator set, 18 to 24; 23 is the first with attention as one operator",
        minimum=OPSETS[0],
        maximum=OPSETS[-1],
    )
    again: bool = setting(False, "export anew where nothing has changed, too")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to.

    Attributes:
        run_dir: The folder that holds it.
        contract: As written to contract.json.
        report: As written to parity.json.
        fresh: False where an earlier export of the same things was kept.
    """

    run_dir: Path
    contract: Contract
    report: Mapping[str, Any]
    fresh: bool


def export_run(run_dir: Path, settings: ExportSettings) -> Exported:
    """Export the trained model of a recipe's run folder.

    Raises:
        UsageError: The folder or a setting is not one that can be exported.
        CheckpointError: The weights do not fit the model.
        ModelError: The model cannot be converted.
        ParityError: The ONNX file answers differently; nothing is written.
    """
    recipe = Recipe.load(run_dir)
    weights = run_dir / CHECKPOINT_FILE
    if not weights.is_file():
        raise UsageError(f"{run_dir} must hold {CHECKPOINT_FILE}, got none. Train the model first.")
    given = _read_settings(run_dir / SETTINGS_FILE)
    source = _Source(run_dir, recipe, given, weights, run_dir / EXAMPLES_FILE, own=False)
    return _export(source, settings)


def export_model(
    build: str,
    *,
    example: Path,
    settings: ExportSettings,
    weights: Path | None = None,
    out: Path | None = None,
) -> Exported:
    """Export a model of one's own into a run folder that optimize and package take.

    Args:
        build: `package.module:function` or `file.py:function`; called without arguments, it
            gives the `nn.Module`.
        example: An npz with an array for each input, named as forward's parameters are; the
            first axis is the batch.
        settings: Variable axes, bounds, pad values.
        weights: A state dict (.pt, .safetensors); None where `build` loads its own.
        out: The run folder; `runs/<module>` where it is None.

    Raises:
        UsageError: A file is missing, a reference or a setting cannot be meant.
        DataError: The example does not hold forward's inputs.
        CheckpointError: The weights do not fit the model.
        ModelError: The model cannot be converted.
        ParityError: The ONNX file answers differently; nothing is written.
    """
    if weights is not None and not weights.is_file():
        raise UsageError(f"{weights} must be a file of weights, got none there.")
    stem = Path(build.rpartition(":")[0]).name.removesuffix(".py").rpartition(".")[2]
    run_dir = out or Path("runs") / stem
    recipe = Recipe(
        name=re.sub(r"[^A-Za-z0-9_-]+", "-", run_dir.resolve().name),
        build=build,
        evidence={"weights_sha256": digest_files(weights)} if weights else {},
    )
    return _export(_Source(run_dir, recipe, {}, weights, example, own=True), settings)


@dataclass(frozen=True, slots=True)
class _Source:
    """What an export is made from; `own` where there was no recipe before it."""

    run_dir: Path
    recipe: Recipe
    given: Mapping[str, Any]
    weights: Path | None
    example: Path
    own: bool


def _export(source: _Source, settings: ExportSettings) -> Exported:
    if settings.opset not in OPSETS:
        raise UsageError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {settings.opset}.")
    examples = read_rows(source.example)
    source = replace(source, recipe=completed(source.recipe, settings.pad, settings.bounds))
    build = _resolved(source.recipe.build)
    made_from = _fingerprint(source, build, settings)
    kept = None if settings.again else _kept(source.run_dir, made_from)
    if kept is not None:
        console.out.print(f"{source.run_dir / MODEL_FILE} is up to date; --again exports anew.")
        return kept
    with replacing_all(source.run_dir) as draft:
        exported = _write(source, build, examples, settings, draft)
        report = {"made_from": made_from, **exported.report}
        write_json(draft / PARITY_FILE, report)
        (draft / CONTRACT_FILE).write_text(exported.contract.to_json())
        if source.own:
            source.recipe.save(draft)
            shutil.copyfile(source.example, draft / EXAMPLES_FILE)
    for name in {f"{MODEL_FILE}.data"} - set(exported.contract.files):
        (source.run_dir / name).unlink(missing_ok=True)  # of an earlier, larger model
    return replace(exported, report=report)


def _write(
    source: _Source,
    build: Callable[..., Any],
    examples: Arrays,
    settings: ExportSettings,
    draft: Path,
) -> Exported:
    from marship import capture, outputs

    started = time.perf_counter()
    recipe, path = source.recipe, draft / MODEL_FILE
    with console.progress() as progress:
        task = progress.add_task("building the model", total=None)
        model = _built(build, source)
        ordered = {name: examples[name] for name in capture.input_order(model, examples)}
        shape = layout(recipe, ordered, settings.dynamic, fixed_batch=settings.fixed_batch)
        progress.update(task, description="converting to ONNX")
        names = capture.output_names(model, ordered, settings.output_names)
        reference = capture.torch_run(model, names)
        _check_repeatable(reference, ordered)
        capture.write_onnx(model, ordered, path, layout=shape, outputs=names, opset=settings.opset)
        contract = _stated(path, recipe, shape, settings)
        check_inputs(contract, shape)
        cases = list(draw_cases(contract, ordered))
        progress.update(task, description="comparing with PyTorch", total=len(cases))
        answers = [(case, reference(case.inputs)) for case in progress.track(cases, task_id=task)]
        outputs.state_output_shapes(path, [(case.sizes, want) for case, want in answers])
        outputs.name_output_axes(path, recipe.output_axes)
        contract = _stated(path, recipe, shape, settings)
        candidate = parity.runner(path)
        comparisons = [_compared(candidate, case, want, contract) for case, want in answers]
        progress.update(task, description="comparing rows alone and together")
        contract, proofs = _proven(contract, candidate, ordered)
    write_golden(draft / GOLDEN_FILE, parity.golden_from(reference, contract, ordered))
    report = _report(comparisons, contract, proofs, time.perf_counter() - started)
    return Exported(source.run_dir, contract, report, fresh=True)


def _check_repeatable(reference: Run, examples: Arrays) -> None:
    first, second = reference(examples), reference(examples)
    if not agree(first, second, Tolerance(0.0, 0.0)):
        raise ParityError(
            "the model must give the same answer twice, got outputs "
            f"{largest_difference(second, first)[0]:.3g} apart for the same input. "
            "Take the randomness out of forward."
        )


def _stated(path: Path, recipe: Recipe, shape: Layout, settings: ExportSettings) -> Contract:
    from marship import graph

    return graph.contract_of(
        path,
        pad_values=recipe.pad_values,
        bounds=shape.bounds,
        tolerance=Tolerance(settings.atol, settings.rtol),
    )


def _compared(candidate: Run, case: Case, want: Arrays, contract: Contract) -> Comparison:
    tolerance = contract.tolerance
    got = candidate(case.inputs)
    check_outputs(contract, case.sizes, got)
    found = parity.compare(want, got, case, tolerance)
    if not found.agrees:
        raise ParityError(
            f"ONNX Runtime's answers must be within {tolerance.atol:g} + {tolerance.rtol:g} x "
            f"|PyTorch's|, got {found.absolute:.3g} apart (relative {found.relative:.3g}) for "
            f"{case}. Look for branches on values in forward, or state a wider --atol or --rtol."
        )
    return found


def _proven(
    contract: Contract, run: Run, examples: Arrays
) -> tuple[Contract, dict[str, Comparison | None]]:
    """The contract with its batch axis, and the evidence about rows and padding."""
    influence = parity.row_influence(contract, run, examples)
    if influence is not None and influence.agrees:
        contract = replace(contract, batch_axis=shared_axis(contract))
    padding = parity.prove_padding(contract, run, examples)
    return contract, {"rows": influence, "padding": padding}


def _report(
    comparisons: list[Comparison],
    contract: Contract,
    proofs: Mapping[str, Comparison | None],
    seconds: float,
) -> dict[str, Any]:
    return {
        "reference": "PyTorch, eager, eval mode",
        "candidate": "ONNX Runtime, CPUExecutionProvider",
        "tolerance": asdict(contract.tolerance),
        "largest_difference": {
            "absolute": max(found.absolute for found in comparisons),
            "relative": max(found.relative for found in comparisons),
        },
        "batch_axis": contract.batch_axis,
        "rows_alone_and_together": _evidence(proofs["rows"]),
        "rows_padded_and_not": _evidence(proofs["padding"]),
        "cases": [asdict(found) for found in comparisons],
        "digest": contract.digest,
        "opset": contract.opset,
        "versions": _versions(),
        "seconds": round(seconds, 2),
    }


def _evidence(found: Comparison | None) -> dict[str, Any] | str:
    if found is None:
        return "not applicable"
    apart = math.isinf(found.absolute)
    return asdict(found) | ({"absolute": None, "relative": None} if apart else {})


def _built(build: Callable[..., Any], source: _Source) -> "nn.Module":
    """The model in eval mode on the CPU, with its weights."""
    import torch
    from torch import nn

    from marship.checkpoint import load_weights

    reference = source.recipe.build
    parameters = inspect.signature(build).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    try:
        model = build(**{k: v for k, v in source.given.items() if takes_any or k in parameters})
    except MarshipError:
        raise
    except Exception as error:  # the reader's code: it may raise anything
        raise UsageError(
            f"{reference} must build the model, got {type(error).__name__}: {error}."
        ) from error
    model = getattr(model, "_orig_mod", model)  # of a module that torch.compile wraps
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"{reference} must return an nn.Module, got {type(model).__name__}. "
            "Return the model in Python: neither traced nor scripted."
        )
    if source.weights is not None:
        load_weights(source.weights, model)
    return model.cpu().eval()


def _resolved(reference: str) -> Callable[..., Any]:
    try:
        return resolve(reference)
    except MarshipError:
        raise
    except Exception as error:  # a reader's file may raise anything when it is loaded
        raise UsageError(f"{reference} must load, got {type(error).__name__}: {error}.") from error


def _read_settings(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold settings by name, got {type(values).__name__}.")
    return values


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in VERSIONED}


def _fingerprint(source: _Source, build: Callable[..., Any], settings: ExportSettings) -> str:
    """A digest of everything that an export depends on."""
    code = inspect.getsourcefile(build)
    files = [file for file in (source.weights, source.example, code) if file is not None]
    facts = {
        "recipe": asdict(source.recipe),
        "given": source.given,
        "settings": as_dict(replace(settings, again=False)),
        "files": [digest_files(Path(file)) for file in files],
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _kept(run_dir: Path, made_from: str) -> Exported | None:
    """The export that lies in the folder, if it was made from the same things and is whole."""
    files = [run_dir / name for name in (PARITY_FILE, CONTRACT_FILE, GOLDEN_FILE, MODEL_FILE)]
    if not all(file.is_file() for file in files):
        return None
    try:
        report = read_json(run_dir / PARITY_FILE)
        contract = Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())
        whole = digest_files(*(run_dir / name for name in contract.files)) == contract.digest
    except (MarshipError, OSError):  # damaged: it is made anew
        return None
    if not whole or report.get("made_from") != made_from:
        return None
    return Exported(run_dir, contract, report, fresh=False)
