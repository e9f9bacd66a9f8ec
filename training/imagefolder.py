"""A folder of pictures, one folder for each class, checked and decoded before training.

    data/train/<class>/*    for training
    data/test/<class>/*     for the test only

Pictures may have any size and format that the server accepts, and are decoded by the server's own
code. They are stored as squares of one size in a memory-mapped file, so a folder may be larger than
memory, and reading a batch needs no decoding.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import copies
import numpy as np
from PIL import Image

from marship import console
from marship.contract import Array, Arrays
from marship.errors import DataError, RequestError, UsageError
from marship.serving.pictures import decode

PARTS = ("train", "test")
NAMED = 3
"""Most files that an error names; the others are counted."""
ROWS = {"examples": 16, "calibration": 512, "heldout": 5000}
LARGEST_BYTES = {"examples": 8 << 20, "calibration": 64 << 20, "heldout": 256 << 20}
"""Most bytes that are written for each of the later steps."""
_THREADS = 4  # so that reading and decoding overlap


@dataclass(frozen=True, slots=True)
class Pictures:
    """Some of a folder's pictures.

    Attributes:
        names: Their paths below the data folder.
        pixels: uint8, shape (pictures, side, side, 3), RGB.
        labels: int64, shape (pictures,): indices into the folder's list of classes.
        digests: Of the decoded pixels; copies have the same.
    """

    names: tuple[str, ...]
    pixels: Array
    labels: Array
    digests: Array

    def __len__(self) -> int:
        return len(self.names)

    def part(self, places: Array) -> "Pictures":
        """The pictures at these indices."""
        names = tuple(self.names[place] for place in places)
        return Pictures(names, self.pixels[places], self.labels[places], self.digests[places])


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A data folder.

    Attributes:
        classes: Their names, in alphabetical order.
        train: For training.
        test: For the test.
        digest: SHA-256 of all names and pixels.
    """

    classes: tuple[str, ...]
    train: Pictures
    test: Pictures
    digest: str


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One file: its digest, or the error."""

    name: str
    digest: str = ""
    fault: str = ""

    @property
    def label(self) -> str:
        """Its class."""
        return Path(self.name).parts[1]


def load(folder: Path, side: int) -> ImageFolder:
    """Decode and check all pictures: the middle square of each, resized to `side` x `side`.

    Raises:
        UsageError: The folder has another layout.
        DataError: A class is empty or in one part only, a file is in no class or is no picture,
            or a picture is in both parts or in two classes.
    """
    classes = _classes(folder)
    files = {part: _files(folder / part, classes) for part in PARTS}
    _check_classes(folder, classes, files)
    flat = [file for part in PARTS for group in files[part] for file in group]
    pixels = _mapped(len(flat), side)
    decoded = _read_all(folder, flat, pixels)
    labels = [np.repeat(np.arange(len(classes)), [len(g) for g in files[part]]) for part in PARTS]
    learned = len(labels[0])
    _check_readable(decoded)
    _check_apart(decoded[:learned], decoded[learned:])
    _check_one_class(decoded)
    names = tuple(one.name for one in decoded)
    digests = np.array([one.digest for one in decoded])
    return ImageFolder(
        classes,
        Pictures(names[:learned], pixels[:learned], labels[0], digests[:learned]),
        Pictures(names[learned:], pixels[learned:], labels[1], digests[learned:]),
        _digest(decoded, side),
    )


def _read_all(folder: Path, files: Sequence[Path], pixels: Array) -> list[_Decoded]:
    """Decode each file into its row of `pixels`."""
    with console.progress() as progress, ThreadPoolExecutor(_THREADS) as pool:
        progress.disable = not console.err.is_terminal
        work = pool.map(lambda file, row: _read(folder, file, row), files, pixels)
        return list(progress.track(work, total=len(files), description="reading pictures"))


def hold_out(pictures: Pictures, share: float, seed: int) -> tuple[Array, Array]:
    """Indices of the pictures to train on, and of those held out: `share` of each class.

    Copies of a picture stay together, near ones too, so that none of the held-out pictures is
    trained on.

    Raises:
        DataError: A class has a single picture, so that none would be left to train on.
    """
    generator = np.random.default_rng(seed)
    _, first, same = np.unique(pictures.digests, return_index=True, return_inverse=True)
    coarse = copies.coarse(pictures.pixels)
    numbers = copies.groups(coarse, copies.limit(coarse[first], seed), first[same])
    out = np.zeros(len(pictures), bool)
    for label in np.unique(pictures.labels):
        places = np.flatnonzero(pictures.labels == label)
        if len(np.unique(same[places])) < 2:
            raise DataError(
                "each class must have 2 different pictures to learn from, got only "
                f"{pictures.names[places[0]]}. Add pictures of this class, or leave it out."
            )
        near = len(np.unique(numbers[places])) > 1
        _, group = np.unique((numbers if near else same)[places], return_inverse=True)
        sizes = np.bincount(group)
        count = max(1, round(share * len(sizes)))
        # a large group, such as frames of one film, would hold out far more than the share
        fitting = np.flatnonzero(sizes <= max(count, sizes.min()))
        out[places[np.isin(group, generator.permutation(fitting)[:count])]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def near_copies(pictures: Pictures, learned: Pictures, seed: int) -> Array:
    """Which of some pictures have a near copy among those that were trained on, bool."""
    known = copies.coarse(learned.pixels)
    return copies.known(copies.coarse(pictures.pixels), known, copies.limit(known, seed))


def calibration_of(train: Pictures, places: tuple[Array, Array], seed: int) -> Pictures:
    """Pictures for int8 calibration.

    Held-out ones come first: a network is more confident on pictures that it was trained on, so
    that quantization would seem to lose less than it does on new ones.

    Args:
        train: All pictures of train.
        places: Indices of the pictures that were trained on, and of those held out.
        seed: Chooses the pictures.
    """
    generator = np.random.default_rng(seed)
    learned, watched = (generator.permutation(part) for part in places)
    chosen = np.concatenate([watched, learned])[: _most(train.pixels.shape[1])["calibration"]]
    return train.part(generator.permutation(chosen))


def arrays_of(folder: ImageFolder, seed: int) -> dict[str, Arrays]:
    """Inputs for the later steps besides the calibration pictures.

    The examples are resized to another size and aspect ratio, since requests have any.

    Args:
        folder: The data folder.
        seed: Chooses the pictures.
    """
    edge = folder.train.pixels.shape[1]
    height, width = edge * 5 // 4, edge * 7 // 4
    most = _most(edge)
    test = np.random.default_rng(seed).permutation(len(folder.test))
    heldout = folder.test.part(np.sort(test[: most["heldout"]]))
    examples = folder.test.pixels[test[: most["examples"]]]
    return {
        "examples": {"pixels": np.stack([resized(one, height, width) for one in examples])},
        "heldout": {"pixels": heldout.pixels, "target/label": heldout.labels},
    }


def _most(edge: int) -> dict[str, int]:
    """The most pictures of this size in each file."""
    return {name: min(ROWS[name], LARGEST_BYTES[name] // (3 * edge * edge)) for name in ROWS}


def _classes(folder: Path) -> tuple[str, ...]:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UsageError(
            f"{folder} must hold {' and '.join(f'{part}/<class>/' for part in PARTS)}, "
            f"got no folder {' or '.join(missing)}. Put pictures there, a folder for each class."
        )
    found = [path for part in PARTS for path in _visible(folder / part)]
    stray = sorted(str(path.relative_to(folder)) for path in found if not path.is_dir())
    if stray:
        raise DataError(
            f"every file must be in the folder of a class, got {len(stray)} that are in none: "
            f"{_some(stray)}. Put them into one, or remove them."
        )
    names = {path.name for path in found}
    if len(names) < 2:
        raise DataError(
            f"{folder} must hold at least 2 classes, got {', '.join(names) or 'none'}. "
            "Each class is a folder below train and below test."
        )
    return tuple(sorted(names))


def _files(part: Path, classes: Sequence[str]) -> list[list[Path]]:
    """The files of each class, including those in deeper folders and all links."""
    return [
        [file for file in sorted(_walk(part / name)) if file.is_file() or file.is_symlink()]
        for name in classes
    ]


def _walk(folder: Path) -> Iterator[Path]:
    for path in _visible(folder):
        if path.is_dir() and not path.is_symlink():  # links may form a cycle
            yield from _walk(path)
        else:
            yield path


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _check_classes(
    folder: Path, classes: Sequence[str], files: dict[str, list[list[Path]]]
) -> None:
    empty = [
        f"{part}/{name}"
        for part in PARTS
        for name, found in zip(classes, files[part], strict=True)
        if not found
    ]
    if empty:
        raise DataError(
            f"every class must have pictures in train and in test, got none in {_some(empty)} "
            f"of {folder}. Add some, or remove the class from both."
        )


def _mapped(count: int, side: int) -> Array:
    """uint8 (count, side, side, 3) in an unnamed file, which is deleted when the process ends."""
    shape = (count, side, side, 3)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, count * side * side * 3)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()} must have room for the decoded pictures, "
                f"{count * side * side * 3 >> 20} MB, got: {error.strerror}. "
                "Set TMPDIR to a folder on a larger disk."
            ) from error
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _read(folder: Path, file: Path, row: Array) -> _Decoded:
    """Decode one file into `row`."""
    name = str(file.relative_to(folder))
    try:
        picture = decode(file.read_bytes(), shortest=len(row))
    except RequestError as error:
        return _Decoded(name, fault=str(error))
    except OSError as error:
        return _Decoded(name, fault=f"{error.strerror}.")
    pixels = np.ascontiguousarray(picture.pixels)
    row[:] = square(pixels, len(row))
    digest = hashlib.blake2b(pixels, digest_size=16)
    digest.update(str(pixels.shape).encode())
    return _Decoded(name, digest.hexdigest())


def square(pixels: Array, side: int) -> Array:
    """The middle square of (height, width, 3), as (side, side, 3)."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return resized(pixels[top : top + edge, left : left + edge], side, side)


