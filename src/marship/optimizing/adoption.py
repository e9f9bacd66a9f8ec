"""An ONNX file as a run folder, with what a recipe and `export` would have written.

The contract and the golden cases are those of `package FILE --example`, by the same code; the
calibration data is the example. Where rows were not shown to be independent, the arrays of
calibration.npz and heldout.npz have an axis for whole requests in front.
"""

import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from marship import console
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Arrays,
    Contract,
    digest_files,
    write_golden,
)
from marship.errors import DataError, MarshipError, UsageError
from marship.fit.origin import fingerprint, versions
from marship.fit.recipe import RECIPE_FILE, Recipe, resolve
from marship.optimizing import measure
from marship.optimizing.fidelity import FEWEST_ROWS
from marship.optimizing.material import (
    CALIBRATION_FILE,
    EXAMPLES_FILE,
    FEWEST_CALIBRATION_ROWS,
    HELDOUT_FILE,
    MODEL_FILE,
    Judge,
    check_number,
    distinct,
    held_back,
    measured,
)
from marship.optimizing.settings import OptimizeSettings
from marship.proof import examples, golden, graph, missing, onnx_proof, parity
from marship.proof.cases import TARGET, read_rows, write_rows
from marship.storage import read_json, replacing_all, write_json

DATA_FILE = "model.onnx.data"
PARITY_FILE = "parity.json"
EXAMPLE_ROWS = 64
VERSIONED = ("marship", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Given:
    """What a user gives beside an ONNX file.

    Attributes:
        calibration: Real inputs, as `marship.proof.examples` reads them; an npz may hold a judge's
            targets, too, as `target/<name>`.
        heldout: Others, which judge the variants; None holds some of the calibration data back.
        judge: Reference to a function as a recipe's.
        out: The folder to write; None is `runs/<name of the file>`.
    """

    calibration: Path | None = None
    heldout: Path | None = None
    judge: str | None = None
    out: Path | None = None


def adopt(path: Path, given: Given, settings: OptimizeSettings) -> Path:
    """Write the run folder of an ONNX file, unless it is there already.

    Returns:
        The folder.

    Raises:
        UsageError: A file or a function does not exist, or the folder is another's.
        DataError: The data does not hold inputs of the model, or the judge fails on it.
        ModelError: The file cannot be read or run.
    """
    calibration, name = _checked(path, given), re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)
    run_dir = given.out or Path("runs") / name
    recipe = Recipe(
        name=name,
        build="",
        judge=given.judge,
        metric=settings.metric,
        greater_is_better=not settings.lower_is_better,
        budget=settings.budget or 0.0,
        evidence={"source": path.name},
    )
    golden.check_kind(settings.golden)
    missing.check_choice(settings.missing_values)
    _check_folder(run_dir)
    made_from = _fingerprint(path, given, recipe, settings)
    if not settings.again and _is_kept(run_dir, made_from):
        return run_dir
    with replacing_all(run_dir) as draft:
        proof = _proven(path, calibration, draft, settings)
        contract = proof.contract
        write_golden(draft / GOLDEN_FILE, proof.cases)
        (draft / CONTRACT_FILE).write_text(contract.to_json())
        rows = _rows(calibration, proof, settings)
        if given.heldout is None and given.judge is None:
            _say_if_few(rows, contract, calibration)
        write_rows(draft / CALIBRATION_FILE, rows)
        write_rows(draft / EXAMPLES_FILE, _examples(rows, contract))
        heldout = _rows(given.heldout, proof, settings) if given.heldout else None
        if heldout is not None:
            write_rows(draft / HELDOUT_FILE, heldout)
        if given.judge is not None:
            judge, kept = resolve(given.judge), heldout or _held_back(rows, contract, calibration)
            outputs = measure.predict_rows(parity.runner(proof.model), contract, kept)
            recipe = replace(recipe, metric=_metric(recipe, judge, outputs, kept))
        recipe.save(draft)
        evidence = {
            "made_from": made_from,
            "golden": settings.golden,
            "source": f"{path.name}, which computed golden cases itself",
            "example": calibration.name,
            "rows_alone_and_together": proof.rows,
        }
        write_json(draft / PARITY_FILE, evidence)
    _remove_stale(run_dir, contract, has_heldout=heldout is not None)
    return run_dir


