"""Data augmentation of pictures, a batch at a time, as tensors."""

import math
from dataclasses import dataclass

import torch
from imagefolder import Pictures
from torch.nn import functional
from torch.utils.data import Dataset

from marship.contract import Array

ASPECT = 4 / 3
"""Largest aspect ratio of a crop."""
GREY = 124
"""Colour of the cutout square: about the mean of photographs."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Settings of data augmentation.

    Attributes:
        side: Height and width of the result.
        shift: Largest translation in pixels; the edges are filled by mirroring.
        zoom: The smallest share of a picture's area that is cropped and resized; with 1
            pictures are only translated.
        mirror: Share of pictures that are mirrored left to right.
        cutout: Edge of a grey square at a random position, as a share of the side.
    """

    side: int
    shift: int
    zoom: float
    mirror: float
    cutout: float


class Augmented(Dataset[dict[str, torch.Tensor]]):
    """Pictures with the given indices, augmented each time that they are drawn."""

    def __init__(self, pictures: Pictures, places: Array, changes: Augmentation) -> None:
        self.pictures, self.places, self.changes = pictures, places, changes

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `pixels`, uint8 (batch, side, side, 3), and `label`, int64 (batch,)."""
        rows = self.places[indices]
        pixels = torch.from_numpy(self.pictures.pixels[rows])
        return {
            "pixels": augment(pixels, self.changes),
            "label": torch.from_numpy(self.pictures.labels[rows]),
        }


def augment(pixels: torch.Tensor, changes: Augmentation) -> torch.Tensor:
    """uint8 (batch, edge, edge, 3) to (batch, side, side, 3), each augmented independently."""
    pixels = resized_parts(pixels, changes) if changes.zoom < 1 else moved(pixels, changes)
    flipped = torch.rand(len(pixels)) < changes.mirror
    pixels = torch.where(flipped[:, None, None, None], pixels.flip(2), pixels)
    return cut_out(pixels, changes) if changes.cutout else pixels


def moved(pixels: torch.Tensor, changes: Augmentation) -> torch.Tensor:
    """Random crops of `side` x `side`, up to `shift` beyond the edges."""
    rows = _places(pixels, changes)
    columns = _places(pixels, changes)
    pictures = torch.arange(len(pixels))
    return pixels[pictures[:, None, None], rows[:, :, None], columns[:, None, :]]


def _places(pixels: torch.Tensor, changes: Augmentation) -> torch.Tensor:
    """For each picture the rows (or columns) to take, mirrored at the edges."""
    edge = pixels.shape[1]
    spare = edge - changes.side + changes.shift
    starts = torch.randint(-changes.shift, spare + 1, (len(pixels), 1))
    places = (starts + torch.arange(changes.side)).abs()
    return torch.where(places < edge, places, 2 * (edge - 1) - places)


def resized_parts(pixels: torch.Tensor, changes: Augmentation) -> torch.Tensor:
    """Crops of random area, aspect ratio and position, resized (Szegedy et al. 2015, section 6)."""
    edge, side = pixels.shape[1], changes.side
    shares = torch.empty(len(pixels)).uniform_(changes.zoom, 1).tolist()
    aspects = torch.empty(len(pixels)).uniform_(-math.log(ASPECT), math.log(ASPECT)).tolist()
    places = torch.rand(len(pixels), 2).tolist()
    parts = []
    for picture, share, aspect, (down, right) in zip(
        pixels.permute(0, 3, 1, 2), shares, aspects, places, strict=True
    ):
        height, width = (
            max(1, min(edge, round(edge * math.sqrt(share) * math.exp(power))))
            for power in (aspect / 2, -aspect / 2)
        )
        top, left = round(down * (edge - height)), round(right * (edge - width))
        part = picture[None, :, top : top + height, left : left + width]
        parts.append(functional.interpolate(part, (side, side), mode="bilinear", antialias=True))
    return torch.cat(parts).permute(0, 2, 3, 1)


def cut_out(pixels: torch.Tensor, changes: Augmentation) -> torch.Tensor:
    """Cutout: a grey square at a random position in each (DeVries and Taylor 2017)."""
    half = changes.cutout * changes.side / 2
    middles = torch.rand(2, len(pixels), 1) * changes.side
    inside = (torch.arange(changes.side) + 0.5 - middles).abs() < half
    covered = inside[0][:, :, None] & inside[1][:, None, :]
    return pixels.masked_fill(covered[..., None], GREY)
