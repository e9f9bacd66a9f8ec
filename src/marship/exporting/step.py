"""The step `export`: converts a model to ONNX, and proves that outputs match PyTorch's.

`model.onnx`, `contract.json`, `golden.npz` and `parity.json` are written together: a failed export
leaves an older one unchanged.
"""

import inspect
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from marship import console
from marship.arguments import checked
from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Contract, digest_files
from marship.errors import DataError, MarshipError, UsageError
from marship.exporting import pretrained, programs, timm_models
from marship.exporting.build import resolved
from marship.exporting.conversion import MODEL_FILE, VERSIONED, ModelSource, convert
from marship.exporting.layout import completed
from marship.exporting.settings import OPSETS, ExportSettings
from marship.fit.origin import fingerprint, local_files, versions
from marship.fit.recipe import Recipe
from marship.proof import golden, parity
from marship.proof.cases import read_rows
from marship.settings import as_dict
from marship.storage import read_json, replacing_all, write_json

PARITY_FILE = "parity.json"
CHECKPOINT_FILE = "checkpoint.pt"
SETTINGS_FILE = "settings.json"
EXAMPLES_FILE = "examples.npz"


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export.

    Attributes:
        run_dir: The folder that holds it.
        contract: As written to contract.json.
        report: As written to parity.json.
        fresh: False if an earlier export of the same inputs was kept.

    Example:
        >>> from pathlib import Path
        >>> marship.Exported(Path("runs/x"), contract=None, report={}, fresh=True).fresh
        True
    """

    run_dir: Path
    contract: Contract
    report: Mapping[str, Any]
    fresh: bool


@checked
def export(  # noqa: PLR0913  what the command takes
    source: str | Path,
    settings: ExportSettings | None = None,
    *,
    example: str | Path | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    out: str | Path | None = None,
    trust_code: bool = False,
    task: str | None = None,
) -> Exported:
    """Convert a model to ONNX, and prove that its outputs match the PyTorch model's.

    Args:
        source: A run folder of a recipe; `package.module:function` or `file.py:function`, which
            gives an `nn.Module`; a file of torch.export or TorchScript; `hf:FOLDER`, a model of
            transformers; or `timm:NAME`.
        settings: Variable axes, their bounds, pad values and tolerances.
        example: Of a function or file: an npz with an array for each of forward's parameters.
        weights: Of a function: a state dict, an index of shards, or a folder with either.
        weights_key: Which weights to take of a file with several.
        out: The run folder to write; None is `runs/<module>`, or `runs/<folder>` of `hf:`.
        trust_code: Of a file: whether what it holds may run.
        task: Of `hf:FOLDER`, such as text-classification; None is its architecture's.

    Raises:
        UsageError: A file is missing or not trusted, a reference or a setting is invalid.
        DataError: The example does not hold forward's inputs.
        CheckpointError: The weights do not match the model.
        ModelError: The model cannot be converted.
        ParityError: Outputs differ; nothing is written.

    Example:
        >>> done = marship.export("model.py:build", example="example.npz", out="runs/tiny")
        >>> [str(spec) for spec in done.contract.inputs]
        ['x: float32[batch, 3]']
        >>> sorted(path.name for path in done.run_dir.iterdir())[:2]
        ['contract.json', 'examples.npz']
    """
    chosen, path = settings or ExportSettings(), Path(source)
    if str(source).startswith(pretrained.PREFIX):
        _refuse(f"for {source}", example=example, weights=weights, weights_key=weights_key)
        return export_pretrained(str(source), chosen, task=task, out=out)
    _refuse(f"for {source}, which is not of hf:", task=task)
    if str(source).startswith(timm_models.PREFIX):
        _refuse(f"for {source}", example=example)
        return export_timm(str(source), chosen, weights=weights, weights_key=weights_key, out=out)
    if path.is_dir() or (":" not in str(source) and not path.is_file()):
        return export_run(source, chosen)
    if path.is_file():
        kind = programs.check(path, is_trusted=trust_code, has_weights=weights is not None)
        return _export_apart(path, kind, _given(example), Path(out) if out else None, chosen)
    return export_model(
        str(source),
        example=_given(example),
        settings=chosen,
        weights=weights,
        weights_key=weights_key,
        out=out,
    )


def _given(example: str | Path | None) -> Path:
    if example is None:
        raise UsageError("example must name an npz with the model's inputs, got none.")
    return Path(example)


def _export_apart(
    path: Path, kind: str, example: Path, out: Path | None, settings: ExportSettings
) -> Exported:
    source = _own_source(str(path), example, out)
    if (source.run_dir / PARITY_FILE).is_file() and example.is_file():
        source, _, made_from = _identified(source, settings)
        if (kept := _kept(source.run_dir, made_from, settings)) is not None:
            return kept  # nothing of the file has to run
    console.err.print(f"{path} runs in a process of its own: it is {kind}.", markup=False)
    done = programs.export_apart(path, example=example, out=out, settings=settings)
    return _written(Path(done["run_dir"]), fresh=done["fresh"])


def _refuse(where: str, **given: object) -> None:
    """Refuse what a source has no use for."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name.replace('_', '-')} must be left out {where}, got {value}.")


