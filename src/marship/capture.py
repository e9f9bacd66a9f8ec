"""A PyTorch model as an ONNX file: its names, its variable axes, the conversion."""

import inspect
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from marship.comparison import Run
from marship.contract import Arrays
from marship.errors import DataError, ModelError, UsageError
from marship.layout import BATCH, Layout
from marship.parity import first_line

WEIGHTS_INSIDE_LIMIT_BYTES = 2**31 - 2**24
"""protobuf's limit for one message is 2 GB; what is not weights needs some of it."""

TRACED_ROWS = 3
REASON_LIMIT = 400


def input_order(model: nn.Module, examples: Arrays) -> list[str]:
    """The names of the example's arrays in the order of forward's parameters.

    Raises:
        DataError: The example lacks an input that forward needs, or has one it does not take.
        UsageError: forward takes its inputs without names.
    """
    parameters = inspect.signature(model.forward).parameters
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
    return [name for name in named if name in examples]


def output_names(model: nn.Module, examples: Arrays, given: tuple[str, ...]) -> tuple[str, ...]:
    """The names that the outputs shall have: those given, or the model's own.

    Raises:
        ModelError: The model does not run on the examples, or gives no tensors.
        UsageError: The number of names given is not that of the outputs.
    """
    own = [name for name, _ in _call(model, {k: torch.from_numpy(v) for k, v in examples.items()})]
    if not own:
        raise ModelError("forward must return tensors, got none. Return the outputs to serve.")
    if given and len(given) != len(own):
        raise UsageError(
            f"output names must be {len(own)}, one for each of {', '.join(own)}, got {len(given)}."
        )
    return given or tuple(f"{name}_out" if name in examples else name for name in own)


def torch_run(model: nn.Module, names: tuple[str, ...]) -> Run:
    """Run a PyTorch model on arrays by the names of forward's parameters.

    Args:
        model: In eval mode.
        names: The outputs' names, as `output_names` gave them.

    Raises:
        ModelError: When called: forward raises.
    """

    def run(inputs: Arrays) -> Arrays:
        found = _call(model, {k: torch.from_numpy(array.copy()) for k, array in inputs.items()})
        return {name: tensor.numpy() for name, (_, tensor) in zip(names, found, strict=True)}

    return run


