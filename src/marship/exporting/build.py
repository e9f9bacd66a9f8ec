"""Builds the PyTorch model to export, by calling the user's function."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship import console
from marship.errors import MarshipError, UsageError
from marship.exporting import programs
from marship.fit.recipe import resolve

if TYPE_CHECKING:  # torch takes a second to import, and --help does not need it
    from torch import nn


def built(
    build: Callable[..., Any],
    reference: str,
    given: Mapping[str, Any],
    weights: Path | None,
    weights_key: str | None = None,
) -> "nn.Module":
    """The model in eval mode on the CPU, with its weights.

    Args:
        build: The function, called with those of `given` that it accepts.
        reference: The function's reference, for messages.
        given: Settings by name.
        weights: A state dict file; None if `build` loads the weights itself.
        weights_key: Which weights to take of a file with several.

    Raises:
        UsageError: It fails, or does not return an nn.Module in Python.
        CheckpointError: The weights do not match the model.
    """
    import torch
    from torch import nn

    from marship.fit.checkpoint import load_weights

    parameters = inspect.signature(build).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    try:
        model = build(**{k: v for k, v in given.items() if takes_any or k in parameters})
    except MarshipError:
        raise
    except Exception as error:  # user code: it may raise anything
        raise UsageError(
            f"{reference} must build the model, got {type(error).__name__}: {error}."
        ) from error
    model = getattr(model, "_orig_mod", model)  # unwrap torch.compile
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"{reference} must return an nn.Module, got {type(model).__name__}. "
            "Return the model in Python: neither traced nor scripted. TorchScript is exported from "
            "its file: marship export model.pt --example example.npz --trust-code"
        )
    if weights is not None and (taken := load_weights(weights, model, weights_key)):
        console.out.print(taken, markup=False, soft_wrap=True)
    try:
        return model.cpu().eval()
    except NotImplementedError as error:  # torch.export's modules have no modes
        raise UsageError(
            f"{reference} must return an nn.Module, got a program of torch.export. Save it with "
            "torch.export.save, and export its file: marship export model.pt2 --example "
            "example.npz --trust-code"
        ) from error


def resolved(reference: str) -> Callable[..., Any]:
    """The function of a reference, or one that opens a model's file; reports any error of a module.

    Raises:
        UsageError: It does not load.
    """
    if Path(reference).is_file():
        return partial(programs.opened, Path(reference))
    try:
        return resolve(reference)
    except MarshipError:
        raise
    except Exception as error:  # user code may raise anything at import
        raise UsageError(f"{reference} must load, got {type(error).__name__}: {error}.") from error
