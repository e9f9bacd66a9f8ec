"""What TorchServe's message handler gets in place of PyTorch until somebody imports that."""

import sys
from types import ModuleType

import pytest

from marship.engines.torchserve import worker_script


class Tensor:
    """PyTorch's."""


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that can be imported as PyTorch; it is not imported yet."""
    real = ModuleType("torch")
    real.Tensor = Tensor  # type: ignore[attr-defined]
    real.save = print  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(
        worker_script, "import_module", lambda name: sys.modules.setdefault(name, real)
    )
    return real


def test_until_torch_is_imported_nothing_is_a_tensor(torch: ModuleType) -> None:
    """Asking for the type imports nothing; afterwards it is PyTorch's."""
    stand_in = worker_script._Torch("torch")
    assert not isinstance([1.0], stand_in.Tensor)
    assert "torch" not in sys.modules
    sys.modules["torch"] = torch
    assert stand_in.Tensor is Tensor


def test_whatever_else_is_asked_for_is_torchs(torch: ModuleType) -> None:
    """It is imported then."""
    assert worker_script._Torch("torch").save is print
    assert sys.modules["torch"] is torch


def test_a_torchserve_that_uses_it_at_once_gets_the_real_one(torch: ModuleType) -> None:
    """As `from torch import Tensor` would while the message handler is imported."""
    sys.modules["torch"] = stand_in = worker_script._Torch("torch")
    assert stand_in.Tensor is Tensor
    assert sys.modules["torch"] is torch