def export_run(run_dir: str | Path, settings: ExportSettings) -> Exported:
    """Export the trained model of a recipe's run folder.

    Raises:
        UsageError: The folder or a setting is not one that can be exported.
        CheckpointError: The weights do not match the model.
        ModelError: The model cannot be converted.
        ParityError: Outputs of the ONNX file differ; nothing is written.
    """
    run_dir = Path(run_dir)
    if run_dir.suffix and not run_dir.exists():
        raise UsageError(f"{run_dir} must be a run folder or a model's file, got nothing there.")
    recipe = Recipe.load(run_dir)
    if not recipe.build:
        raise UsageError(
            f"{run_dir} must hold a PyTorch model, got one that was made from an ONNX file. "
            f"Package it: marship package {run_dir}"
        )
    weights = run_dir / CHECKPOINT_FILE
    if not weights.is_file():
        raise UsageError(f"{run_dir} must hold {CHECKPOINT_FILE}, got none. Train the model first.")
    given = _read_settings(run_dir / SETTINGS_FILE)
    source = ModelSource(run_dir, recipe, given, weights, run_dir / EXAMPLES_FILE, own=False)
    return _export(source, settings)


def export_model(  # noqa: PLR0913  as export
    build: str,
    *,
    example: str | Path,
    settings: ExportSettings,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    out: str | Path | None = None,
) -> Exported:
    """Export a model of one's own into a run folder that optimize and package take.

    Args:
        build: `package.module:function` or `file.py:function`; called without arguments, it
            gives the `nn.Module`. Or a trusted file of torch.export or TorchScript.
        example: An npz with an array for each input, named as forward's parameters are; the
            first axis is the batch.
        settings: Variable axes, bounds, pad values.
        weights: A state dict (.pt, .safetensors), an index of shards, or a folder with either;
            None where `build` loads its own.
        weights_key: Which weights to take of a file with several that fit.
        out: The run folder; `runs/<module>` where it is None.

    Raises:
        UsageError: A file is missing, a reference or a setting is invalid.
        DataError: The example does not hold forward's inputs.
        CheckpointError: The weights do not match the model.
        ModelError: The model cannot be converted.
        ParityError: Outputs of the ONNX file differ; nothing is written.
    """
    weights, out = (Path(path) if path else None for path in (weights, out))
    if weights is not None and not weights.exists():
        raise UsageError(f"{weights} must be a file of weights, got none there.")
    return _export(_own_source(build, Path(example), out, weights, weights_key), settings)


def _own_source(
    build: str,
    example: Path,
    out: Path | None,
    weights: Path | None = None,
    weights_key: str | None = None,
) -> ModelSource:
    from marship.fit.torchfile import weight_files

    stem = Path(build).stem
    if not Path(build).is_file():
        stem = Path(build.rpartition(":")[0]).name.removesuffix(".py").rpartition(".")[2]
    run_dir = out or Path("runs") / stem
    recipe = Recipe(
        name=re.sub(r"[^A-Za-z0-9_-]+", "-", run_dir.resolve().name),
        build=build,
        evidence={"weights_sha256": digest_files(*weight_files(weights))} if weights else {},
    )
    return ModelSource(run_dir, recipe, {}, weights, example, own=True, weights_key=weights_key)


def export_pretrained(
    source: str,
    settings: ExportSettings,
    *,
    task: str | None = None,
    out: str | Path | None = None,
) -> Exported:
    """Export a model of transformers with its tokenizer or image processor.

    Args:
        source: `hf:FOLDER`.
        settings: Bounds, tolerances and the like.
        task: None is the task of its architecture.
        out: The run folder; `runs/<folder>` where it is None.

    Raises:
        UsageError: The folder has no model that can be served.
        ModelError: The model cannot be converted.
        ParityError: Outputs or responses would differ; nothing is written.
    """
    folder = pretrained.folder_of(source, task)
    run_dir = Path(out) if out else Path("runs") / folder.path.resolve().name
    plan = pretrained.planned(folder, run_dir, settings.bounds)
    given = {"folder": str(folder.path), "task": folder.task}
    return _export_plan(plan, run_dir, given, settings)


