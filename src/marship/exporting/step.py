"""The step `export`: converts a model to ONNX, and proves that outputs match PyTorch's.

`model.onnx`, `contract.json`, `golden.npz` and `parity.json` are written together: a failed export
leaves an older one unchanged.
"""

import inspect
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from marship import console
from marship.arguments import checked
from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Contract, digest_files
from marship.errors import DataError, MarshipError, UsageError
from marship.exporting import programs
from marship.exporting.build import resolved
from marship.exporting.conversion import MODEL_FILE, VERSIONED, ModelSource, convert
from marship.exporting.layout import completed
from marship.exporting.settings import OPSETS, ExportSettings
from marship.fit.origin import fingerprint, local_files, versions
from marship.fit.recipe import Recipe
from marship.proof import golden
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
) -> Exported:
    """Convert a model to ONNX, and prove that its outputs match the PyTorch model's.

    Args:
        source: A run folder that a recipe has written; `package.module:function` or
            `file.py:function`, which gives an `nn.Module`; or a file of torch.export or
            TorchScript.
        settings: Variable axes, their bounds, pad values and tolerances; None is the defaults.
        example: Of a function or file: an npz with an array for each input, named as forward's
            parameters are; the first axis is the batch.
        weights: Of a function: a state dict (.pt, .safetensors), an index of shards, or a folder
            with either; None where it loads its own.
        weights_key: Which weights to take of a file with several that fit.
        out: Of a function or file: the run folder to write; `runs/<module>` where it is None.
        trust_code: Of a file: whether what it holds may run.

    Raises:
        UsageError: A file is missing or not trusted, a reference or a setting is invalid.
        DataError: The example does not hold forward's inputs.
        CheckpointError: The weights do not match the model.
        ModelError: The model cannot be converted.
        ParityError: Outputs of the ONNX file differ; nothing is written.

    Example:
        >>> done = marship.export("model.py:build", example="example.npz", out="runs/tiny")
        >>> [str(spec) for spec in done.contract.inputs]
        ['x: float32[batch, 3]']
        >>> sorted(path.name for path in done.run_dir.iterdir())[:2]
        ['contract.json', 'examples.npz']
    """
    chosen, path = settings or ExportSettings(), Path(source)
    if path.is_dir() or (":" not in str(source) and not path.is_file()):
        return export_run(source, chosen)
    if path.is_file():
        kind = programs.check(path, is_trusted=trust_code, has_weights=weights is not None)
        console.err.print(f"{path} runs in a process of its own: it is {kind}.", markup=False)
    if example is None:
        raise UsageError("example must name an npz with the model's inputs, got none.")
    if path.is_file():
        done = programs.export_apart(
            path, example=Path(example), out=Path(out) if out else None, settings=chosen
        )
        return _written(Path(done["run_dir"]), fresh=done["fresh"])
    return export_model(
        str(source),
        example=example,
        settings=chosen,
        weights=weights,
        weights_key=weights_key,
        out=out,
    )


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
    example = Path(example)
    weights, out = (Path(path) if path else None for path in (weights, out))
    if weights is not None and not weights.exists():
        raise UsageError(f"{weights} must be a file of weights, got none there.")
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
    source = ModelSource(run_dir, recipe, {}, weights, example, own=True, weights_key=weights_key)
    return _export(source, settings)


def _export(source: ModelSource, settings: ExportSettings) -> Exported:
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
        contract, proof = convert(source, build, examples, settings, draft)
        report = {"made_from": made_from, **proof}
        write_json(draft / PARITY_FILE, report)
        (draft / CONTRACT_FILE).write_text(contract.to_json())
        if source.own:
            source.recipe.save(draft)
            shutil.copyfile(source.example, draft / EXAMPLES_FILE)
    for name in {f"{MODEL_FILE}.data"} - set(contract.files):
        (source.run_dir / name).unlink(missing_ok=True)  # of an earlier, larger model
    return Exported(source.run_dir, contract, report, fresh=True)


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
