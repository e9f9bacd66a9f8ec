"""The step `optimize`: builds and measures variants of an exported model, and chooses one.

One file per pass: float32, int8_dynamic, int8_static, int8_blocks, float16. Each writes a variant
`model.<pass>.onnx` into the run folder or reports why it cannot; all variants are then timed in
one interleaved run, judged on held-out data and compared with PyTorch's outputs. The result is in
`optimize.json` and `optimize.png`.
"""

import inspect
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship.arguments import checked
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Arrays,
    Contract,
    digest_files,
    read_golden,
)
from marship.errors import DataError, MarshipError, ModelError, UsageError
from marship.fit.origin import fingerprint, local_files, machine, versions
from marship.fit.recipe import Recipe, resolve
from marship.optimizing.settings import PASSES, OptimizeSettings
from marship.proof.cases import first_axis, read_rows
from marship.settings import as_dict
from marship.storage import read_json, replacing_all, write_json

if TYPE_CHECKING:  # --help needs none of it
    from marship.optimizing.choice import Choice, Rule, Variant
    from marship.optimizing.source import Goal
    from marship.optimizing.trial import Judge, Material

EXPORTED = "exported"

MODEL_FILE = "model.onnx"
EXAMPLES_FILE = "examples.npz"
CALIBRATION_FILE = "calibration.npz"
HELDOUT_FILE = "heldout.npz"
REPORT_FILE = "optimize.json"
PICTURE_FILE = "optimize.png"
VERSIONED = ("marship", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Trial:
    """All variants, and why each was or was not chosen."""

    variants: "list[Variant]"
    choice: "Choice"
    rule: "Rule"


@dataclass(frozen=True, slots=True)
class Optimized:
    """The result of `optimize`.

    Attributes:
        run_dir: The run folder.
        report: The content of optimize.json.
        fresh: False if an earlier result of the same inputs was kept.
        trial: All variants; None if an earlier result was kept.

    Example:
        >>> from pathlib import Path
        >>> done = marship.Optimized(Path("runs/x"), {"chosen": "int8_static"}, fresh=True)
        >>> done.report["chosen"]
        'int8_static'
    """

    run_dir: Path
    report: Mapping[str, Any]
    fresh: bool
    trial: "Trial | None" = field(default=None, repr=False)


@checked
def optimize(run_dir: str | Path, settings: OptimizeSettings | None = None) -> Optimized:
    """Build variants of the exported model in a run folder, measure them, and choose one.

    Args:
        run_dir: The folder that `export` wrote.
        settings: How they are measured and chosen; None is the defaults.

    Raises:
        UsageError: The folder holds no export, or the requested variant cannot be chosen.
        ModelError: The export is corrupted.
        DataError: Calibration or held-out data is corrupted or does not match the model.

    Example:
        >>> done = marship.optimize("runs/tiny", marship.OptimizeSettings(measure_s=0.2))
        >>> done.report["chosen"] in {variant["name"] for variant in done.report["variants"]}
        True
    """
    run_dir, settings = Path(run_dir), settings or OptimizeSettings()
    from marship.optimizing.choice import choose
    from marship.optimizing.report import draw, entry

    material = _gather(run_dir, settings)
    if settings.variant not in (None, EXPORTED, *PASSES):
        raise UsageError(
            f"variant must be one of {', '.join((EXPORTED, *PASSES))}, got {settings.variant}."
        )
    made_from = _fingerprint(material, settings)
    kept = None if settings.again else _kept(run_dir, made_from)
    if kept is not None:
        return kept
    started = time.perf_counter()
    with replacing_all(run_dir) as draft:
        variants, rule = _try_all(material, draft, settings)
        choice = choose(variants, rule)
        draw(variants, choice, rule, draft / PICTURE_FILE, material.recipe.name)
        report = {
            "chosen": choice.chosen,
            "why": choice.why,
            "variants": [entry(variant, choice.verdicts[variant.name]) for variant in variants],
            "rule": asdict(rule),
            "model_digest": material.contract.digest,
            "made_from": made_from,
            "settings": as_dict(settings),
            "machine": machine() | {"versions": versions(*VERSIONED)},
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_json(draft / REPORT_FILE, report)
    _remove_stale(run_dir, variants)
    return Optimized(run_dir, report, fresh=True, trial=Trial(variants, choice, rule))


def _gather(run_dir: Path, settings: OptimizeSettings) -> "Material":
    from marship.optimizing.source import ExportedModel
    from marship.optimizing.trial import Material

    recipe = Recipe.load(run_dir)
    judge = resolve(recipe.judge) if recipe.judge else None
    for name in (MODEL_FILE, CONTRACT_FILE, GOLDEN_FILE, EXAMPLES_FILE):
        if not (run_dir / name).is_file():
            raise UsageError(
                f"{run_dir} must hold an exported model, got no {name}. "
                f"Export it first: marship export {run_dir}"
            )
    contract = Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())
    files = [run_dir / name for name in contract.files]
    if not all(f.is_file() for f in files) or digest_files(*files) != contract.digest:
        raise ModelError(
            f"{run_dir / MODEL_FILE} must be the file that {CONTRACT_FILE} was written for, "
            f"got another digest. Export again: marship export {run_dir} --again"
        )
    calibration = _optional_rows(run_dir / CALIBRATION_FILE, contract)
    goal = _goal(recipe, judge, calibration, settings) if first_axis(contract) else None
    return Material(
        source=ExportedModel(run_dir / MODEL_FILE, contract, calibration, goal),
        recipe=recipe,
        golden=read_golden(run_dir / GOLDEN_FILE),
        examples=_rows(run_dir / EXAMPLES_FILE, contract),
        heldout=_optional_rows(run_dir / HELDOUT_FILE, contract),
        judge=judge,
    )


def _goal(
    recipe: Recipe, judge: "Judge | None", calibration: Arrays | None, settings: OptimizeSettings
) -> "Goal | None":
    """The accuracy goal of passes, if calibration rows have targets and can be judged."""
    from marship.optimizing.source import Goal
    from marship.optimizing.trial import TARGET, judged

    if judge is None or recipe.metric is None:
        return None
    if calibration is None or not any(name.startswith(TARGET) for name in calibration):
        return None
    metric, sign = recipe.metric, 1 if recipe.greater_is_better else -1

    def quality(outputs: Arrays, rows: Arrays) -> float:
        return sign * judged(judge, recipe, outputs, rows)[metric]

    return Goal(quality, recipe.budget, settings.search_s)


def _optional_rows(path: Path, contract: Contract) -> Arrays | None:
    return _rows(path, contract) if path.is_file() else None


def _rows(path: Path, contract: Contract) -> Arrays:
    arrays = read_rows(path)
    for spec in contract.inputs:
        found = arrays.get(spec.name)
        dtype = "none" if found is None else str(found.dtype).replace("object", "str")
        if found is None or found.ndim != len(spec.shape) or dtype != spec.dtype:
            got = dtype if found is None else f"{dtype}{list(found.shape)}"
            raise DataError(f"{path} must hold {spec}, got {got}. Write it as the model takes it.")
    return arrays


def _try_all(
    material: "Material", draft: Path, settings: OptimizeSettings
) -> tuple[list["Variant"], "Rule"]:
    from marship.optimizing import measure, trial
    from marship.optimizing.choice import Rule

    variants = trial.build_all(material.source, PASSES, draft)
    runs = trial.load_all(variants, material, draft, settings.threads)
    calls = dict(measure.timing_inputs(material.contract, material.examples, settings.batch))
    trial.time_all(variants, runs, calls, settings.measure_s)
    trial.judge_all(variants, runs, material)
    base = trial.BASE if trial.BASE in runs else EXPORTED
    budget = material.recipe.budget
    return variants, Rule(base, material.metric, budget, settings.least_gain, settings.variant)


def _remove_stale(run_dir: Path, variants: list["Variant"]) -> None:
    """Remove the files of variants that an earlier run built and this one did not."""
    for variant in variants:
        if variant.file is None:
            for name in (f"model.{variant.name}.onnx", f"model.{variant.name}.onnx.data"):
                (run_dir / name).unlink(missing_ok=True)


def _fingerprint(material: "Material", settings: OptimizeSettings) -> str:
    """A digest of everything that the result depends on, the machine included."""
    run_dir = material.source.path.parent
    data = [run_dir / name for name in (EXAMPLES_FILE, CALIBRATION_FILE, HELDOUT_FILE)]
    judge = inspect.getsourcefile(inspect.unwrap(material.judge)) if material.judge else None
    code = local_files(Path(judge)) if judge else []
    facts = {
        "versions": versions(*VERSIONED),
        "machine": machine(),
        "model": material.contract.digest,
        "recipe": asdict(material.recipe),
        "settings": as_dict(replace(settings, again=False)),
        "files": [digest_files(file) if file.is_file() else None for file in (*data, *code)],
    }
    return fingerprint(facts)


def _kept(run_dir: Path, made_from: str) -> Optimized | None:
    """The result in the folder, if it was made from the same inputs and is complete."""
    if not (run_dir / REPORT_FILE).is_file():
        return None
    try:
        report = read_json(run_dir / REPORT_FILE)
        files = [entry["file"] for entry in report["variants"] if entry["built"]]
        same = report["made_from"] == made_from
    except (MarshipError, KeyError, TypeError):  # corrupted: it is built again
        return None
    whole = all((run_dir / name).is_file() for name in (PICTURE_FILE, *files))
    return Optimized(run_dir, report, fresh=False) if same and whole else None