def export_timm(
    source: str,
    settings: ExportSettings,
    *,
    weights: str | Path | None,
    weights_key: str | None = None,
    out: str | Path | None = None,
) -> Exported:
    """Export an image classifier of timm.

    Args:
        source: `timm:NAME`.
        settings: Tolerances and the like.
        weights: A state dict (.pt, .safetensors).
        weights_key: Which weights to take of a file with several.
        out: The run folder; `runs/<name>` where it is None.

    Raises:
        UsageError: timm is missing, does not know the model, or there are no weights.
        CheckpointError: The weights do not match the model.
        ModelError: The model cannot be converted.
        ParityError: Outputs or responses would differ; nothing is written.
    """
    name, file = source.removeprefix(timm_models.PREFIX), Path(weights) if weights else None
    run_dir = Path(out) if out else Path("runs") / name
    plan, given = timm_models.planned(name, file, weights_key, run_dir)
    return _export_plan(plan, run_dir, given, settings, file, weights_key)


def _export_plan(  # noqa: PLR0913, PLR0917  the parts of a source
    plan: pretrained.ExportPlan,
    run_dir: Path,
    given: Mapping[str, Any],
    settings: ExportSettings,
    weights: Path | None = None,
    weights_key: str | None = None,
) -> Exported:
    with tempfile.TemporaryDirectory() as draft:
        example = Path(draft) / EXAMPLES_FILE
        np.savez(example, **plan.examples)  # type: ignore[arg-type]  # its stub takes no mapping
        source = ModelSource(
            run_dir, plan.recipe, given, weights, example, own=True, weights_key=weights_key,
            companion=plan.companion,
        )  # fmt: skip
        return _export(source, settings)


def _export(source: ModelSource, settings: ExportSettings) -> Exported:
    golden.check_kind(settings.golden)
    if settings.opset not in OPSETS:
        raise UsageError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {settings.opset}.")
    examples = read_rows(source.example)
    source, build, made_from = _identified(source, settings)
    if (kept := _kept(source.run_dir, made_from, settings)) is not None:
        return kept
    with replacing_all(source.run_dir) as draft:
        contract, proof = convert(source, build, examples, settings, draft)
        report = {"made_from": made_from, **proof}
        if source.companion is not None:
            run = parity.runner(draft / MODEL_FILE)
            report["pipeline"] = source.companion.write(draft, contract, run)
        write_json(draft / PARITY_FILE, report)
        (draft / CONTRACT_FILE).write_text(contract.to_json())
        if source.own:
            source.recipe.save(draft)
            shutil.copyfile(source.example, draft / EXAMPLES_FILE)
    for name in {f"{MODEL_FILE}.data"} - set(contract.files):
        (source.run_dir / name).unlink(missing_ok=True)  # of an earlier, larger model
    return Exported(source.run_dir, contract, report, fresh=True)


def _identified(
    source: ModelSource, settings: ExportSettings
) -> tuple[ModelSource, Callable[..., Any], str]:
    """The source with what the settings say of its axes, its function, and its fingerprint."""
    source = replace(source, recipe=completed(source.recipe, settings.pad, settings.bounds))
    build = resolved(source.recipe.build)
    return source, build, _fingerprint(source, build, settings)


def _written(run_dir: Path, *, fresh: bool) -> Exported:
    """The export that another process has just written."""
    contract = Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())
    return Exported(run_dir, contract, read_json(run_dir / PARITY_FILE), fresh)


def _read_settings(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold settings by name, got {type(values).__name__}.")
    return values


def _fingerprint(source: ModelSource, build: Callable[..., Any], settings: ExportSettings) -> str:
    """A digest of everything that an export depends on."""
    opened = Path(source.recipe.build)
    if opened.is_file():
        code = [opened]
    else:
        found = inspect.getsourcefile(inspect.unwrap(build))
        code = local_files(Path(found)) if found else []
    from marship.fit.torchfile import weight_files

    weights = weight_files(source.weights) if source.weights else []
    files = [*weights, source.example, *code]
    facts = {
        "recipe": asdict(source.recipe),
        "weights_key": source.weights_key,
        "given": source.given,
        "settings": as_dict(replace(settings, again=False)),
        "files": [digest_files(file) for file in files],
        "versions": versions(*VERSIONED),
    }
    return fingerprint(facts)


def _kept(run_dir: Path, made_from: str, settings: ExportSettings) -> Exported | None:
    """The export that lies in the folder, if it was made from the same things and is whole."""
    if settings.again:
        return None
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
    console.out.print(f"{run_dir / MODEL_FILE} is up to date; --again exports anew.")
    return Exported(run_dir, contract, report, fresh=False)
