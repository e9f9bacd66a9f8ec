"""The step `optimize`: builds and measures variants of an exported model, and chooses one.

One file per pass: float32, int8_dynamic, int8_static, int8_blocks, float16. Each writes a variant
`model.<pass>.onnx` into the run folder or reports why it cannot; all variants are then timed in
one interleaved run, judged on held-out data and compared with PyTorch's outputs. The result is in
`optimize.json` and `optimize.png`.
"""

import inspect
import time
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship.arguments import checked
from marship.contract import digest_files, digest_variant
from marship.errors import MarshipError, UsageError
from marship.fit.origin import fingerprint, local_files, machine, versions
from marship.optimizing.settings import PASSES, OptimizeSettings
from marship.settings import as_dict
from marship.storage import read_json, replacing_all, write_json

if TYPE_CHECKING:  # --help needs none of it
    from marship.optimizing.adoption import Given
    from marship.optimizing.choice import Choice, Rule, Variant
    from marship.optimizing.material import Material

EXPORTED = "exported"

REPORT_FILE = "optimize.json"
PICTURE_FILE = "optimize.png"
VERSIONED = ("marship", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Trial:
    """All variants, and why each was or was not chosen.

    Attributes:
        remark: By what they were compared where no judge decides, and what that does not show.
    """

    variants: "list[Variant]"
    choice: "Choice"
    rule: "Rule"
    remark: str | None = None


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
def optimize(  # noqa: PLR0913  what the command takes
    source: str | Path,
    settings: OptimizeSettings | None = None,
    *,
    calibration: str | Path | None = None,
    heldout: str | Path | None = None,
    judge: str | None = None,
    out: str | Path | None = None,
) -> Optimized:
    """Build variants of a model, measure them, and choose one.

    Args:
        source: The folder that `export` wrote, or an ONNX file, which becomes such a folder.
        settings: How they are measured and chosen; None is the defaults.
        calibration: Of an ONNX file: real inputs, an npz with an array for each input, a .json
            with requests, or a folder of such files. Every fourth row is kept back for judging.
        heldout: Of an ONNX file: other real inputs for judging.
        judge: Of an ONNX file: a function of outputs and targets that gives metrics, as
            `file.py:function`; targets are arrays `target/<name>` in the npz.
        out: Of an ONNX file: the folder to write; `runs/<name of the file>` where it is None.

    Raises:
        UsageError: The folder holds no export, or the requested variant cannot be chosen.
        ModelError: The export is corrupted, or the ONNX file cannot be read or run.
        DataError: Calibration or held-out data is corrupted or does not match the model.

    Example:
        >>> done = marship.optimize("runs/tiny", marship.OptimizeSettings(measure_s=0.2))
        >>> done.report["chosen"] in {variant["name"] for variant in done.report["variants"]}
        True
    """
    settings = settings or OptimizeSettings()
    if settings.variant not in (None, EXPORTED, *PASSES):
        raise UsageError(
            f"variant must be one of {', '.join((EXPORTED, *PASSES))}, got {settings.variant}."
        )
    from marship.optimizing.adoption import Given, adopt
    from marship.optimizing.material import gather

    run_dir = Path(source)
    data, other, folder = (Path(path) if path else None for path in (calibration, heldout, out))
    given = Given(calibration=data, heldout=other, judge=judge, out=folder)
    if run_dir.is_dir():
        _refuse(run_dir, given)
    else:
        run_dir = adopt(run_dir, given, settings)
    return _optimized(run_dir, gather(run_dir, settings), settings)


def _refuse(run_dir: Path, given: "Given") -> None:
    """Refuse what only an ONNX file needs."""
    for item in fields(given):
        if getattr(given, item.name) is not None:
            raise UsageError(
                f"{item.name} must be of an ONNX file, got one for {run_dir}. A run folder has its "
                "own."
            )


def _optimized(run_dir: Path, material: "Material", settings: OptimizeSettings) -> Optimized:
    from marship.optimizing.choice import choose
    from marship.optimizing.report import compared, draw, entry, remark

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
            "compared": compared(material),
            "model_digest": material.contract.digest,
            "made_from": made_from,
            "settings": as_dict(settings),
            "machine": machine() | {"versions": versions(*VERSIONED)},
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_json(draft / REPORT_FILE, report)
        written = {file.name for file in draft.iterdir()}
    _remove_stale(run_dir, written)
    trial = Trial(variants, choice, rule, remark(material))
    return Optimized(run_dir, report, fresh=True, trial=trial)


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
    rule = Rule(
        base,
        material.metric,
        material.recipe.budget,
        settings.least_gain,
        settings.variant,
        material.bounds.error if material.compared_rows else None,
    )
    return variants, rule


def _remove_stale(run_dir: Path, written: Set[str]) -> None:
    """Remove the files of variants, and their data, that an earlier run wrote and this one not."""
    for name in PASSES:
        for file in (f"model.{name}.onnx", f"model.{name}.onnx.data"):
            if file not in written:
                (run_dir / file).unlink(missing_ok=True)


def _fingerprint(material: "Material", settings: OptimizeSettings) -> str:
    """A digest of everything that the result depends on, the machine included."""
    from marship.optimizing.material import CALIBRATION_FILE, EXAMPLES_FILE, HELDOUT_FILE

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
        built = [entry for entry in report["variants"] if entry["built"]]
        is_whole = (run_dir / PICTURE_FILE).is_file() and all(
            digest_variant(run_dir / entry["file"]) == entry["digest"] for entry in built
        )
        is_same = report["made_from"] == made_from
    except (MarshipError, OSError, KeyError, TypeError):  # damaged: it is built again
        return None
    return Optimized(run_dir, report, fresh=False) if is_same and is_whole else None
