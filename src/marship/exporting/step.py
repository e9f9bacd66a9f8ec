"""Checkpoint to ONNX, with the proof that both give the same answers.

`model.onnx`, `contract.json`, `golden.npz` and `parity.json` appear in the run folder
together, or not at all: an export that fails leaves an older one as it was.
"""

import inspect
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship import console
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
from marship.errors import DataError, MarshipError, ModelError, ParityError, UsageError
from marship.exporting.build import built, resolved
from marship.exporting.compare import (
    NotRunError,
    Proof,
    Sides,
    check_ranks,
    compare_further,
    compare_one,
    entry,
    open_run,
    remarks,
)
from marship.exporting.layout import Layout, check_inputs, completed, layout
from marship.exporting.settings import OPSETS, ExportSettings
from marship.fit.origin import fingerprint, local_files, versions
from marship.fit.recipe import Recipe
from marship.proof import golden, parity
from marship.proof.cases import draw_cases, read_rows
from marship.proof.comparison import Comparison, RunModel
from marship.settings import as_dict
from marship.storage import read_json, replacing_all, write_json

if TYPE_CHECKING:  # torch takes a second to import, and --help needs none of it
    from marship.exporting.guards import Doubt

MODEL_FILE = "model.onnx"
PARITY_FILE = "parity.json"
CHECKPOINT_FILE = "checkpoint.pt"
SETTINGS_FILE = "settings.json"
EXAMPLES_FILE = "examples.npz"

PLAIN_OPSET = 22
"""The last one in which attention is written as the operators that it consists of."""

