"""Builds the PyTorch model to export, by calling the user's function."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship.errors import MarshipError, UsageError
from marship.fit.recipe import resolve

if TYPE_CHECKING:  # torch takes a second to import, and --help does not need it
    from torch import nn


def built(
    build: Callable[..., Any], reference: str, given: Mapping[str, Any], weights: Path | None
) -> "nn.Module":
    """The model in eval mode on the CPU, with its weights.

    Args:
        build: The function, called with those of `given` that it accepts.
        reference: The function's reference, for messages.
        given: Settings by name.
        weights: A state dict file; None if `build` loads the weights itself.

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
            "Return the model in Python: neither traced nor scripted."
        )
    if weights is not None:
        load_weights(weights, model)
    return model.cpu().eval()


def resolved(reference: str) -> Callable[..., Any]:
    """The function of a reference; any error of its module is reported.

    Raises:
        UsageError: It does not load.
    """
    try:
        return resolve(reference)
    except MarshipError:
        raise
    except Exception as error:  # user code may raise anything at import
        raise UsageError(f"{reference} must load, got {type(error).__name__}: {error}.") from error
