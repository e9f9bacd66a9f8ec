"""A PyTorch model converted to ONNX, with the proof that both compute the same."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marship import console
from marship.contract import GOLDEN_FILE, Arrays, Contract, write_golden
from marship.contract.tolerance import Tolerance, agree, largest_difference
from marship.errors import ModelError, ParityError, UsageError
from marship.exporting.build import built
from marship.exporting.compare import (
    OpsetError,
    Proof,
    Sides,
    check_ranks,
    compare_further,
    compare_one,
    entry,
    open_run,
    remarks,
)
from marship.exporting.indices import run_within
from marship.exporting.layout import BATCH, Layout, check_inputs, layout
from marship.exporting.settings import OPSETS, ExportSettings
from marship.fit.origin import versions
from marship.fit.recipe import Recipe
from marship.proof import margins, parity
from marship.proof.cases import draw_cases
from marship.proof.comparison import Comparison, RunModel

if TYPE_CHECKING:  # torch takes a second to import, and --help needs none of it
    from torch import nn

    from marship.exporting.guards import Doubt
    from marship.exporting.pretrained import Companion

MODEL_FILE = "model.onnx"

SHOWN = 3
VERSIONED = ("marship", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What an export is made from; `own` where there was no recipe before it.

    `companion` is what a model of transformers has beside it.
    """

    run_dir: Path
    recipe: Recipe
    given: Mapping[str, Any]
    weights: Path | None
    example: Path
    own: bool
    weights_key: str | None = None
    companion: "Companion | None" = None


def convert(
    source: ModelSource,
    build: Callable[..., Any],
    examples: Arrays,
    settings: ExportSettings,
    draft: Path,
) -> tuple[Contract, dict[str, Any]]:
    """Write the model and its golden cases, and prove that the file computes what the model does.

    Where the file cannot be made or run with the opset, older ones are tried, the newest first.

    Returns:
        The contract and the proof's report; neither is written.
    """
    failure: ModelError | None = None
    for opset in range(settings.opset, OPSETS[0] - 1, -1):
        try:
            done = _write(source, build, examples, replace(settings, opset=opset), draft)
        except OpsetError as error:
            if failure is not None and not error.is_of_runtime and str(error) == str(failure):
                break  # the exporter's own limit
            failure = failure or error
        except ModelError as error:
            raise failure or error from None
        else:
            if failure is not None:
                console.out.print(
                    f"opset {opset} was taken: with opset {settings.opset} {failure}",
                    markup=False,
                    soft_wrap=True,
                )
            return done
    raise failure or UsageError(f"opset must be {OPSETS[0]} or more, got {settings.opset}.")


