"""The model that README and docs export as the reader's own: a module, its weights, an example."""

from pathlib import Path

import numpy as np
import torch

SOURCE = """
from torch import nn


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1)

    def forward(self, input):
        return self.scale(input.mean(1, keepdim=True))


def build():
    return Mean()
"""


def write_own_model(folder: Path) -> None:
    """Write my_package/my_module.py, model.pt and example.npz: the mean of a row."""
    (folder / "my_package").mkdir()
    (folder / "my_package" / "my_module.py").write_text(SOURCE)
    weights = {"scale.weight": torch.ones(1, 1), "scale.bias": torch.zeros(1)}
    torch.save(weights, folder / "model.pt")
    np.savez(folder / "example.npz", input=np.random.default_rng(0).random((8, 5), np.float32))