VERSIONED = ("marship", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to.

    Attributes:
        run_dir: The folder that holds it.
        contract: As written to contract.json.
        report: As written to parity.json.
        fresh: False where an earlier export of the same things was kept.

    Example:
        >>> from pathlib import Path
        >>> marship.Exported(Path("runs/x"), contract=None, report={}, fresh=True).fresh
        True
    """

    run_dir: Path
    contract: Contract
    report: Mapping[str, Any]
    fresh: bool


def export(
    source: str | Path,
    settings: ExportSettings | None = None,
    *,
    example: str | Path | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
) -> Exported:
    """Convert a model to ONNX, and prove that the file computes what the PyTorch model does.

    Args:
        source: A run folder that a recipe has written; or `package.module:function` or
            `file.py:function`, which gives an `nn.Module`.
        settings: Variable axes, their bounds, pad values and tolerances; None is the defaults.
        example: Of a function: an npz with an array for each input, named as forward's parameters
            are; the first axis is the batch.
        weights: Of a function: a state dict (.pt, .safetensors); None where it loads its own.
        out: Of a function: the run folder to write; `runs/<module>` where it is None.

    Raises:
        UsageError: A file is missing, a reference or a setting cannot be meant.
        DataError: The example does not hold forward's inputs.
        CheckpointError: The weights do not fit the model.
        ModelError: The model cannot be converted.
        ParityError: The ONNX file computes something else; nothing is written.

    Example:
        >>> done = marship.export("model.py:build", example="example.npz", out="runs/tiny")
        >>> [str(spec) for spec in done.contract.inputs]
        ['x: float32[batch, 3]']
        >>> sorted(path.name for path in done.run_dir.iterdir())[:2]
        ['contract.json', 'examples.npz']
    """
    chosen = settings or ExportSettings()
    if ":" not in str(source) or Path(source).is_dir():
        return export_run(source, chosen)
    if example is None:
        raise UsageError("example must name an npz with the model's inputs, got none.")
    return export_model(str(source), example=example, settings=chosen, weights=weights, out=out)


def export_run(run_dir: str | Path, settings: ExportSettings) -> Exported:
    """Export the trained model of a recipe's run folder.

    Raises:
        UsageError: The folder or a setting is not one that can be exported.
        CheckpointError: The weights do not fit the model.
        ModelError: The model cannot be converted.
        ParityError: The ONNX file answers differently; nothing is written.
    """
    run_dir = Path(run_dir)
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
    example: str | Path,
    settings: ExportSettings,
    weights: str | Path | None = None,
    out: str | Path | None = None,
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
    example = Path(example)
    weights, out = (Path(path) if path else None for path in (weights, out))
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
    golden.check_kind(settings.golden)
    if settings.opset not in OPSETS:
        raise UsageError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {settings.opset}.")
    examples = read_rows(source.example)
    source = replace(source, recipe=completed(source.recipe, settings.pad, settings.bounds))
    build = resolved(source.recipe.build)
    made_from = _fingerprint(source, build, settings)
    kept = None if settings.again else _kept(source.run_dir, made_from)
    if kept is not None:
        console.out.print(f"{source.run_dir / MODEL_FILE} is up to date; --again exports anew.")
        return kept
    with replacing_all(source.run_dir) as draft:
        exported = _write_runnable(source, build, examples, settings, draft)
        report = {"made_from": made_from, **exported.report}
        write_json(draft / PARITY_FILE, report)
        (draft / CONTRACT_FILE).write_text(exported.contract.to_json())
        if source.own:
            source.recipe.save(draft)
            shutil.copyfile(source.example, draft / EXAMPLES_FILE)
    for name in {f"{MODEL_FILE}.data"} - set(exported.contract.files):
        (source.run_dir / name).unlink(missing_ok=True)  # of an earlier, larger model
    return replace(exported, report=report)


def _write_runnable(
    source: _Source,
    build: Callable[..., Any],
    examples: Arrays,
    settings: ExportSettings,
    draft: Path,
) -> Exported:
    """Export; where ONNX Runtime does not run the file, with the last opset without Attention."""
    try:
        return _write(source, build, examples, settings, draft)
    except NotRunError as error:
        if settings.opset <= PLAIN_OPSET:
            raise
        try:
            done = _write(source, build, examples, replace(settings, opset=PLAIN_OPSET), draft)
        except ModelError:
            raise error from None
        console.out.print(
            f"opset {PLAIN_OPSET} was taken: with opset {settings.opset} {error}",
            markup=False,
            soft_wrap=True,
        )
        return done


def _write(
    source: _Source,
    build: Callable[..., Any],
    examples: Arrays,
    settings: ExportSettings,
    draft: Path,
) -> Exported:
    from marship.exporting import capture

    started = time.perf_counter()
    with console.progress() as progress:
        task = progress.add_task("building the model", total=None)
        model = built(build, source.recipe.build, source.given, source.weights)
        ordered = {name: examples[name] for name in capture.input_order(model, examples)}
        shape = layout(source.recipe, ordered, settings.dynamic, fixed_batch=settings.fixed_batch)
        progress.update(task, description="converting to ONNX")
        names = capture.output_names(model, ordered, settings.output_names)
        reference = capture.torch_run(model, names)
        _check_repeatable(reference, ordered)
        doubts = capture.write_onnx(
            model, ordered, draft / MODEL_FILE, layout=shape, outputs=names, opset=settings.opset
        )
        proof_started = time.perf_counter()
        progress.update(task, description="comparing with PyTorch")
        sides, proof = _compare_first(
            reference, ordered, doubts, draft / MODEL_FILE, _Stated(source.recipe, shape, settings)
        )
        progress.update(task, description="comparing at more sizes")
        share = 1 - parity.SHARE_OF_ROWS
        compare_further(sides, proof, proof_started + share * settings.proof_seconds)
        progress.update(task, description="comparing rows alone and together")
        contract, proofs = _proven(sides.contract, sides.candidate, ordered, settings.proof_seconds)
    kept = parity.golden_from(reference, contract, ordered, settings.golden)
    parity.check_golden(sides.candidate, kept, contract)
    write_golden(draft / GOLDEN_FILE, kept)
    report = {
        "reference": "PyTorch, eager, eval mode",
        "candidate": "ONNX Runtime, CPUExecutionProvider",
        **entry(proof, contract, proofs),
        "golden": settings.golden,
        "versions": versions(*VERSIONED),
        "proof_seconds_allowed": settings.proof_seconds,
        "proof_seconds": round(time.perf_counter() - proof_started, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }
    for line in remarks(proof, contract):
        console.out.print(line, markup=False, soft_wrap=True)
    return Exported(source.run_dir, contract, report, fresh=True)


@dataclass(frozen=True, slots=True)
class _Stated:
    """What was asked of the graph."""

    recipe: Recipe
    shape: Layout
    settings: ExportSettings

    def contract(self, path: Path) -> Contract:
        """The contract as the graph has it."""
        from marship.proof import graph

        return graph.contract_of(
            path,
            pad_values=self.recipe.pad_values,
            bounds=self.shape.bounds,
            tolerance=Tolerance(self.settings.atol, self.settings.rtol),
        )


def _compare_first(
    reference: RunModel, examples: Arrays, doubts: "Sequence[Doubt]", path: Path, stated: _Stated
) -> tuple[Sides, Proof]:
    """Compare at the first sizes; completes what the graph says of its outputs by the answers."""
    from marship.exporting import outputs
    from marship.proof import graph

    graph.refuse_random(path)  # before the file is loaded: what is refused then may be tried again
    seed = stated.settings.seed
    proof = Proof(secrets.randbelow(1 << 32) if seed is None else seed)
    contract = stated.contract(path)
    check_inputs(contract, stated.shape)
    answers = [(case, reference(case.inputs)) for case in draw_cases(contract, examples)]
    check_ranks(answers)
    outputs.state_output_shapes(path, [(case.sizes, want) for case, want in answers])
    outputs.name_output_axes(path, stated.recipe.output_axes)
    contract = stated.contract(path)
    tolerance = contract.tolerance.scaled(want for _, want in answers)
    contract = replace(contract, tolerance=tolerance)
    sides = Sides(reference, open_run(path), contract, examples, doubts)
    proof.comparisons += [compare_one(sides, case, want) for case, want in answers]
    return sides, proof


def _check_repeatable(reference: RunModel, examples: Arrays) -> None:
    first, second = reference(examples), reference(examples)
    if not agree(first, second, Tolerance(0.0, 0.0)):
        raise ParityError(
            "the model must give the same answer twice, got outputs "
            f"{largest_difference(second, first)[0]:.3g} apart for the same input. "
            "Take the randomness out of forward."
        )


def _proven(
    contract: Contract, run: RunModel, examples: Arrays, proof_seconds: float
) -> tuple[Contract, dict[str, Comparison | None]]:
    """The contract with its batch axis, and the evidence about rows and padding."""
    seconds = proof_seconds * parity.SHARE_OF_ROWS
    contract, influence = parity.with_batch_axis(contract, run, examples, seconds=seconds)
    padding = parity.prove_padding(contract, run, examples)
    return contract, {"rows": influence, "padding": padding}


def _read_settings(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold settings by name, got {type(values).__name__}.")
    return values


def _fingerprint(source: _Source, build: Callable[..., Any], settings: ExportSettings) -> str:
    """A digest of everything that an export depends on."""
    code = inspect.getsourcefile(inspect.unwrap(build))
    data = [Path(file) for file in (source.weights, source.example) if file is not None]
    files = [*data, *(local_files(Path(code)) if code else ())]
    facts = {
        "recipe": asdict(source.recipe),
        "given": source.given,
        "settings": as_dict(replace(settings, again=False)),
        "files": [digest_files(file) for file in files],
        "versions": versions(*VERSIONED),
    }
    return fingerprint(facts)


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
