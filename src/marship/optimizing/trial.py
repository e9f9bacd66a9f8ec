"""One trial of all variants: built, loaded, timed, judged, compared."""

import io
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from rich.progress import Progress, TaskID

from marship import console
from marship.contract import Arrays, Contract, digest_variant
from marship.contract.tolerance import Tolerance, agree
from marship.errors import ModelError
from marship.optimizing import fidelity, measure
from marship.optimizing.choice import EXPORTED, Variant
from marship.optimizing.material import FEWEST_CALIBRATION_ROWS, Material, check_number, judged
from marship.optimizing.source import ExportedModel, NotBuiltError
from marship.proof import margins, parity
from marship.proof.comparison import RunModel

BASE = "float32"
EXACT = (EXPORTED, BASE)
"""Variants that must keep the contract's tolerance; the others get their own."""


def build_all(source: ExportedModel, passes: Sequence[str], draft: Path) -> list[Variant]:
    """The exported model and a variant for each pass, including those that cannot be built."""
    variants = [Variant(EXPORTED, file=source.path.name)]
    with console.progress() as progress:
        task = progress.add_task("", total=len(passes))
        for name in passes:
            progress.update(task, description=f"building {name}")
            target = draft / f"model.{name}.onnx"
            reporting = replace(source, report=partial(_report, progress, task, name))
            try:
                with _quiet():
                    details = import_module(f"marship.optimizing.passes.{name}").build(
                        reporting, target
                    )
                _check_tensors(target, source.contract)
                variants.append(Variant(name, file=target.name, details=details or {}))
            except NotBuiltError as error:
                for file in draft.glob(f"{target.name}*"):
                    file.unlink()
                variants.append(Variant(name, reason=str(error)))
            progress.advance(task)
        progress.update(task, description="built variants")
    return variants