def _checked(path: Path, given: Given) -> Path:
    """The calibration data, once all that is given was found."""
    if not path.is_file():
        raise UsageError(f"{path} must be a run folder or an ONNX file, got nothing there.")
    if given.calibration is None:
        raise UsageError(
            f"calibration must name real inputs of {path.name}, got none. Give some hundred rows: "
            "--calibration data.npz"
        )
    for data in (given.calibration, given.heldout):
        if data is not None and not data.exists():
            raise UsageError(f"{data} must hold inputs of {path.name}, got no such file.")
    if given.judge is not None:
        resolve(given.judge)
        data = given.heldout or given.calibration
        if data.suffix != ".npz" or not any(name.startswith(TARGET) for name in read_rows(data)):
            raise UsageError(
                f"{data} must hold the judge's targets, got none. Add arrays named "
                f"{TARGET}<name> to an npz, a row for each row of the inputs."
            )
    return given.calibration


def _check_folder(run_dir: Path) -> None:
    """Refuse to write into the folder of a training run or an export."""
    if (run_dir / RECIPE_FILE).is_file() and Recipe.load(run_dir).build:
        raise UsageError(
            f"{run_dir} must be a new folder, or one of an ONNX file, got the run folder of a "
            "recipe. Name another with --out."
        )


def _fingerprint(path: Path, given: Given, recipe: Recipe, settings: OptimizeSettings) -> str:
    """A digest of everything that the folder depends on but the judge's code."""
    graph.parsed(path)  # not checked: the proof repairs what ONNX Runtime runs
    data = [path, *graph.external_files(path).values()]
    for place in (given.calibration, given.heldout):
        if place is not None:
            data += sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]
    facts = {
        "versions": versions(*VERSIONED),
        "recipe": asdict(recipe),
        "proof": [settings.golden, settings.proof_seconds, settings.missing_values],
        "files": [(file.name, digest_files(file)) for file in data],
        "has_heldout": given.heldout is not None,
    }
    return fingerprint(facts)


def _is_kept(run_dir: Path, made_from: str) -> bool:
    """Whether the folder was made from the same things and is whole."""
    names = (PARITY_FILE, CONTRACT_FILE, GOLDEN_FILE, RECIPE_FILE, CALIBRATION_FILE, EXAMPLES_FILE)
    try:
        if read_json(run_dir / PARITY_FILE).get("made_from") != made_from:
            return False
        contract = Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())
        whole = digest_files(*(run_dir / name for name in contract.files)) == contract.digest
    except (MarshipError, OSError, AttributeError):  # damaged: it is made anew
        return False
    return whole and all((run_dir / name).is_file() for name in names)


def _proven(
    path: Path, calibration: Path, draft: Path, settings: OptimizeSettings
) -> onnx_proof.OnnxProof:
    """What `package --example` finds out about the file, and the file in the draft."""
    wishes = onnx_proof.Wishes(
        example=calibration,
        golden=settings.golden,
        missing_values=settings.missing_values,
        proof_seconds=settings.proof_seconds,
        limit_s=settings.limit_s,
    )
    shown = console.err.status(f"running {path.name} for at most {settings.limit_s} s")
    with tempfile.TemporaryDirectory() as scratch, shown:
        try:
            proof = onnx_proof.describe(path, Path(scratch), wishes)
        except MarshipError as error:
            raise _advised(error, path) from error
        model = _copied(proof.model, draft)
    for line in (proof.summary, *proof.remarks):
        if line is not None:
            console.err.print(line, style="dim", markup=False, soft_wrap=True)
    files = (model, *graph.external_files(model).values())
    contract = replace(
        proof.contract, files=tuple(file.name for file in files), digest=digest_files(*files)
    )
    return replace(proof, model=model, contract=contract)


def _advised(error: MarshipError, path: Path) -> MarshipError:
    """The proof's error with flags of this step: the proof names those of `package`."""
    packed = f" to package, as optimize takes none: marship package {path.name} --custom-ops "
    text = str(error).replace(": --custom-ops ", packed)
    return type(error)(text.replace("--example inputs.npz", "--calibration data.npz"))


def _copied(model: Path, folder: Path) -> Path:
    """A copy of a model as `export` names it, its external data beside it."""
    target = folder / MODEL_FILE
    outside = graph.external_files(model)
    names = {
        location: f"model.onnx.{number}.data" if number else DATA_FILE
        for number, location in enumerate(outside)
    }
    for location, file in outside.items():
        shutil.copyfile(file, folder / names[location])
    shutil.copyfile(model, target)
    if any(location != name for location, name in names.items()):
        moved = graph.relocated(graph.read(model), names)
        target.write_bytes(moved.SerializeToString(deterministic=True))
    return target


