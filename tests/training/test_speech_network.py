"""The network that spells: padding changes nothing, and nothing is seen from afar."""

import sys
from types import ModuleType

import pytest
import torch

from marship.fit.recipe import resolve
from recipes import REPOSITORY


@pytest.fixture(scope="module")
def speech_network() -> ModuleType:
    """training/speech_network.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/speech_network.py:inside")).__module__]


@pytest.fixture
def network(speech_network: ModuleType) -> torch.nn.Module:
    """A small network."""
    torch.manual_seed(1)
    found: torch.nn.Module = speech_network.SpeechNetwork(16, 24, 3, 5, 0.1).eval()
    return found


@torch.no_grad()
def test_padding_changes_nothing(network: torch.nn.Module) -> None:
    """A row's frames are the same alone as beside longer ones, whatever the padding holds."""
    mel = torch.randn(3, 16, 41)
    lengths = torch.tensor([41, 17, 1])
    together, frames = network(mel, lengths)
    assert frames.tolist() == [21, 9, 1]
    for row, length in enumerate(lengths.tolist()):
        alone, count = network(mel[row : row + 1, :, :length], lengths[row : row + 1])
        assert count.tolist() == [frames[row]]
        torch.testing.assert_close(together[row, : count[0]], alone[0], rtol=1e-5, atol=1e-5)
    padding = together[1, frames[1] :]
    torch.testing.assert_close(padding, padding[:1].expand_as(padding))


@torch.no_grad()
def test_it_gives_log_probabilities(network: torch.nn.Module) -> None:
    """Every frame's probabilities sum to one."""
    log_probs, _ = network(torch.randn(2, 16, 20), torch.tensor([20, 20]))
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(2, 10))


@torch.no_grad()
def test_it_sees_no_further_than_it_says(network: torch.nn.Module) -> None:
    """With three blocks of nine frames, what is 30 frames away changes nothing."""
    mel, frames = torch.randn(1, 16, 200), torch.tensor([200])
    other = mel.clone()
    other[:, :, 100:] = 0
    before, after = network(mel, frames)[0], network(other, frames)[0]
    torch.testing.assert_close(before[:, :36], after[:, :36], rtol=1e-5, atol=1e-5)
    assert (before[:, 45:50] - after[:, 45:50]).abs().max() > 1e-3
