"""Measures variants: latency, the task's metric, differences, influence between rows."""

import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import Progress, TaskID

from marship.contract import Arrays, Contract, GoldenCase
from marship.contract.tolerance import Tolerance, largest_difference
from marship.errors import DataError, ParityError
from marship.proof import parity
from marship.proof.cases import allowed, draw_real, first_axis, sizes_to_try, within
from marship.proof.comparison import RunModel

WARMUP_CALLS = 5
LEAST_ROUNDS = 30
MOST_ROUNDS = 500
ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 8 << 20
"""Of inputs per call: activations for long audio take a hundred times the inputs' memory."""
CONFIDENCE_Z = 1.96
MARGIN = 2.0
"""Factor of a quantized variant's tolerance over its largest difference: CPUs round differently."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of single calls at one batch size, in milliseconds."""

    median: float
    p99: float


def latencies(
    runs: Mapping[str, RunModel], inputs: Arrays, budget_s: float, progress: Progress, task: TaskID
) -> dict[str, list[float]]:
    """Time all variants interleaved: each round calls each variant once.

    So a temporary slowdown of the machine affects all variants alike.

    Args:
        runs: The variants.
        inputs: The inputs, the same for all.
        budget_s: Time budget for all rounds; at least 30 and at most 500 are run.
        progress: The progress display.
        task: Its task that counts the rounds.

    Returns:
        The milliseconds of each round, by variant.
    """
    started = time.perf_counter()
    for run in runs.values():
        for _ in range(WARMUP_CALLS):
            run(inputs)
    round_s = (time.perf_counter() - started) / WARMUP_CALLS
    rounds = min(max(int(budget_s / max(round_s, 1e-6)), LEAST_ROUNDS), MOST_ROUNDS)
    progress.update(task, total=rounds)
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.disable()
    try:
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start = time.perf_counter_ns()
                runs[name](inputs)
                times[name].append((time.perf_counter_ns() - start) / 1e6)
            progress.advance(task)
    finally:
        gc.enable()
    return times


def summary(times_ms: Sequence[float]) -> Latency:
    """Median and 99th percentile."""
    return Latency(float(np.median(times_ms)), float(np.percentile(times_ms, 99)))


def sure_speedup(base_ms: Sequence[float], times_ms: Sequence[float]) -> float:
    """The lower bound of a variant's speedup over the base at 97.5 % confidence.

    The lower end of the distribution-free interval of the median of the rounds' ratios
    (Conover, Practical Nonparametric Statistics, section 3.2).
    """
    ratios = np.sort(np.asarray(base_ms) / np.asarray(times_ms))
    place = math.floor(len(ratios) / 2 - CONFIDENCE_Z * math.sqrt(len(ratios)) / 2)
    return float(ratios[max(place, 0)])


def median_speedup(base_ms: Sequence[float], times_ms: Sequence[float]) -> float:
    """A variant's speedup over the base: the median of the rounds' ratios."""
    return float(np.median(np.asarray(base_ms) / np.asarray(times_ms)))


def timing_inputs(contract: Contract, examples: Arrays, batch: int) -> Iterator[tuple[int, Arrays]]:
    """Inputs of one row, and of `batch` rows if rows can be batched."""
    axis = first_axis(contract)
    sizes = within(contract, sizes_to_try(contract, examples)[-1], examples)
    if axis is None:
        rows = max((array.shape[0] for array in examples.values() if array.ndim), default=1)
        yield rows, draw_real(contract, examples, sizes, 0).inputs
        return
    counts = (1, batch if contract.batch_axis else 1)
    for count in dict.fromkeys(allowed(contract, axis, count) for count in counts):
        yield count, draw_real(contract, examples, sizes | {axis: count}, 0).inputs


