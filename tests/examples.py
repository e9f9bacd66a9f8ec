"""The examples in the docstrings of marship's public names."""

import asyncio
import doctest

import numpy as np

import marship

NEED_A_SERVER = {"AsyncClient", "Client", "Model", "ModelStatus"}
MODEL = """\
import torch


def build():
    layer = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).reshape(3, 2).T)
    return Tiny(layer)


class Tiny(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)
"""


def write_files() -> None:
    """What the examples name, in the current folder."""
    with open("model.py", "w") as file:  # noqa: PTH123
        file.write(MODEL)
    np.savez("example.npz", x=np.ones((2, 3), np.float32))
    with open("request.json", "w") as file:  # noqa: PTH123
        file.write("[[1, 2, 3]]")


def run(name: str) -> int:
    """Run the examples of a name; they must be right, and are counted."""
    value = getattr(marship, name)
    finder = doctest.DocTestFinder(recurse=False)
    (found,) = finder.find(value, name, globs={"marship": marship, "asyncio": asyncio})
    done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found)
    assert not done.failed, name
    return done.attempted
