"""What a variant costs and what it changes: latency, the task's metric, distance, row influence."""

import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import Progress, TaskID

from marship.contract import Arrays, Contract, GoldenCase, Tolerance, largest_difference
from marship.errors import ParityError
from marship.proof import parity
from marship.proof.cases import draw_real, first_axis, sizes_to_try, within
from marship.proof.comparison import RunModel

WARMUP_CALLS = 5
LEAST_ROUNDS = 30
MOST_ROUNDS = 500
ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 8 << 20
"""Of inputs in one call: what a model makes of long sounds takes a hundred times their memory."""
CONFIDENCE_Z = 1.96
MARGIN = 2.0
"""A quantized variant's tolerance over its largest measured difference: CPUs round differently."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of single calls at one batch size, in milliseconds."""

    median: float
    p99: float


def latencies(
    runs: Mapping[str, RunModel], inputs: Arrays, budget_s: float, progress: Progress, task: TaskID
) -> dict[str, list[float]]:
    """Time every variant in one interleaved run: each round calls each once, in turn.

    What slows the machine for a moment so slows all variants alike.

    Args:
        runs: The variants.
        inputs: The same for all.
        budget_s: Time for all rounds; there are 30 at least and 500 at most.
        progress: Shows the rounds as `task`.
        task: Its row.

    Returns:
        By variant, milliseconds for each round.
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
    """How many times faster than the base a variant is at least, with 97.5 % confidence.

    The lower end of the distribution-free interval of the median of the rounds' ratios
    (Conover, Practical Nonparametric Statistics, section 3.2).
    """
    ratios = np.sort(np.asarray(base_ms) / np.asarray(times_ms))
    place = math.floor(len(ratios) / 2 - CONFIDENCE_Z * math.sqrt(len(ratios)) / 2)
    return float(ratios[max(place, 0)])


def median_speedup(base_ms: Sequence[float], times_ms: Sequence[float]) -> float:
    """How many times faster than the base a variant is: the median of the rounds' ratios."""
    return float(np.median(np.asarray(base_ms) / np.asarray(times_ms)))


def timing_inputs(contract: Contract, examples: Arrays, batch: int) -> Iterator[tuple[int, Arrays]]:
    """Inputs of one row, and of `batch` rows where rows may share a call."""
    axis = first_axis(contract)
    sizes = within(contract, sizes_to_try(contract, examples)[-1], examples)
    if axis is None:
        yield len(next(iter(examples.values()))), draw_real(contract, examples, sizes, 0).inputs
        return
    for count in dict.fromkeys((1, batch if contract.batch_axis else 1)):
        yield count, draw_real(contract, examples, sizes | {axis: count}, 0).inputs


def predict_rows(run: RunModel, contract: Contract, rows: Arrays) -> Arrays:
    """Run many rows, together where they may be, and give their outputs as one."""
    inputs = {spec.name: rows[spec.name] for spec in contract.inputs}
    if first_axis(contract) is None:
        return run(inputs)
    count = len(next(iter(inputs.values())))
    row_bytes = max(1, sum(array.nbytes for array in inputs.values()) // max(1, count))
    at_once = 1
    if contract.batch_axis:
        at_once = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // row_bytes))
    outputs = [
        run({name: array[start : start + at_once] for name, array in inputs.items()})
        for start in range(0, count, at_once)
    ]
    return {name: np.concatenate([a[name] for a in outputs]) for name in outputs[0]}


def difference(got: Sequence[Arrays], want: Sequence[Arrays]) -> tuple[float, float]:
    """The largest absolute and relative difference of floating-point outputs."""
    pairs = [
        largest_difference(a, {k: v for k, v in b.items() if v.dtype.kind in "fc"})
        for a, b in zip(got, want, strict=True)
    ]
    return max(p[0] for p in pairs), max(p[1] for p in pairs)


def own_tolerance(got: Sequence[Arrays], want: Sequence[Arrays], base: Tolerance) -> Tolerance:
    """Of each output twice its largest measured difference, absolute, and no less than the base's.

    Relative ones mean little near zero.
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
    """Why a variant cannot take the exported model's place; None where it can.

    Whole-number outputs must be those of the golden cases. What was proven of the exported
    model must hold of the variant as strictly: an answer that depends on the other rows of
    its batch, or on padding, is a different answer each time, however small the metric drop.
    """
    for case in golden:
        answer = run(case.inputs)
        for name, want in case.outputs.items():
            if want.dtype.kind not in "fc" and not np.array_equal(answer[name], want):
                return f"output {name} of whole numbers differs from PyTorch's"
    found = parity.row_influence(contract, run, examples) if contract.batch_axis else None
    if found is not None and not found.agrees:
        first, *more = str(found.reason).split("; ")
        others = f", and {len(more)} more such reasons" if more else ""
        return f"rows of a batch influence each other: {first}{others}"
    try:
        parity.prove_padding(contract, run, examples)
    except ParityError:
        return "padding changes its answers"
    return None
