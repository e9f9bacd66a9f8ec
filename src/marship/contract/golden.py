"""Golden cases: inputs, and the outputs that the reference model gave for them."""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from marship.contract import strings
from marship.errors import ModelError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
"""Tensors by name."""

GOLDEN_FILE = "golden.npz"
MOST_GOLDEN_BYTES = 2 << 30  # an npz of 2 MB may stand for as much
NPZ_FAULTS = (
    *(OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError, OverflowError, KeyError),
)
"""What NumPy raises for a corrupted npz; an array's header may declare terabytes."""


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """Inputs of one model call, with the outputs of the reference model."""

    inputs: Arrays
    outputs: Arrays


def write_golden(target: Path | BinaryIO, cases: Sequence[GoldenCase]) -> None:
    """Write cases as an npz with keys `<index>/in/<name>`, `<index>/out/<name>`; see `strings`."""
    arrays = {
        f"{index}/{side}{part}/{name}": stored
        for index, case in enumerate(cases)
        for side, tensors in (("in", case.inputs), ("out", case.outputs))
        for name, array in tensors.items()
        for part, stored in strings.stored(array)
    }
    with target.open("wb") if isinstance(target, Path) else nullcontext(target) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes no mapping


def read_golden(source: Path | BinaryIO) -> list[GoldenCase]:
    """Read what `write_golden` wrote.

    Raises:
        ModelError: The file is missing or damaged, or unpacks to more than `MOST_GOLDEN_BYTES`.
    """
    cases: dict[int, GoldenCase] = {}
    try:
        with np.load(source, allow_pickle=False) as arrays:
            size_bytes = sum(info.file_size for info in arrays.zip.infolist())
            if size_bytes > MOST_GOLDEN_BYTES:
                raise ValueError(f"{size_bytes:,} bytes, where {MOST_GOLDEN_BYTES:,} are allowed")
            for key in arrays.files:
                index, side, name = key.split("/", 2)
                if side.endswith(strings.LENGTHS):  # read with the text
                    continue
                case = cases.setdefault(int(index), GoldenCase({}, {}))
                array = _plain(arrays, key)
                if side.endswith(strings.TEXT):
                    side = side.removesuffix(strings.TEXT)
                    lengths = _plain(arrays, f"{index}/{side}{strings.LENGTHS}/{name}")
                    array = strings.joined(array, lengths)
                (case.inputs if side == "in" else case.outputs)[name] = array
    except NPZ_FAULTS as error:
        # NumPy advises to load pickles where a file is no npz: nobody must
        got = "no npz file" if "pickle" in str(error) else error
        raise ModelError(
            f"{GOLDEN_FILE} must hold golden cases, got {got}. Package the model again."
        ) from error
    return [cases[index] for index in sorted(cases)]


def _plain(arrays: Mapping[str, Array], key: str) -> Array:
    if not isinstance(array := arrays[key], np.ndarray):  # NumPy gives the bytes
        raise TypeError(f"{key} that is no array")
    return array
