"""Near copies: pictures that differ by size, compression, brightness or a mirror alone.

They are found by the correlation of coarse grey pictures, 8 x 8. How alike two pictures must be to
be copies depends on the data: small simple pictures, such as digits, are alike without being
copies. So a copy must be far nearer than the neighbours of a typical picture.
"""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional

from marship.contract import Array

COARSE = 8
"""Height and width of the pictures that are compared."""
FARTHEST = 0.03
"""Largest distance of two copies, 1 - correlation."""
NEARER = 0.1
"""A copy is at most this share of a typical neighbour's distance away."""
NEIGHBOUR = 10
"""Which neighbour counts: in data with copies of most pictures the first ones are copies."""
TYPICAL = 2000
"""Pictures whose neighbours are looked for, to know a typical distance."""
LUMA = torch.tensor((0.299, 0.587, 0.114))
"""Brightness of red, green and blue (ITU-R BT.601), as in grey copies."""
BATCH = 512


def coarse(pixels: Array) -> torch.Tensor:
    """uint8 (pictures, side, side, 3) to float32 (pictures, 64) of mean 0 and length 1.

    Pictures of one colour give zeros, which are like nothing.
    """
    parts = []
    for start in range(0, len(pixels), BATCH):
        grey = torch.from_numpy(pixels[start : start + BATCH]).float() @ LUMA
        small = functional.adaptive_avg_pool2d(grey[:, None], COARSE).flatten(1)
        centred = small - small.mean(1, keepdim=True)
        parts.append(centred / centred.norm(dim=1, keepdim=True).clamp(min=1))
    return torch.cat(parts)


def mirrored(rows: torch.Tensor) -> torch.Tensor:
    """The coarse pictures, left to right."""
    return rows.view(-1, COARSE, COARSE).flip(2).flatten(1)


def distances(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """1 - correlation of each with each, or with its mirror image if that is nearer."""
    return 1 - torch.maximum(some @ others.T, mirrored(some) @ others.T)


def limit(rows: torch.Tensor, seed: int) -> float:
    """The distance below which two of these pictures are copies."""
    typical = np.random.default_rng(seed).permutation(len(rows))[:TYPICAL]
    place = min(NEIGHBOUR + 1, len(rows))  # each picture is its own first neighbour
    neighbours = [
        distances(rows[typical[start : start + BATCH]], rows).kthvalue(place).values
        for start in range(0, len(typical), BATCH)
    ]
    return min(FARTHEST, NEARER * float(torch.cat(neighbours).median()))


def groups(rows: torch.Tensor, limit: float, same: Array) -> Array:
    """A number for each picture; copies, and copies of copies, have the same.

    Args:
        rows: The coarse pictures.
        limit: The distance below which two are copies.
        same: For each picture the index of one that is exactly the same, such as its own.
    """
    pairs = [torch.from_numpy(np.stack([np.arange(len(rows)), same], 1))]
    for start in range(0, len(rows), BATCH):
        near = distances(rows[start : start + BATCH], rows[start:]) < limit
        pairs.append(near.nonzero() + start)
    left, right = torch.cat(pairs).T.numpy()
    joined = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(rows),) * 2)
    numbers: Array = connected_components(joined, directed=False)[1]
    return numbers


def known(some: torch.Tensor, others: torch.Tensor, limit: float) -> Array:
    """Which of some pictures have a copy among the others, bool."""
    parts = [
        (distances(some[start : start + BATCH], others) < limit).any(1)
        for start in range(0, len(some), BATCH)
    ]
    return torch.cat(parts).numpy()