def _report(progress: Progress, task: TaskID, name: str, line: str) -> None:
    progress.update(task, description=f"building {name}: {line}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings and prints of the quantizer, and of the sessions that it opens."""
    with (
        console.muted(logging.WARNING),
        parity.quiet_runtime(),
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _check_tensors(target: Path, contract: Contract) -> None:
    """Reject a variant that does not load, or has other inputs or outputs."""
    try:
        session = parity.open_session(target)
    except ModelError as error:
        raise NotBuiltError(str(error)) from error
    for tensors, specs in (
        (session.get_inputs(), contract.inputs),
        (session.get_outputs(), contract.outputs),
    ):
        if [tensor.name for tensor in tensors] != [spec.name for spec in specs]:
            raise NotBuiltError(f"it takes or gives {', '.join(t.name for t in tensors)}")


def load_all(
    variants: Sequence[Variant], material: Material, draft: Path, threads: int
) -> dict[str, RunModel]:
    """Load each built variant, recording its size, digest and load time."""
    runs: dict[str, RunModel] = {}
    for variant in variants:
        if variant.file is None:
            continue
        folder = material.source.path.parent if variant.name == EXPORTED else draft
        files = [folder / name for name in (variant.file, f"{variant.file}.data")]
        variant.size_bytes = sum(file.stat().st_size for file in files if file.exists())
        variant.digest = digest_variant(files[0])
        start = time.perf_counter()
        runs[variant.name] = parity.runner(files[0], threads)
        variant.load_ms = (time.perf_counter() - start) * 1000
    return runs


def time_all(
    variants: Sequence[Variant],
    runs: Mapping[str, RunModel],
    calls: Mapping[int, Arrays],
    measure_s: float,
) -> None:
    """Record each variant's latency by the number of rows per call, and its speedups."""
    base = BASE if BASE in runs else EXPORTED
    with console.progress() as progress:
        for rows, inputs in calls.items():
            task = progress.add_task(f"timing all in turn, {rows} rows", total=None)
            times = measure.latencies(runs, inputs, measure_s / len(calls), progress, task)
            for variant in (v for v in variants if v.file):
                variant.latency_ms[str(rows)] = measure.summary(times[variant.name])
                if variant.name != base:
                    gain = measure.sure_speedup(times[base], times[variant.name])
                    variant.speedup *= gain ** (1 / len(calls))
                    ratio = measure.median_speedup(times[base], times[variant.name])
                    variant.median_speedup *= ratio ** (1 / len(calls))


def judge_all(
    variants: Sequence[Variant], runs: Mapping[str, RunModel], material: Material
) -> None:
    """Record each variant's metrics, its difference from PyTorch, and any objection.

    On held-out rows the exported model stands for PyTorch, as it was proven to agree within the
    contract's tolerance.
    """
    rows = material.heldout or material.examples
    calls = list(measure.calls(material.contract, rows))
    exported = [runs[EXPORTED](inputs) for inputs in calls]
    best = _metrics(material, exported, rows)
    if material.metric is not None:
        check_number(material.recipe, material.metric, best[material.metric])
    built = [variant for variant in variants if variant.file]
    with console.progress() as progress:
        for variant in progress.track(built, description="judging on held-out data"):
            run = runs[variant.name]
            outputs = [run(inputs) for inputs in calls]
            got = [*(run(case.inputs) for case in material.golden), *outputs]
            want = [*(case.outputs for case in material.golden), *exported]
            variant.absolute, variant.relative = measure.difference(got, want)
            variant.is_exact = _within(got, want, material.contract.tolerance)
            variant.tolerance = _tolerance(variant, run, material, got=got, want=want)
            if material.compared_rows:
                variant.fidelity = fidelity.compare(outputs, exported, material.contract.outputs)
            variant.metrics = _metrics(material, outputs, rows)
            if material.metric is not None:
                drop = best[material.metric] - variant.metrics[material.metric]
                variant.metric_drop = drop if material.recipe.greater_is_better else -drop
            if variant.name != EXPORTED:
                variant.objection = _objection(variant, run, material)


def _within(got: Sequence[Arrays], want: Sequence[Arrays], tolerance: Tolerance) -> bool:
    """Whether all floats agree; integers are checked by `measure.objection`."""
    floats = [{k: v for k, v in outputs.items() if v.dtype.kind in "fc"} for outputs in want]
    return all(agree(a, b, tolerance) for a, b in zip(got, floats, strict=True))


def _tolerance(
    variant: Variant,
    run: RunModel,
    material: Material,
    *,
    got: Sequence[Arrays],
    want: Sequence[Arrays],
) -> Tolerance:
    """How much a served output of a variant may differ from the reference, at any threads."""
    if variant.name in EXACT:
        return material.contract.tolerance
    tolerance = measure.own_tolerance(got, want, material.contract.tolerance)
    if not isinstance(run, parity.OnnxRun) or not math.isfinite(variant.absolute):
        return tolerance
    contract = replace(material.contract, tolerance=tolerance)
    return margins.with_threads(contract, run, material.golden)[0].tolerance


def _objection(variant: Variant, run: RunModel, material: Material) -> str | None:
    if not math.isfinite(variant.absolute):
        return "its outputs are not all finite, or have other sizes"
    if variant.name in EXACT:
        off = f"its outputs differ by {variant.absolute:.2g}, more than the export's tolerance"
        return None if variant.is_exact else off
    if material.metric is None and (far := _too_far(variant, material)):
        return far
    return measure.objection(material.contract, run, material.golden, material.examples)


def _too_far(variant: Variant, material: Material) -> str | None:
    """Why its outputs are too far from the exported model's, without a judge; None if they are not.

    Floats within the export's tolerance are as good as the exported ones. That says nothing of
    labels, which floats decide that are no outputs.
    """
    if material.compared_rows:
        found = variant.fidelity
        return fidelity.objection(
            fidelity.labels(found) if variant.is_exact else found, material.bounds
        )
    has_floats = any(spec.dtype.startswith("float") for spec in material.contract.outputs)
    if variant.is_exact and has_floats:
        return None
    differ = "its outputs differ by more than the export's tolerance, and there"
    return (
        f"{differ if has_floats else 'there'} is no judge and fewer than {FEWEST_CALIBRATION_ROWS} "
        "calibration rows or requests to rate them"
    )


def _metrics(material: Material, outputs: Sequence[Arrays], rows: Arrays) -> dict[str, float]:
    if material.judge is None or material.heldout is None:
        return {}
    return judged(material.judge, material.recipe, measure.joined(outputs), rows)
