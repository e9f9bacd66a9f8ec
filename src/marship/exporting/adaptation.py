"""Changes without which a model's file could not be served: bfloat16, and squeeze() of one row."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from marship.contract import Arrays
from marship.errors import ModelError
from marship.exporting.capture import call
from marship.exporting.modules import Adapted, InFloat32, Inputs, KeptRows, Script

Results = dict[str, torch.Tensor]
Named = Sequence[tuple[str, torch.Tensor]]


def adapted(model: nn.Module, examples: Arrays, *, has_batch: bool) -> tuple[nn.Module, list[str]]:
    """The model to export, and a line on each change to it.

    Args:
        model: In eval mode; its weights may be converted in place.
        examples: Inputs by name.
        has_batch: Whether their first axis is a batch of variable size.

    Raises:
        ModelError: The model fails on the examples.
    """
    if isinstance(model, Script):  # no function of Python's can be replaced in it
        return model, []
    inputs = {name: torch.from_numpy(array) for name, array in examples.items()}
    lines = []
    model, line = _in_float32(model, inputs)
    lines += [line] if line else []
    if has_batch:
        model, line = _with_kept_rows(model, examples)
        lines += [line] if line else []
    return model, lines


def _in_float32(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, str | None]:
    """The model in float32 where it has or computes bfloat16."""
    has_weights = any(
        tensor.dtype is torch.bfloat16 for tensor in (*model.parameters(), *model.buffers())
    )
    if not has_weights:
        probe = InFloat32()
        with probe:
            call(model, dict(inputs))
        if not probe.has_replaced:
            return model, None
    try:
        before = call(model, dict(inputs))
    except ModelError:
        if not has_weights:
            raise
        before = call(model, {name: _narrow(value) for name, value in inputs.items()})
    wide = Adapted(model.float(), InFloat32)
    after = call(wide, dict(inputs))
    gap = _gap(before, after)
    return wide, f"bfloat16 is computed in float32, which holds all its values; {gap}"


def _gap(before: Named, after: Named) -> str:
    """How far outputs are from those in bfloat16, in words."""
    floats, others = [], []
    for (name, one), (_, other) in zip(before, after, strict=True):
        if one.is_floating_point():
            apart = (one.double() - other.double()).abs().masked_fill(one == other, 0.0)
            floats += [apart.max().item()] if one.numel() else []
        elif one.numel():
            share = (one != other).double().mean().item()
            others += [f"{share:.2g} of the values of {name}"] if share else []
    said = [f"outputs differ from those in bfloat16 by {max(floats):.2g} at most"] if floats else []
    said += [f"{' and '.join(others)} are others than in bfloat16"] if others else []
    return ", and ".join(said) or "the example's outputs are the same as in bfloat16"


def _narrow(value: torch.Tensor) -> torch.Tensor:
    return value.bfloat16() if value.is_floating_point() else value


def _with_kept_rows(model: nn.Module, examples: Arrays) -> tuple[nn.Module, str | None]:
    """The model with a `squeeze()` that keeps the batch, if that is all that it changes."""
    kept = Adapted(model, KeptRows)
    try:
        one, two = (_results(model, examples, rows) for rows in (1, 2))
        if all(one[name].ndim == two[name].ndim for name in two):
            return model, None
        kept_one, kept_two = (_results(kept, examples, rows) for rows in (1, 2))
    except (ModelError, KeyError):  # reported where the model is compared
        return model, None
    same = all(
        torch.equal(kept_two[name], two[name])
        and kept_one[name].ndim == two[name].ndim
        and torch.equal(kept_one[name].flatten(), one[name].flatten())
        for name in two
    )
    if not same:
        return model, None
    return kept, "squeeze() keeps the batch: PyTorch's own drops it where it has one row"


def _results(model: nn.Module, examples: Arrays, rows: int) -> Results:
    chosen = {
        name: torch.from_numpy(
            np.take(array, np.arange(rows) % len(array), axis=0) if array.ndim else array
        )
        for name, array in examples.items()
    }
    return dict(call(model, chosen))
