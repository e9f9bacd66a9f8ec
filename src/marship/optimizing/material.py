"""What a run folder holds for optimizing: the model, real inputs, a judge with targets."""

import hashlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Array,
    Arrays,
    Contract,
    GoldenCase,
    digest_files,
    read_golden,
)
from marship.errors import DataError, ModelError, UsageError
from marship.fit.recipe import Recipe, resolve
from marship.optimizing import measure
from marship.optimizing.fidelity import FEWEST_ROWS, Allowance
from marship.optimizing.settings import OptimizeSettings
from marship.optimizing.source import ExportedModel, Goal
from marship.proof.cases import TARGET, first_axis, read_rows
from marship.proof.parity import first_line

MODEL_FILE = "model.onnx"
EXAMPLES_FILE, CALIBRATION_FILE, HELDOUT_FILE = "examples.npz", "calibration.npz", "heldout.npz"
HELD_BACK_EVERY = 4
FEWEST_CALIBRATION_ROWS = HELD_BACK_EVERY * FEWEST_ROWS

Judge = Callable[[Arrays, Arrays], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Material:
    """The needed content of the run folder; targets have the keys `target/<name>`.

    Attributes:
        source: The exported model, and rows for calibration.
        recipe: The recipe, with what the settings say otherwise.
        golden: The golden cases.
        examples: Real inputs of one call.
        heldout: Real inputs that calibration does not use; None without any.
        heldout_from: Where they come from, in words.
        judge: Rates outputs for them; None without one, or without targets.
        bounds: What outputs may differ by where no judge rates them.
    """

    source: ExportedModel
    recipe: Recipe
    golden: list[GoldenCase]
    examples: Arrays
    heldout: Arrays | None
    heldout_from: str
    judge: Judge | None
    bounds: Allowance

    @property
    def contract(self) -> Contract:
        """The exported model's."""
        return self.source.contract

    @property
    def metric(self) -> str | None:
        """The deciding metric; None without a judge."""
        return self.recipe.metric if self.judge and self.heldout else None

    @property
    def compared_rows(self) -> int:
        """Real rows by which outputs are compared; 0 where a judge decides, or they are few."""
        if self.heldout is None or self.metric is not None:
            return 0
        count = _count(self.heldout)
        return count if count >= FEWEST_ROWS else 0


def gather(run_dir: Path, settings: OptimizeSettings) -> Material:
    """Read what a run folder holds.

    Raises:
        UsageError: It holds no export.
        ModelError: The export is corrupted.
        DataError: Its data does not match the model.
    """
    recipe = _with_settings(Recipe.load(run_dir), settings)
    judge = resolve(recipe.judge) if recipe.judge else None
    contract = _contract(run_dir)
    calibration = _optional_rows(run_dir / CALIBRATION_FILE, contract)
    heldout, heldout_from = _optional_rows(run_dir / HELDOUT_FILE, contract), HELDOUT_FILE
    if judge is None or recipe.metric is None:  # a judge weighs rows as often as they come
        calibration, heldout = (
            rows and distinct(rows, contract) for rows in (calibration, heldout)
        )
    if heldout is None and calibration is not None and (parts := held_back(calibration, contract)):
        (calibration, heldout), heldout_from = parts, "calibration data, every fourth row"
        judge = judge if any(name.startswith(TARGET) for name in heldout) else None
    may_search = first_axis(contract) or measure.holds_requests(contract, calibration or {})
    goal = _goal(recipe, judge, calibration, settings) if may_search else None
    return Material(
        source=ExportedModel(run_dir / MODEL_FILE, contract, calibration, goal),
        recipe=recipe,
        golden=read_golden(run_dir / GOLDEN_FILE),
        examples=_rows(run_dir / EXAMPLES_FILE, contract),
        heldout=heldout,
        heldout_from=heldout_from,
        judge=judge,
        bounds=Allowance(settings.most_error, settings.least_agreement),
    )


def held_back(rows: Arrays, contract: Contract) -> tuple[Arrays, Arrays] | None:
    """Calibration rows, and every fourth of them, which are kept for judging; None if too few.

    Where a model takes rows in multiples of a number, every fourth of these.
    """
    count = _count(rows)
    if count < FEWEST_CALIBRATION_ROWS:
        return None
    place = np.arange(count) // _step(contract)
    kept = place % HELD_BACK_EVERY == HELD_BACK_EVERY - 1
    used = {name: array[~kept] for name, array in rows.items()}
    return used, {name: array[kept] for name, array in rows.items()}


def distinct(rows: Arrays, contract: Contract) -> Arrays:
    """The rows without those that were there before: ten copies of a row say what one says.

    Where a model takes rows in multiples of a number, such groups.
    """
    step = _step(contract)
    arrays = [rows[spec.name] for spec in contract.inputs]
    kept: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for start in range(0, _count(rows), step):
        group = tuple(_key(array[start : start + step]) for array in arrays)
        if group not in seen:
            seen.add(group)
            kept += range(start, min(start + step, _count(rows)))
    return {name: array[kept] for name, array in rows.items()}


def _key(array: Array) -> str:
    """A digest of values, text included."""
    data = repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
    return hashlib.sha256(data).hexdigest()


def judged(judge: Judge, recipe: Recipe, outputs: Arrays, rows: Arrays) -> dict[str, float]:
    """The metrics by the recipe's judge of outputs for rows with targets.

    Raises:
        DataError: It fails, or does not return the recipe's metric.
    """
    metrics = measured(judge, recipe, outputs, rows)
    if recipe.metric not in metrics:
        raise DataError(
            f"{recipe.judge} must give the recipe's metric {recipe.metric}, "
            f"got {', '.join(metrics)}."
        )
    return metrics


def measured(judge: Judge, recipe: Recipe, outputs: Arrays, rows: Arrays) -> dict[str, float]:
    """What a judge gives for outputs.

    Raises:
        DataError: It fails, or leaves the process.
    """
    targets = {k.removeprefix(TARGET): v for k, v in rows.items() if k.startswith(TARGET)}
    try:
        with _kept_in():
            found = judge(outputs, targets)
            if inspect.iscoroutine(found):
                found.close()  # else Python warns that nobody awaited it
                raise TypeError("a coroutine: write def, not async def")
            return {k: float(v) for k, v in found.items()}
    except (Exception, SystemExit) as error:  # user code: it may raise anything
        raise DataError(
            f"{recipe.judge} must judge the held-out outputs, got {type(error).__name__}: "
            f"{first_line(error)}. Check the targets in heldout.npz and calibration.npz."
        ) from error


def check_number(recipe: Recipe, metric: str, value: float) -> None:
    """Check a metric of the exported model's own outputs: no variant can be held against NaN.

    Raises:
        DataError: It is no finite number.
    """
    if not math.isfinite(value):
        raise DataError(
            f"{recipe.judge} must give a finite {metric} for the exported model's own outputs, got "
            f"{value}. Check the function and its targets."
        )


@contextmanager
def _kept_in() -> Iterator[None]:
    """Let user code neither write to standard output, which is the report's, nor end the process.

    Its child processes may: they end by `os._exit`, as multiprocessing has it.
    """
    leave, own = os._exit, os.getpid()

    def refuse(code: int) -> NoReturn:
        if os.getpid() != own:
            leave(code)
        raise SystemExit(f"os._exit({code})")

    os._exit = refuse  # type: ignore[assignment]
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os._exit = leave


def _step(contract: Contract) -> int:
    """The number whose multiples of rows the model takes."""
    return contract.steps.get(contract.batch_axis or "", 1)


def _count(rows: Arrays) -> int:
    return len(next(iter(rows.values())))


def _with_settings(recipe: Recipe, settings: OptimizeSettings) -> Recipe:
    """The recipe with the metric and the budget that the settings name."""
    return replace(
        recipe,
        metric=settings.metric or recipe.metric,
        greater_is_better=recipe.greater_is_better and not settings.lower_is_better,
        budget=recipe.budget if settings.budget is None else settings.budget,
    )


def _contract(run_dir: Path) -> Contract:
    """The contract, held against the model's files."""
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
    return contract


def _goal(
    recipe: Recipe, judge: Judge | None, calibration: Arrays | None, settings: OptimizeSettings
) -> Goal | None:
    """The accuracy goal of passes, if calibration rows have targets and can be judged."""
    if judge is None or recipe.metric is None:
        return None
    if calibration is None or not any(name.startswith(TARGET) for name in calibration):
        return None
    metric, sign = recipe.metric, 1 if recipe.greater_is_better else -1

    def quality(outputs: Arrays, rows: Arrays) -> float:
        return sign * judged(judge, recipe, outputs, rows)[metric]

    return Goal(quality, recipe.budget, settings.search_s)


def _optional_rows(path: Path, contract: Contract) -> Arrays | None:
    if not path.is_file():
        return None
    rows = _rows(path, contract, several=True)
    whole = _count(rows) - _count(rows) % _step(contract)
    return {name: array[:whole] for name, array in rows.items()}


def _rows(path: Path, contract: Contract, *, several: bool = False) -> Arrays:
    """Inputs of one call or, where requests cannot be cut into rows, of several."""
    arrays = read_rows(path)
    has_requests = several and contract.batch_axis is None
    more = int(has_requests and measure.holds_requests(contract, arrays))
    for spec in contract.inputs:
        found = arrays.get(spec.name)
        dtype = "none" if found is None else str(found.dtype).replace("object", "str")
        if found is None or found.ndim != len(spec.shape) + more or dtype != spec.dtype:
            got = dtype if found is None else f"{dtype}{list(found.shape)}"
            raise DataError(f"{path} must hold {spec}, got {got}. Write it as the model takes it.")
    return arrays