def resized(pixels: Array, height: int, width: int) -> Array:
    """A picture in another size, by the same filter as in `training/pixels.py`."""
    if pixels.shape[:2] == (height, width):
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _check_readable(decoded: Sequence[_Decoded]) -> None:
    bad = [f"{one.name} ({one.fault.rstrip('.')})" for one in decoded if one.fault]
    if bad:
        raise DataError(
            f"every file must be a picture that can be read, got {len(bad)} of {len(decoded)} "
            f"that cannot: {_some(bad)}. Repair or remove them."
        )


def _check_apart(train: Sequence[_Decoded], test: Sequence[_Decoded]) -> None:
    known = {one.digest: one.name for one in train}
    both = [f"{one.name} is {known[one.digest]}" for one in test if one.digest in known]
    if both:
        raise DataError(
            f"no picture must be in train and in test, got {len(both)} that are: {_some(both)}. "
            "Remove them from one of the two, or the accuracy would be too good to be true."
        )


def _check_one_class(decoded: Sequence[_Decoded]) -> None:
    known: dict[str, _Decoded] = {}
    other = [
        f"{one.name} is {first.name}"
        for one in decoded
        if (first := known.setdefault(one.digest, one)).label != one.label
    ]
    if other:
        raise DataError(
            f"a picture must be in one class, got {len(other)} that are in another too: "
            f"{_some(other)}. Remove those that are in the wrong one."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _digest(decoded: Sequence[_Decoded], side: int) -> str:
    digest = hashlib.sha256(str(side).encode())
    for one in decoded:
        digest.update(f"{one.name}\0{one.digest}\n".encode())
    return digest.hexdigest()
