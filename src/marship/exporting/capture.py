"""Converts a PyTorch model to ONNX: names of inputs and outputs, variable axes, conversion."""

import inspect
import io
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config
from torch import nn

from marship import console
from marship.contract import Arrays
from marship.errors import DataError, ModelError, UsageError
from marship.exporting import attention, guards, operators, size_floats
from marship.exporting.compare import NotConvertedError, OpsetError
from marship.exporting.guards import Doubt
from marship.exporting.layout import BATCH, Layout
from marship.exporting.modules import Wrapper, signature_of
from marship.exporting.results import left_out, named_tensors
from marship.proof import divisions
from marship.proof.cases import allowed
from marship.proof.comparison import RunModel
from marship.proof.operators import FINISHED_ROWS_STAY
from marship.proof.parity import first_line

WEIGHTS_INSIDE_LIMIT_BYTES = 2**31 - 2**24
"""A protobuf message has 2 GB at most; this leaves some for the graph."""

TRACED_ROWS = 3
REASON_LIMIT = 400
_exporting = threading.Lock()
"""What is exchanged in PyTorch while it traces, is for all threads: one export at a time."""


def input_order(model: nn.Module, examples: Arrays) -> list[str]:
    """The names of the example's arrays, in the order of forward's parameters.

    Raises:
        DataError: The example lacks an input that forward needs, has one it does not take, or
            holds other data than numbers.
        UsageError: forward has positional-only inputs.
    """
    parameters = signature_of(model).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.POSITIONAL_ONLY in kinds:
        raise UsageError(
            "forward must name its inputs, got positional-only ones. Give each a name."
        )
    named = [n for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    needed = [n for n in named if parameters[n].default is inspect.Parameter.empty]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        named += [name for name in examples if name not in named]
    if not set(needed) <= set(examples) <= set(named):
        raise DataError(
            f"the example must hold arrays named {', '.join(named)}, "
            f"got {', '.join(examples) or 'none'}. Name them as forward names its parameters."
        )
    _check_types(examples)
    return [name for name in named if name in examples]


def _check_types(examples: Arrays) -> None:
    for name, array in examples.items():
        try:
            torch.from_numpy(np.empty(0, array.dtype))
        except TypeError as error:
            raise DataError(
                f"{name} of the example must be of a type that PyTorch has, got {array.dtype}. "
                "Save numbers, such as float32 or int64."
            ) from error


def output_names(model: nn.Module, examples: Arrays, given: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the outputs: those given, or the model's own.

    Raises:
        ModelError: The model fails on the examples, or returns no tensors.
        UsageError: The number of given names is not that of the outputs.
    """
    returned = _returned(model, {k: torch.from_numpy(v) for k, v in examples.items()})
    own = [name for name, _ in named_tensors(returned)]
    if own and (others := left_out(returned)):
        console.out.print(
            f"left out of the outputs: {', '.join(others)}", markup=False, soft_wrap=True
        )
    if not own:
        raise ModelError("forward must return tensors, got none. Return the outputs to serve.")
    if given and len(given) != len(own):
        raise UsageError(
            f"output names must be {len(own)}, one for each of {', '.join(own)}, got {len(given)}."
        )
    return given or tuple(f"{name}_out" if name in examples else name for name in own)


def torch_run(model: nn.Module, names: tuple[str, ...]) -> RunModel:
    """A function that runs a PyTorch model on arrays by the names of forward's parameters.

    Args:
        model: In eval mode.
        names: The outputs' names, from `output_names`.

    Raises:
        ModelError: When called: forward raises.
    """

    def run(inputs: Arrays) -> Arrays:
        found = call(model, {k: torch.from_numpy(array.copy()) for k, array in inputs.items()})
        return {name: tensor.numpy() for name, (_, tensor) in zip(names, found, strict=True)}

    return run


def call(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Run a model in PyTorch; its outputs by name.

    Raises:
        ModelError: forward raises.
    """
    return named_tensors(_returned(model, inputs))


def _returned(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    try:
        with torch.no_grad(), attention.plain():
            return model(**inputs)
    except Exception as error:  # user code: it may raise anything
        shapes = ", ".join(f"{k} {str(v.dtype)[6:]}{list(v.shape)}" for k, v in inputs.items())
        raise ModelError(
            f"the model must run on {shapes}, got: {_reason(error)}. "
            "Correct the example, narrow the bounds of its variable axes, or state --fixed-batch."
        ) from error


def write_onnx(  # noqa: PLR0913  the parts of a graph
    model: nn.Module,
    examples: Arrays,
    path: Path,
    *,
    layout: Layout,
    outputs: tuple[str, ...],
    opset: int,
) -> list[Doubt]:
    """Convert a model with torch.export and torch.onnx.export and write it.

    Args:
        model: In eval mode.
        examples: By input name, in the graph's order.
        path: The ONNX file; weights are internal, or above 2 GB in one external file.
        layout: The variable axes.
        outputs: The outputs' names.
        opset: Version of the default ONNX operator set.

    Returns:
        Single sizes that torch assumed not to occur: the file must be compared at those.

    Raises:
        ModelError: The model cannot be converted, or its graph would not be valid for all
            sizes; the message names the cause and the line.
    """
    traced = _traced_inputs(examples, layout)
    call(model, traced)  # a clearer error than torch.export's for an unsupported batch
    if isinstance(model, Wrapper):
        model = model.traceable(traced)
    failures: list[Exception] = []
    for strict in (False, True):  # dynamo follows some code that a plain trace makes constant
        try:
            program, doubts = _converted(model, traced, layout, outputs, opset=opset, strict=strict)
        except Exception as error:  # torch's exporter raises errors of many unrelated types
            failures.append(error)
            continue
        weights_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        if any(getattr(part, FINISHED_ROWS_STAY, False) for part in model.modules()):
            program.model.metadata_props[FINISHED_ROWS_STAY] = "True"
        program.save(path, external_data=weights_bytes > WEIGHTS_INSIDE_LIMIT_BYTES)
        divisions.guard_file(path)
        return doubts
    raise _failure(failures)


def _converted(  # noqa: PLR0913  as write_onnx
    model: nn.Module,
    traced: dict[str, torch.Tensor],
    layout: Layout,
    outputs: tuple[str, ...],
    *,
    opset: int,
    strict: bool,
) -> tuple[torch.onnx.ONNXProgram, list[Doubt]]:
    """The model as an ONNX program that is valid within the bounds, and sizes left to compare.

    torch.onnx.export gets a traced program: tracing by itself it uses other bounds than those
    given, and drops assertions.

    Raises:
        ModelError: Guards exclude sizes that the bounds allow.
    """
    with (
        _exporting,
        _quiet(),
        torch.no_grad(),
        attention.plain(),
        operators.of_variable_size(),
        guards.recorded() as found,
    ):
        try:
            program = _program(model, traced, layout, strict=strict)
        except torch._dynamo.exc.UserError:  # the guards tell more than its constraints
            guards.check(found, list(traced), layout, few=0)
            raise
        guards.check(found, list(traced), layout)
        try:
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                input_names=list(traced),
                output_names=list(outputs),
                dynamic_shapes={"tensors": _dimensions(traced, layout)},  # for the axes' names
                opset_version=opset,
                custom_translation_table=operators.TRANSLATIONS,
            )
        except Exception as error:  # torch's exporter raises errors of many unrelated types
            guards.check(found, list(traced), layout)
            raise NotConvertedError(_not_exportable(error)) from error
        if converted is None or converted.exported_program is None:
            raise NotConvertedError("torch.onnx.export must return a program, got None.")
        floats = size_floats.of_floats(converted.exported_program.graph)
        guards.check(floats, list(traced), layout, few=0)
        return converted, guards.check(found, list(traced), layout)


def _program(
    model: nn.Module, traced: dict[str, torch.Tensor], layout: Layout, *, strict: bool
) -> torch.export.ExportedProgram:
    """The traced model.

    Sizes of 0 and 1 are not specialized, and guards become assertions, which `guards` checks.
    """
    with (
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        nullcontext() if strict else operators.Traceable(),
    ):
        return torch.export.export(
            _Flat(model, tuple(traced)),
            tuple(traced.values()),
            dynamic_shapes={"tensors": _dimensions(traced, layout)},
            strict=strict,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _failure(failures: list[Exception]) -> ModelError:
    """The error to raise: one about a guard, else torch's error of the plain trace."""
    ours = [error for error in failures if isinstance(error, ModelError)]
    if ours:
        return next((error for error in ours if not isinstance(error, OpsetError)), ours[0])
    failure = ModelError(_not_exportable(failures[0]))
    failure.__cause__ = failures[0]
    return failure


def _not_exportable(error: BaseException) -> str:
    return (
        f"the model must be exportable, got: {_reason(error)}. "
        "Change forward there; --debug shows torch's full account."
    )


class _Flat(nn.Module):
    """Wraps a model to take tensors by position and return a flat tuple of tensors."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(tensor for _, tensor in named_tensors(result))


def _traced_inputs(examples: Arrays, layout: Layout) -> dict[str, torch.Tensor]:
    """A few rows; no variable axis has size 1, which torch.export would treat as constant."""
    traced = {}
    for name, array in examples.items():
        for index, axis in layout.axes.get(name, {}).items():
            size = TRACED_ROWS if axis == BATCH else max(2, array.shape[index])
            size = allowed(layout, axis, size)
            array = np.take(array, np.arange(size) % array.shape[index], axis=index)  # noqa: PLW2901  one array, axis by axis
        traced[name] = torch.from_numpy(np.asarray(array, order="C"))  # keeps scalars
    return traced


def _dimensions(
    traced: Mapping[str, torch.Tensor], layout: Layout
) -> tuple[dict[int, torch.export.Dim], ...]:
    ranges = {
        axis: layout.bounds.get(axis, (1, None))
        for of in layout.axes.values()
        for axis in of.values()
    }
    dims = {
        axis: torch.export.Dim(axis, min=low, max=high)
        for axis, (low, high) in ranges.items()
        if low != high
    }
    return tuple(
        {i: dims[axis] for i, axis in layout.axes.get(name, {}).items() if axis in dims}
        for name in traced
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's output, but not a progress bar."""
    with (
        console.muted(logging.CRITICAL),
        warnings.catch_warnings(),
        redirect_stderr(_Muted()),
    ):
        warnings.simplefilter("ignore")
        yield


class _Muted(io.StringIO):
    """Discards prints; Rich, which looks for this attribute, still writes to the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.rich_proxied_file = getattr(sys.stderr, "rich_proxied_file", sys.stderr)


def _reason(error: BaseException) -> str:
    """The root cause in one line, and the line of user code that raised it."""
    chain = [error]
    while (inner := chain[-1].__cause__) is not None:
        chain.append(inner)
    text = str(chain[-1]).strip()
    fixes = re.search(r"Suggested fixes:\s*(.+?)(?:The error above|$)", text, re.DOTALL)
    reason = first_line(chain[-1])
    if "data-dependent" in reason:
        reason = "a branch on a tensor's value, which a graph cannot hold"
    if "missing val field" in reason:  # torch's own fault: its decomposition loses sizes
        reason = "an LSTM that nn.RNN follows; use nn.GRU in place of nn.RNN"
    if fixes:
        reason = f"{reason}; torch suggests {' '.join(fixes[1].split())}"
    place = _place(chain, text)
    return f"{reason[:REASON_LIMIT]}{f' (in {place})' if place else ''}"


def _place(chain: list[BaseException], text: str) -> str:
    """The innermost line outside of torch's and Python's files."""
    frames = [
        (frame.filename, frame.lineno)
        for link in chain
        for frame in traceback.extract_tb(link.__traceback__)
    ]
    frames += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    own = [frame for frame in frames if guards.is_own(frame[0])]
    return f"{Path(own[-1][0]).name}, line {own[-1][1]}" if own else ""
