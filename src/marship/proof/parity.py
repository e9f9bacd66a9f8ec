"""Proofs that two ways to run a model agree, and that padding does not change outputs.

A way to run a model is a function from input arrays by name to output arrays by name. Test inputs
are real (cut from examples) and random (drawn from the examples' range), at several batch sizes
and at several sizes of every variable axis.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Arrays, Contract, GoldenCase
from marship.contract.tolerance import Tolerance, agree, largest_difference
from marship.errors import ModelError, ParityError, UsageError
from marship.proof import golden
from marship.proof.cases import (
    BATCH_SIZES,
    Case,
    allowed,
    draw_real,
    first_axis,
    seen_sizes,
    shared_axis,
    sizes_to_try,
)
from marship.proof.comparison import Comparison, RowProof, RunModel
from marship.proof.rows import PROOF_SECONDS, prove
from marship.serving.model import custom_ops

_CODES = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NODE = re.compile(
    r"Non-zero status code returned while running (\w+) node\. Name:'[^']*' Status Message: "
)
_FOREIGN = re.compile(r"([\w.]+):\w+\(-?\d+\) is not a registered function/op")
"""An operator of a domain that ONNX Runtime does not know."""
_PLACES = re.compile(
    r"/\S+\.\w+:\d+ .*?\)(?: const)?(?: \[with [^]]*\])? |\b\w+\.(?:cc|h):\d+ \S+ "
)
"""A source file of ONNX Runtime and a function's signature or name, before a message."""

_LOADING = re.compile(r"Load model from .* failed:")
"""Names the copy of a file that was rewritten."""
_LOCALE = re.compile(r"Failed to construct locale with name:([\w.@-]+)")
"""Of StringNormalizer; Debian's slim images have none but C, POSIX and C.UTF-8."""

SHARE_OF_ROWS = 0.5
"""Share of the time budget for all proofs of an export."""
WARNING, FATAL = 2, 4
"""Levels of ONNX Runtime's log (onnxruntime_c_api.h, OrtLoggingLevel): the first is its default.
It writes to the terminal itself; what it says of an error comes in the exception, too."""


def open_session(path: Path, threads: int = 1, libraries: Sequence[Path] = ()) -> Any:  # noqa: ANN401  onnxruntime ships no types
    """An ONNX Runtime session on the CPU.

    Args:
        path: The ONNX file.
        threads: Of one call.
        libraries: Files with its custom operators.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
        LoadError: It cannot load a library.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = FATAL
    custom_ops.register(options, libraries)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        why = _why(error, libraries)
        raise ModelError(f"{path.name} must load in ONNX Runtime, got: {why}") from error


def _why(error: Exception, libraries: Sequence[Path]) -> str:
    """Why ONNX Runtime does not load a file with these libraries, and what to do."""
    locale = _LOCALE.search(str(error))
    if locale is None:
        said = _LOADING.sub("", reason(error))
        if (foreign := _FOREIGN.search(said)) and libraries:
            given = ", ".join(library.name for library in libraries)
            return f"{said}. {given} does not have it: build that with it, or add another library."
        if foreign:
            return f"{said}. Give the library of operators of {foreign[1]}: --custom-ops FILE.so."
        if len(libraries) > 1 and "already set in registry" in said:
            return f"{said}. Two of the libraries define the same operators: give one of them."
        return f"{said}. Change the model, or export it with another opset."
    return (
        f"no locale {locale[1]} on this machine, by which the model changes the case of text. "
        "Generate it here and where the model is served (on Debian: apt-get install locales; "
        f"localedef -i {locale[1].partition('.')[0]} -f UTF-8 {locale[1]}), or convert the model "
        "with the locale C.UTF-8."
    )


@contextmanager
def quiet_runtime() -> Iterator[None]:
    """Keep ONNX Runtime from writing to the terminal, in sessions that its own tools open, too."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(WARNING)  # it tells nobody what it was


