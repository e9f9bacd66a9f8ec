"""Checkpoints: the state to resume a run from, and the weights for later steps.

A checkpoint is one file, written atomically and read with `weights_only=True`: it holds tensors,
numbers, strings and lists, and never code. Its keys:

    format      the version of this list
    weights     the model's state dict that is exported: best on validation, else the last
    run         what training needs to continue: see `marship.fit.loop`
    settings    the resolved settings of the run
    data        the digest of the data
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from marship.errors import CheckpointError
from marship.fit import torchfile, weights
from marship.storage import replacing

FORMAT = 1
_KEYS = {"format", "weights", "run", "settings", "data"}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written to.
    """
    # through a file object: given a path, torch reports a full disk without a reason
    with replacing(path) as draft, draft.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: The file is missing, corrupted, or not a checkpoint of marship.
    """
    content = torchfile.read_weights(path)
    if not isinstance(content, dict) or set(content) != _KEYS:
        raise CheckpointError(
            f"{path} must be a checkpoint that marship wrote, got another file of PyTorch's. "
            "Train again, or give the right file."
        )
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} must have checkpoint format {FORMAT}, got {content['format']}. Train again."
        )
    return content


def load_weights(path: Path, model: nn.Module, key: str | None = None) -> str | None:
    """Load weights into `model`, in place.

    Args:
        path: A checkpoint of marship, weights of `torch.save` or `.safetensors`, the index of
            their shards, or a folder that holds one of these; see `marship.fit.weights` for the
            forms that are understood.
        model: The model; all names and shapes must match.
        key: Which weights to take of a file with several that fit.

    Returns:
        What was taken, in one line, if it was not the whole file by its own names.

    Raises:
        CheckpointError: The file is missing or corrupted, or belongs to another model.
    """
    content = torchfile.read_weights(path)
    if isinstance(content, dict) and set(content) == _KEYS:
        content = content["weights"]
    fit = weights.chosen(content, model, path, key)
    if fit.mistyped or fit.not_numbers:  # PyTorch would convert them, or load them as they are
        raise CheckpointError(
            f"{path} must hold numbers of this {type(model).__name__}'s types, got {fit.faults()}. "
            "Give the weights in float, before they were quantized or went out of range."
        )
    try:
        model.load_state_dict({**fit.tensors, **fit.rest})  # it may know names of older versions
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise CheckpointError(
            f"{path} must hold the weights of this {type(model).__name__}, "
            f"got {fit.faults() or reason}. Build the model with the settings it was trained with."
        ) from error
    return fit.remark()


def random_states() -> dict[str, Any]:
    """The states of this process's random number generators: Python, NumPy, PyTorch, each GPU."""
    python = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  the global one is what users draw from
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy": {
            **numpy,
            "state": {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]},
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the generators' states from `random_states`."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = states["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002  see above
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
