"""Models that benchmarks/private.py and its kin measure, trained here in seconds.

scikit-learn's digits, split by a fixed seed: an MLP 64-64-10 on 8 x 8 pixels, and a CNN on the same
pictures drawn at 28 x 28. Each with squares or with ReLU. Figures of accuracy come from recipes;
these only have to be models of that size.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

Arrays = tuple[np.ndarray, np.ndarray]
SIDE = 28


class Square(nn.Module):
    """The activation that can be encrypted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply each value with itself."""
        return x * x


def mlp(activation: type[nn.Module] = Square) -> nn.Module:
    """64-64-10."""
    layers = nn.Linear(64, 64), nn.BatchNorm1d(64), activation(), nn.Linear(64, 10)
    return nn.Sequential(*layers).eval()


def cnn(activation: type[nn.Module] = Square) -> nn.Module:
    """5 kernels of 5 x 5 with stride 2 on 28 x 28, 100, 10."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 5, 2, 1),
        nn.BatchNorm2d(5),
        activation(),
        nn.Flatten(),
        nn.Linear(845, 100),
        nn.BatchNorm1d(100),
        activation(),
        nn.Linear(100, 10),
    ).eval()


def mlp_relu() -> nn.Module:
    """The MLP with ReLU."""
    return mlp(nn.ReLU)


def cnn_relu() -> nn.Module:
    """The CNN with ReLU."""
    return cnn(nn.ReLU)


BUILDERS = {"mlp": mlp, "cnn": cnn, "mlp_relu": mlp_relu, "cnn_relu": cnn_relu}


def data(name: str) -> tuple[Arrays, Arrays]:
    """Training and test data of a model: float32 rows from 0 to 1, and labels."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    if name.startswith("cnn"):
        pictures = torch.from_numpy(x.reshape(-1, 1, 8, 8))
        x = functional.interpolate(pictures, (SIDE, SIDE), mode="bilinear").numpy()
    seen, held, labels, held_labels = train_test_split(
        x, y, test_size=0.3, random_state=0, stratify=y
    )
    return (seen, labels), (held, held_labels)


def write(name: str, folder: Path, epochs: int = 30) -> None:
    """Train a model, and write NAME.pt and NAME.npz: weights, and 64 rows as examples."""
    torch.manual_seed(0)
    (x, y), (held, _) = data(name)
    net = BUILDERS[name]().train()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(64):
            loss = functional.cross_entropy(net(rows[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    torch.save(net.eval().state_dict(), folder / f"{name}.pt")
    np.savez(folder / f"{name}.npz", input=held[:64])