@dataclass(frozen=True, slots=True)
class OnnxRun:
    """Runs an ONNX file; proofs can read its graph, too."""

    path: Path
    session: Any
    libraries: Sequence[Path] = ()

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the file; unknown inputs are ignored.

        Raises:
            ModelError: It fails on the inputs.
        """
        wanted = {tensor.name for tensor in self.session.get_inputs()}
        names = [tensor.name for tensor in self.session.get_outputs()]
        try:
            values = self.session.run(names, {k: v for k, v in inputs.items() if k in wanted})
        except Exception as error:  # its exceptions share no base of their own
            raise ModelError(
                f"{self.path.name} must run on the inputs, got: {reason(error)}."
            ) from error
        return dict(zip(names, values, strict=True))


def runner(path: Path, threads: int = 1, libraries: Sequence[Path] = ()) -> OnnxRun:
    """Run an ONNX file with ONNX Runtime on the CPU; see `open_session`.

    Raises:
        ModelError: The file cannot be loaded.
        LoadError: A library cannot.
    """
    return OnnxRun(path, open_session(path, threads, libraries), libraries)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type without one."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")


def reason(error: BaseException | None) -> str:
    """Why ONNX Runtime failed: its operator and its words, without its codes and source files."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    text = _PLACES.sub("", _CODES.sub("", first_line(error or ModelError())))
    return _NODE.sub(lambda found: f"{found[1]}: ", text).strip()


def describe(
    contract: Contract,
    run: RunModel,
    examples: Arrays | None = None,
    *,
    seconds: float = PROOF_SECONDS,
) -> tuple[Contract, list[GoldenCase]]:
    """Complete a contract that was read from a graph, and create golden cases.

    The batch axis is set if rows are proven independent.

    Raises:
        ModelError: The model fails on them.
    """
    contract, _ = with_batch_axis(contract, run, examples, seconds=seconds)
    golden = golden_from(run, contract, examples)
    return with_scale(contract, golden), golden


def with_scale(contract: Contract, golden: Sequence[GoldenCase]) -> Contract:
    """The contract with a tolerance scaled to each output's magnitude in golden cases."""
    tolerance = contract.tolerance.scaled(case.outputs for case in golden)
    return replace(contract, tolerance=tolerance)


def with_batch_axis(
    contract: Contract,
    run: RunModel,
    examples: Arrays | None = None,
    *,
    seconds: float = PROOF_SECONDS,
) -> tuple[Contract, RowProof | None]:
    """The contract with its batch axis if rows are independent, and the evidence."""
    proof = row_influence(contract, run, examples, seconds=seconds)
    independent = proof is not None and proof.agrees
    return replace(contract, batch_axis=shared_axis(contract) if independent else None), proof


def compare(want: Arrays, got: Arrays, case: Case, tolerance: Tolerance) -> Comparison:
    """Compare outputs `got` with those of the reference, `want`."""
    absolute, relative = largest_difference(got, want)
    return Comparison(case.kind, case.sizes, absolute, relative, agree(got, want, tolerance))


def row_influence(
    contract: Contract,
    run: RunModel,
    examples: Arrays | None = None,
    *,
    seconds: float = PROOF_SECONDS,
) -> RowProof | None:
    """Compare rows in a batch with the same rows alone; see `marship.proof.rows`.

    For an ONNX file the facts of its graph count, too.

    Returns:
        None if inputs and outputs do not share a variable first axis.
    """
    facts = None
    if isinstance(run, OnnxRun):
        from marship.proof import graph, influence

        follow = partial(influence.mixing, run.path, libraries=run.libraries)
        facts = replace(graph.facts(run.path), follow=follow)
    return prove(contract, run, examples, facts=facts, seconds=seconds)


def prove_padding(contract: Contract, run: RunModel, examples: Arrays) -> Comparison | None:
    """Show that rows padded on the right with the pad values give the same outputs as unpadded.

    Rows of different sizes are run alone at their own size, and padded to the largest size: in
    one batch if the contract has a batch axis, else one by one.

    Returns:
        The largest difference; None if no input has a pad value.

    Raises:
        UsageError: Another input varies along the same axis and has no pad value.
        ParityError: Padding changes an output.
    """
    padded = [spec for spec in contract.inputs if spec.pad_value is not None]
    if not padded:
        return None
    rows = [_cut(contract, examples, number) for number in range(max(BATCH_SIZES))]
    largest = sizes_to_try(contract, examples)[-1]
    filled = [_fill(contract, row, largest) for row in rows]
    if contract.batch_axis is None:
        together = [run(row) for row in filled]
    else:
        stacked = {k: np.concatenate([row[k] for row in filled]) for k in filled[0]}
        results = run(stacked)
        together = [_row(results, number) for number in range(len(rows))]
    worst = Comparison("padded", largest, 0.0, 0.0, agrees=True)
    for row, result in zip(rows, together, strict=True):
        want = run(row)
        got = {
            name: result[name][tuple(slice(size) for size in array.shape)]
            for name, array in want.items()
        }
        absolute, relative = largest_difference(got, want)
        if not agree(got, want, contract.tolerance):
            names = ", ".join(f"{spec.name} with {spec.pad_value:g}" for spec in padded)
            raise ParityError(
                f"padding {names} must not change an output, got outputs {absolute:.3g} apart. "
                "Mask the padding in forward, or leave the pad value out."
            )
        worst = Comparison(
            "padded", largest, max(worst.absolute, absolute), max(worst.relative, relative), True
        )
    return worst