def _call(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    try:
        with torch.no_grad(), _plain_attention():
            return _named_tensors(model(**inputs))
    except Exception as error:  # forward is the reader's code: it may raise anything
        shapes = ", ".join(f"{k} {str(v.dtype)[6:]}{list(v.shape)}" for k, v in inputs.items())
        raise ModelError(
            f"the model must run on {shapes}, got: {_reason(error)}. "
            "Correct the example, narrow the bounds of its variable axes, or state --fixed-batch."
        ) from error


def write_onnx(  # noqa: PLR0913  they are what a graph consists of
    model: nn.Module,
    examples: Arrays,
    path: Path,
    *,
    layout: Layout,
    outputs: tuple[str, ...],
    opset: int,
) -> None:
    """Convert a model with torch.onnx.export (dynamo) and write it.

    Args:
        model: In eval mode.
        examples: By input name, in the order that the graph should have.
        path: The ONNX file; weights lie inside it, or above 2 GB in one file beside it.
        layout: The variable axes.
        outputs: The outputs' names.
        opset: Version of the default ONNX operator set.

    Raises:
        ModelError: The model cannot be converted; the message names cause and place.
    """
    traced = _traced_inputs(examples, layout)
    _call(model, traced)  # a batch it does not take is told more clearly here than by torch.export
    weights_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    for operator in (torch.ops.aten.gru.input, torch.ops.aten.lstm.input):
        # a conversion leaves its own decomposition here, which makes the next one's length fixed
        operator._dispatch_cache.clear()
    try:
        with _quiet(), torch.no_grad(), _plain_attention():
            program = torch.onnx.export(
                _Flat(model, tuple(traced)),
                tuple(traced.values()),
                dynamo=True,
                verbose=False,
                input_names=list(traced),
                output_names=list(outputs),
                dynamic_shapes={"tensors": _dimensions(traced, layout)},
                opset_version=opset,
            )
            if program is None:
                raise ModelError("torch.onnx.export must give a program, got none.")
            program.save(path, external_data=weights_bytes > WEIGHTS_INSIDE_LIMIT_BYTES)
    except OSError:
        raise
    except Exception as error:  # torch's exporter raises errors of many unrelated types
        raise ModelError(
            f"the model must be exportable, got: {_reason(error)}. "
            "Change forward there; --debug shows torch's full account."
        ) from error


def state_output_shapes(path: Path, answers: list[tuple[Mapping[str, int], Arrays]]) -> None:
    """Correct the outputs' shapes in the graph where a run shows other ones.

    torch.export takes the length of a recurrent layer's output for a constant, although the
    operator itself does not.

    Args:
        path: The ONNX file, changed in place.
        answers: For several sizes of the variable axes, the model's outputs.
    """
    graph = onnx.load(str(path), load_external_data=False)
    wrong = False
    for value in graph.graph.output:
        for index, axis in enumerate(value.type.tensor_type.shape.dim):
            given = [arrays[value.name].shape[index] for _, arrays in answers]
            if not axis.HasField("dim_value") or set(given) == {axis.dim_value}:
                continue
            wrong = True
            names = [n for n in answers[0][0] if given == [sizes[n] for sizes, _ in answers]]
            axis.dim_param = names[0] if names else f"{value.name}_{index}"
    if wrong:
        del graph.graph.value_info[:]  # what was inferred from the wrong constant
        onnx.save(graph, str(path))


def name_output_axes(path: Path, names: tuple[str, ...]) -> None:
    """Give axes of outputs names of their own, in place of how they follow from the inputs'.

    Args:
        path: The ONNX file, changed in place.
        names: As `Recipe.output_axes`.

    Raises:
        UsageError: A name is for no output's variable axis.
    """
    if not names:
        return
    graph = onnx.load(str(path), load_external_data=False)
    axes = {
        f"{value.name}:{index}": axis
        for value in graph.graph.output
        for index, axis in enumerate(value.type.tensor_type.shape.dim)
        if not axis.HasField("dim_value")
    }
    for text in names:
        place, _, name = text.rpartition("=")
        if place not in axes:
            raise UsageError(
                f"output_axes must name variable axes, {' or '.join(axes)}, got {place!r}. "
                "Correct the recipe."
            )
        axes[place].dim_param = name
    onnx.save(graph, str(path))


class _Flat(nn.Module):
    """A model that takes its tensors by position and gives a flat tuple of tensors."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(tensor for _, tensor in _named_tensors(answer))


def _named_tensors(answer: Any) -> list[tuple[str, torch.Tensor]]:  # noqa: ANN401  any nesting
    """The tensors in what forward gave: a dict's keys, a tuple's indices, or "output"."""
    leaves, _ = pytree.tree_flatten_with_path(answer)
    return [
        (_path_name(path), leaf.detach()) for path, leaf in leaves if isinstance(leaf, torch.Tensor)
    ]


def _path_name(path: tuple[Any, ...]) -> str:
    words = []
    for key in path:
        if isinstance(key, pytree.MappingKey):
            words.append(str(key.key))
        elif isinstance(key, pytree.GetAttrKey):
            words.append(str(key.name))
        else:
            words.append(str(key.idx))
    name = "_".join(words)
    return f"output_{name}" if name[:1].isdigit() else name or "output"


def _traced_inputs(examples: Arrays, layout: Layout) -> dict[str, torch.Tensor]:
    """A few rows; no variable axis has size 1, which torch.export would take for a constant."""
    traced = {}
    for name, array in examples.items():
        for index, axis in layout.axes.get(name, {}).items():
            size = TRACED_ROWS if axis == BATCH else max(2, array.shape[index])
            low, high = layout.bounds.get(axis, (1, None))
            size = max(low, min(size, high or size))
            array = np.take(array, np.arange(size) % array.shape[index], axis=index)  # noqa: PLW2901  one array, axis by axis
        traced[name] = torch.from_numpy(np.ascontiguousarray(array))
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


def _stated_causality(
    mask: torch.Tensor | None,  # noqa: ARG001  the replaced function's signature
    is_causal: bool | None = None,
    size: int | None = None,  # noqa: ARG001  the same
) -> bool:
    return bool(is_causal)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let nn.Transformer's modules take their plain path, the only one that exports.

    Their fused inference path gives zeros at padded positions, unlike the plain path, and
    their search for a causal mask branches on the mask's values; the mask itself is applied
    either way.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    detect = transformer._detect_is_causal_mask  # it has no public switch
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = _stated_causality
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        transformer._detect_is_causal_mask = detect


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's account of its own workings from the reader; a progress bar goes on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(_Muted()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Muted(io.StringIO):
    """Swallows what is printed; Rich, which looks for this attribute, still writes through."""

    def __init__(self) -> None:
        super().__init__()
        self.rich_proxied_file = getattr(sys.stderr, "rich_proxied_file", sys.stderr)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line, and the place in the reader's code where it arose."""
    chain = [error]
    while (inner := chain[-1].__cause__) is not None:
        chain.append(inner)
    text = str(chain[-1]).strip()
    fixes = re.search(r"Suggested fixes:\s*(.+)", text, re.DOTALL)
    reason = first_line(chain[-1])
    if "data-dependent" in reason:
        reason = "a branch on a tensor's value, which a graph cannot hold"
    if fixes:
        reason = f"{reason}; torch suggests {' '.join(fixes[1].split())}"
    place = _place(chain, text)
    return f"{reason[:REASON_LIMIT]}{f' (in {place})' if place else ''}"


def _place(chain: list[BaseException], text: str) -> str:
    """The last line outside of torch's and Python's own files."""
    frames = [
        (frame.filename, frame.lineno)
        for link in chain
        for frame in traceback.extract_tb(link.__traceback__)
    ]
    frames += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    not_own = ("site-packages", "/lib/python", str(Path(__file__).parent), "<")
    own = [frame for frame in frames if not any(part in frame[0] for part in not_own)]
    return f"{Path(own[-1][0]).name}, line {own[-1][1]}" if own else ""