def _write(
    source: ModelSource,
    build: Callable[..., Any],
    examples: Arrays,
    settings: ExportSettings,
    draft: Path,
) -> tuple[Contract, dict[str, Any]]:
    from marship.exporting import capture, unseen
    from marship.exporting.adaptation import adapted

    started = time.perf_counter()
    with console.progress() as progress:
        task = progress.add_task("building the model", total=None)
        model = built(build, source.recipe.build, source.given, source.weights, source.weights_key)
        ordered = {name: examples[name] for name in capture.input_order(model, examples)}
        shape = layout(source.recipe, ordered, settings.dynamic, fixed_batch=settings.fixed_batch)
        has_batch = any(BATCH in axes.values() for axes in shape.axes.values())
        model, changes = adapted(model, ordered, has_batch=has_batch)
        progress.update(task, description="converting to ONNX")
        names = capture.output_names(model, ordered, settings.output_names)
        reference = capture.torch_run(model, names)
        _check_outputs(reference, ordered, lambda: _counted(model))
        doubts = capture.write_onnx(
            model, ordered, draft / MODEL_FILE, layout=shape, outputs=names, opset=settings.opset
        )
        proof_started = time.perf_counter()
        progress.update(task, description="comparing with PyTorch")
        sides, proof = _compare_first(
            reference, ordered, doubts, draft / MODEL_FILE, _Stated(source.recipe, shape, settings)
        )
        progress.update(task, description="comparing at more sizes")
        until = proof_started + (1 - parity.SHARE_OF_ROWS) * settings.proof_seconds
        ranges = unseen.compare_unseen(sides, until, proof.seed)
        compare_further(sides, proof, until)
        progress.update(task, description="comparing rows alone and together")
        contract, proofs = _proven(sides.contract, sides.candidate, ordered, settings.proof_seconds)
    kept = parity.golden_from(reference, contract, ordered, settings.golden)
    contract = margins.with_rounding(contract, reference, sides.candidate, kept)
    parity.check_golden(sides.candidate, kept, contract)
    contract = unseen.bounded(contract, ranges)
    write_golden(draft / GOLDEN_FILE, kept)
    report = {
        "reference": "; ".join(("PyTorch, eager, eval mode", *changes)),
        "candidate": "ONNX Runtime, CPUExecutionProvider",
        **entry(proof, contract, proofs),
        "golden": settings.golden,
        "versions": versions(*VERSIONED),
        "proof_seconds_allowed": settings.proof_seconds,
        "proof_seconds": round(time.perf_counter() - proof_started, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }
    for line in (*changes, *unseen.remarks(ranges), *remarks(proof, contract)):
        console.out.print(line, markup=False, soft_wrap=True)
    return contract, report


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the graph had to meet."""

    recipe: Recipe
    shape: Layout
    settings: ExportSettings

    def contract(self, path: Path) -> Contract:
        """The contract as the graph has it."""
        from marship.proof import graph

        return graph.contract_of(
            path,
            pad_values=self.recipe.pad_values,
            bounds=self.shape.bounds,
            steps=self.shape.steps,
            tolerance=Tolerance(self.settings.atol, self.settings.rtol),
        )


def _compare_first(
    reference: RunModel, examples: Arrays, doubts: "Sequence[Doubt]", path: Path, stated: _Stated
) -> tuple[Sides, Proof]:
    """Compare at the first sizes; completes what the graph says of its outputs by the results."""
    from marship.exporting import outputs
    from marship.proof import graph

    graph.refuse_random(path)  # before the file is loaded: what is refused then may be tried again
    seed = stated.settings.seed
    proof = Proof(secrets.randbelow(1 << 32) if seed is None else seed)
    contract = stated.contract(path)
    check_inputs(contract, stated.shape)
    results = [
        run_within(reference, case, contract, examples) for case in draw_cases(contract, examples)
    ]
    check_ranks(results)
    outputs.state_output_shapes(path, [(case.sizes, want) for case, want in results])
    outputs.name_output_axes(path, stated.recipe.output_axes)
    contract = stated.contract(path)
    tolerance = contract.tolerance.scaled(want for _, want in results)
    contract = replace(contract, tolerance=tolerance)
    sides = Sides(reference, open_run(path), contract, examples, doubts)
    proof.comparisons += [compare_one(sides, case, want) for case, want in results]
    return sides, proof


def _check_outputs(
    reference: RunModel, examples: Arrays, state: Callable[[], Mapping[str, str]]
) -> None:
    first, before = reference(examples), state()
    second, after = reference(examples), state()
    changed = [name for name, value in after.items() if before.get(name) != value]
    if changed:
        raise ParityError(
            f"forward must not keep anything between calls, got {', '.join(changed[:SHOWN])} "
            "changed by a call. Take it out, or make it an input and an output."
        )
    for name, array in first.items():
        if array.dtype.kind == "f" and array.size and np.isnan(array).all():
            raise ModelError(
                f"output {name} must hold numbers, got NaN throughout for the example. "
                "Look for NaN in the weights and the example."
            )
    if not agree(first, second, Tolerance(0.0, 0.0)):
        raise ParityError(
            "the model must give the same outputs twice, got outputs "
            f"{largest_difference(second, first)[0]:.3g} apart for the same input. "
            "Take the randomness out of forward."
        )


def _proven(
    contract: Contract, run: RunModel, examples: Arrays, proof_seconds: float
) -> tuple[Contract, dict[str, Comparison | None]]:
    """The contract with its batch axis, and the evidence about rows and padding."""
    seconds = proof_seconds * parity.SHARE_OF_ROWS
    contract, influence = parity.with_batch_axis(contract, run, examples, seconds=seconds)
    padding = parity.prove_padding(contract, run, examples)
    return contract, {"rows": influence, "padding": padding}


def _counted(model: "nn.Module") -> dict[str, str]:
    """Numbers and flags that modules hold, which a first call may set, but no second one change."""
    return {
        f"{place}.{name}".lstrip("."): repr(value)
        for place, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    }