def golden_from(
    run: RunModel, contract: Contract, examples: Arrays | None = None, kind: str = golden.SYNTHETIC
) -> list[GoldenCase]:
    """Golden cases with the outputs of `run`; see `marship.proof.golden`.

    Inputs that the model refuses are skipped, as long as others succeed: which sizes and values it
    accepts is only known in part.

    Raises:
        ModelError: The model fails on all of them.
    """
    cases: list[GoldenCase] = []
    refused: ModelError | None = None
    for case in golden.draw_golden(contract, examples, kind):
        try:
            cases.append(GoldenCase(case.inputs, run(case.inputs)))
        except ModelError as error:
            refused = error
    if refused is not None and not cases:
        instead = (
            "Give it some that it takes: --example inputs.npz."
            if examples is None
            else "The examples run: with --golden real they are the golden cases, which travel in "
            "the archive."
        )
        raise ModelError(f"{refused} Drawn inputs were tried. {instead}") from refused
    return cases


def check_golden(candidate: RunModel, cases: Sequence[GoldenCase], contract: Contract) -> None:
    """Check golden cases with the file that workers will replay them with.

    Raises:
        ParityError: Its outputs differ, so no worker would load it.
    """
    for number, case in enumerate(cases):
        got = candidate(case.inputs)
        if not agree(got, case.outputs, contract.tolerance):
            raise ParityError(
                f"golden case {number} must be repeated by ONNX Runtime within tolerance, got "
                f"{largest_difference(got, case.outputs)[0]:.3g} apart. Look for branches on "
                "values in forward, or take rows of the examples with --golden real."
            )


def _row(arrays: Arrays, number: int) -> Arrays:
    return {name: array[number : number + 1] for name, array in arrays.items()}


def _padded_axes(contract: Contract) -> list[str]:
    """The variable axes, except the batch, of the inputs with a pad value.

    Raises:
        UsageError: An input without a pad value varies along one of them.
    """
    batch = first_axis(contract)
    padded = [spec for spec in contract.inputs if spec.pad_value is not None]
    axes = {a: None for s in padded for a in s.shape if isinstance(a, str) and a != batch}
    for spec in contract.inputs:
        shared = [axis for axis in axes if axis in spec.shape]
        if spec.pad_value is None and shared:
            raise UsageError(
                f"{spec.name} must have a pad value, got none although {', '.join(shared)} "
                "is padded in other inputs. Give one for each of them."
            )
    return list(axes)


def _cut(contract: Contract, examples: Arrays, number: int) -> Arrays:
    """One row of the examples without its padding, cut shorter for smaller numbers."""
    smallest, seen = sizes_to_try(contract, examples)[0], seen_sizes(contract, examples)
    batch = first_axis(contract)
    row = draw_real(contract, examples, seen | ({batch: 1} if batch else {}), number).inputs
    sizes = {}
    for axis in _padded_axes(contract):
        low = smallest[axis]
        wanted = round(low + (seen[axis] - low) * (number + 1) / max(BATCH_SIZES))
        sizes[axis] = allowed(contract, axis, min(wanted, _true_size(contract, row, axis)))
    return {
        spec.name: row[spec.name][
            tuple(slice(sizes.get(a) if isinstance(a, str) else None) for a in spec.shape)
        ]
        for spec in contract.inputs
    }


def _true_size(contract: Contract, row: Arrays, axis: str) -> int:
    """The row's size along `axis` without trailing padding."""
    ends = [0]
    for spec in contract.inputs:
        if spec.pad_value is None or axis not in spec.shape:
            continue
        real = np.moveaxis(row[spec.name] != spec.pad_value, spec.shape.index(axis), 0)
        used = np.flatnonzero(real.reshape(len(real), -1).any(axis=1))
        ends.append(int(used[-1]) + 1 if used.size else 0)
    return max(ends)


def _fill(contract: Contract, row: Arrays, sizes: Mapping[str, int]) -> Arrays:
    axes = {axis: sizes[axis] for axis in _padded_axes(contract)}
    filled = {}
    for spec in contract.inputs:
        widths = [
            (0, axes.get(str(axis), size) - size)
            for axis, size in zip(spec.shape, row[spec.name].shape, strict=True)
        ]
        filled[spec.name] = np.pad(row[spec.name], widths, constant_values=spec.pad_value or 0)
    return filled