def calls(contract: Contract, rows: Arrays, at_once: int | None = None) -> Iterator[Arrays]:
    """The inputs of single calls: rows batched if possible, or one request after the other.

    Args:
        contract: The model's.
        rows: Inputs by name, and other arrays, which are left out. Where requests cannot be cut
            into rows, arrays have one axis more than the model's inputs, in front, for requests.
        at_once: Rows of a call; None is as many as memory suggests.
    """
    inputs = {spec.name: rows[spec.name] for spec in contract.inputs}
    if holds_requests(contract, rows):
        yield from requests(inputs)
        return
    axis = first_axis(contract)
    if axis is None:
        yield inputs
        return
    count = len(next(iter(inputs.values())))
    row_bytes = max(1, sum(array.nbytes for array in inputs.values()) // max(1, count))
    if at_once is None:
        at_once = 1
        if contract.batch_axis:
            at_once = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // row_bytes))
    at_once = allowed(contract, axis, at_once)
    for start in range(0, count, at_once):
        yield {name: array[start : start + at_once] for name, array in inputs.items()}


def requests(rows: Arrays) -> Iterator[Arrays]:
    """Each of the requests that arrays have in front of the model's own axes."""
    for number in range(len(next(iter(rows.values())))):
        # NumPy would give a number where there are no further axes
        yield {name: np.asarray(array[number]) for name, array in rows.items()}


def holds_requests(contract: Contract, rows: Arrays) -> bool:
    """Whether arrays have an axis for requests in front of the model's own axes."""
    found = [(rows.get(spec.name), len(spec.shape)) for spec in contract.inputs]
    return all(array is not None and array.ndim == axes + 1 for array, axes in found)


def predict_rows(run: RunModel, contract: Contract, rows: Arrays) -> Arrays:
    """Run many rows, batched if possible, and concatenate their outputs."""
    return joined([run(inputs) for inputs in calls(contract, rows)])


def joined(outputs: Sequence[Arrays]) -> Arrays:
    """The outputs of several calls, one after the other along their first axis.

    Raises:
        DataError: An output has other sizes in other calls.
    """
    found = {}
    for name in outputs[0]:
        arrays = [np.atleast_1d(call[name]) for call in outputs]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise DataError(
                f"output {name} must have one size for a judge, got several: its size depends on "
                "the inputs. Optimize without a judge."
            )
        found[name] = np.concatenate(arrays)
    return found


def difference(got: Sequence[Arrays], want: Sequence[Arrays]) -> tuple[float, float]:
    """The largest absolute and relative difference of floating-point outputs."""
    pairs = [
        largest_difference(a, {k: v for k, v in b.items() if v.dtype.kind in "fc"})
        for a, b in zip(got, want, strict=True)
    ]
    return max(p[0] for p in pairs), max(p[1] for p in pairs)


def own_tolerance(got: Sequence[Arrays], want: Sequence[Arrays], base: Tolerance) -> Tolerance:
    """An absolute tolerance of twice each output's largest difference, at least the base's.

    Relative tolerances are meaningless near zero.
    """
    floats = [name for name, array in want[0].items() if array.dtype.kind in "fc"]
    allowed = {}
    for name in floats:
        pairs = zip(got, want, strict=True)
        off = max(largest_difference(a, {name: b[name]})[0] for a, b in pairs)
        allowed[name] = max(MARGIN * off, base.absolute(name))
    most = max(allowed.values(), default=base.atol)
    return Tolerance(most, 0.0, {k: value / most for k, value in allowed.items() if value < most})


def objection(
    contract: Contract, run: RunModel, golden: Sequence[GoldenCase], examples: Arrays
) -> str | None:
    """Why a variant cannot replace the exported model; None if it can.

    Integer outputs must equal those of the golden cases. The proofs about the exported model
    must hold for the variant as strictly: an output that depends on other rows of the batch, or
    on padding, varies between requests, however small the metric drop is.
    """
    for case in golden:
        got = run(case.inputs)
        for name, want in case.outputs.items():
            if want.dtype.kind not in "fc" and not np.array_equal(got[name], want):
                kind = "text" if want.dtype.kind in "OU" else "whole numbers"
                return f"output {name} of {kind} differs from the exported model's"
    found = parity.row_influence(contract, run, examples) if contract.batch_axis else None
    if found is not None and not found.agrees:
        first, *more = str(found.reason).split("; ")
        others = f", and {len(more)} more such reasons" if more else ""
        return f"rows of a batch influence each other: {first}{others}"
    try:
        parity.prove_padding(contract, run, examples)
    except ParityError:
        return "padding changes its outputs"
    return None
