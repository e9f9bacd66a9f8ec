"""Checkpoints: whole or refused."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from marship.errors import CheckpointError
from marship.fit import checkpoint


def content(model: nn.Module) -> dict[str, Any]:
    """The least that a checkpoint holds."""
    return {"weights": model.state_dict(), "run": {}, "settings": {}, "data": "digest"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a linear layer."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, content(nn.Linear(3, 2)))
    return path


def refused(path: Path, model: nn.Module | None = None) -> str:
    """The message with which a file is refused, which is one line and names the file."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(path, model or nn.Linear(3, 2))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_random_states_come_back() -> None:
    """After a restore, Python, NumPy and PyTorch draw what they drew after the save."""
    states = checkpoint.random_states()
    first = random.random(), np.random.random(), torch.rand(3)  # noqa: NPY002, S311  the global ones
    checkpoint.restore_random_states(states)
    again = random.random(), np.random.random(), torch.rand(3)  # noqa: NPY002, S311  the global ones
    assert first[:2] == again[:2]
    assert torch.equal(first[2], again[2])


def test_random_states_survive_the_file(tmp_path: Path) -> None:
    """States read back from a file with weights_only=True restore the same draws."""
    states = checkpoint.random_states()
    first = np.random.random(5), torch.rand(5)  # noqa: NPY002  the global one
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {**content(nn.Linear(1, 1)), "run": {"random": states}})
    checkpoint.restore_random_states(checkpoint.load(path)["run"]["random"])
    assert np.array_equal(first[0], np.random.random(5))  # noqa: NPY002  the global one
    assert torch.equal(first[1], torch.rand(5))


@pytest.mark.parametrize("kind", ["checkpoint", "state dict", "safetensors"])
def test_weights_load_from_every_form(tmp_path: Path, kind: str) -> None:
    """A checkpoint, a plain state dict and a safetensors file give a model the same weights."""
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / {"safetensors": "model.safetensors"}.get(kind, "model.pt")
    if kind == "checkpoint":
        checkpoint.save(path, content(model))
    elif kind == "state dict":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    checkpoint.load_weights(path, other)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path without a file is refused as such."""
    assert "no such file" in refused(tmp_path / "none.pt")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_cut_file_is_refused(saved: Path, keep: float) -> None:
    """A checkpoint that ends early, anywhere, is refused."""
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    refused(saved)


def test_one_wrong_bit_in_a_weight_is_refused(tmp_path: Path) -> None:
    """A flipped bit inside the numbers, which torch.load does not notice, is refused."""
    path, model = tmp_path / "model.pt", nn.Linear(100, 100)
    checkpoint.save(path, content(model))
    whole = bytearray(path.read_bytes())
    place = whole.index(model.weight.detach().numpy().tobytes()[:64])
    whole[place + 10] ^= 1
    path.write_bytes(whole)
    assert "checksum" in refused(path, nn.Linear(100, 100))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """A pickle that would call a function is refused, and the function is not called."""
    trace = tmp_path / "trace"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trace),)

    plain, torched = tmp_path / "plain.pt", tmp_path / "torched.pt"
    plain.write_bytes(pickle.dumps(Trap()))
    torch.save({"weight": Trap()}, torched)
    refused(plain)
    refused(torched)
    assert not trace.exists()


def test_another_models_weights_are_refused(saved: Path) -> None:
    """Weights of other shapes or names are refused with the first of them named."""
    assert "weight" in refused(saved, nn.Linear(4, 2))
    assert "weight_ih_l0" in refused(saved, nn.LSTM(3, 2))


def test_other_tensors_are_no_checkpoint(tmp_path: Path) -> None:
    """A state dict is no run that could be continued, and a list is no weights at all."""
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match="must be a checkpoint"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    assert "state dict" in refused(path)


def test_a_failed_save_leaves_the_old_file(saved: Path) -> None:
    """A save that fails half-way leaves the older checkpoint, and nothing beside it."""
    before = saved.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(saved, {**content(nn.Linear(3, 2)), "run": {"bad": lambda: None}})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