def _rows(path: Path, proof: onnx_proof.OnnxProof, settings: OptimizeSettings) -> Arrays:
    """The inputs in a file or folder: rows, or requests in front; with targets, if it has them."""
    contract = proof.contract
    requests = examples.read(path, contract, parity.runner(proof.model))
    if settings.missing_values != missing.ANY:
        examples.check_finite(requests, contract, path)
    kept = examples.alike(requests, are_rows=contract.batch_axis is not None)
    if left := len(requests) - len(kept):
        console.err.print(
            f"{path.name}: {left} of {len(requests)} requests have other sizes than most, and are "
            "left out",
            markup=False,
            soft_wrap=True,
        )
    join = np.concatenate if contract.batch_axis is not None else np.stack
    rows = {name: join([one[name] for one in kept]) for name in kept[0]}
    targets = _targets(path)
    count = len(next(iter(rows.values())))
    for name, array in targets.items():
        if left or array.ndim == 0 or len(array) != count:
            raise DataError(
                f"{name} of {path} must have a row for each of {count} "
                f"{'rows' if contract.batch_axis else 'requests'}, got shape {list(array.shape)}."
            )
    return rows | targets


def _say_if_few(rows: Arrays, contract: Contract, calibration: Path) -> None:
    """Say why no variant will be held against the file's own outputs, if there are few inputs."""
    count, given = (len(next(iter(some.values()))) for some in (distinct(rows, contract), rows))
    unit = "row" if contract.batch_axis else "request"
    held = f"{count} {unit}{'s' * (count != 1)}"
    if copies := given - count:
        console.err.print(
            f"{calibration} has {copies} {unit}{'s' * (copies != 1)} of {given} a second time: "
            "copies count once",
            markup=False,
            soft_wrap=True,
        )
    if count >= FEWEST_CALIBRATION_ROWS:
        return
    advice = ", as this model's rows cannot be told apart: give a folder of files, or a list in a "
    advice = "" if contract.batch_axis else f"{advice}.json"
    line = f"{calibration} has {held}{advice}. Outputs are compared from {FEWEST_CALIBRATION_ROWS}"
    console.err.print(line, markup=False, soft_wrap=True)


def _targets(path: Path) -> Arrays:
    if path.suffix != ".npz":
        return {}
    return {name: array for name, array in read_rows(path).items() if name.startswith(TARGET)}


def _examples(rows: Arrays, contract: Contract) -> Arrays:
    """The first rows, or the first request, without targets."""
    inputs = {spec.name: rows[spec.name] for spec in contract.inputs}
    if contract.batch_axis is None:
        return next(measure.requests(inputs))
    return {name: array[:EXAMPLE_ROWS] for name, array in inputs.items()}


def _held_back(rows: Arrays, contract: Contract, calibration: Path) -> Arrays:
    """The calibration rows that a judge gets; see `optimizing.material`."""
    if (parts := held_back(rows, contract)) is None:
        count = len(next(iter(rows.values())))
        raise DataError(
            f"{calibration} must hold at least {FEWEST_CALIBRATION_ROWS} rows to keep "
            f"{FEWEST_ROWS} back for the judge, got {count}. Give more, or others with --heldout."
        )
    return parts[1]


def _metric(recipe: Recipe, judge: Judge, outputs: Arrays, rows: Arrays) -> Any:  # noqa: ANN401
    """The deciding metric: the one that is named, else the judge's only one."""
    found = measured(judge, recipe, outputs, rows)
    if recipe.metric in found or (recipe.metric is None and len(found) == 1):
        metric = recipe.metric or next(iter(found))
        check_number(recipe, metric, found[metric])
        return metric
    raise UsageError(
        f"metric must be one that {recipe.judge} gives: {', '.join(found) or 'none'}, got "
        f"{recipe.metric or 'no name'}. Name it with --metric."
    )


def _remove_stale(run_dir: Path, contract: Contract, *, has_heldout: bool) -> None:
    """Remove what an earlier model or other data left."""
    for file in run_dir.glob("model.onnx*.data"):
        if file.name not in contract.files:
            file.unlink()
    if not has_heldout:
        (run_dir / HELDOUT_FILE).unlink(missing_ok=True)
