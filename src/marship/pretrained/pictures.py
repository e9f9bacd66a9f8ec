"""A model for pictures: its image processor, and pictures to try it on."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from marship.contract import Array, Arrays
from marship.errors import ParityError, UsageError
from marship.pretrained import labels
from marship.pretrained.folder import ModelFolder, opened, reason_of
from marship.serving.pictures.processor import Processor

PICTURE_FILE = "picture.json"
SAMPLES = {"sample_wide.png": (120, 200), "sample_high.png": (90, 61)}
"""File names and (height, width) of pictures that are drawn."""
INPUT = "pixel_values"
TAG_THRESHOLD = 0.5
CONVNEXT_WHOLE = 384
"""From this size on ConvNextImageProcessor crops nothing."""
_TOLERANCE = 1e-5
_COLOURS = 3


def processor_of(folder: ModelFolder) -> Any:  # noqa: ANN401  a class of many
    """The folder's image processor, as transformers reads it, with Pillow for pixels.

    Raises:
        UsageError: There is none.
    """
    return opened("AutoImageProcessor", folder.path, backend="pil")


def samples() -> dict[str, Array]:
    """Pictures of nobody's by file name: colours and edges, uint8 (height, width, 3)."""
    generator = np.random.default_rng(5)
    return {name: _drawn(*size, generator) for name, size in SAMPLES.items()}


def _drawn(height: int, width: int, generator: np.random.Generator) -> Array:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / a + columns / b) for a, b in generator.uniform(3, 30, (3, 2))]
    pixels = 127.5 + 100 * np.stack(waves, -1)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = generator.uniform(0, 255, 3)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def files(names: Sequence[str], scores: str, processor: Processor) -> dict[str, bytes]:
    """What goes into the archive beside the model, by name: picture.json, and the samples.

    Args:
        names: The labels in the order of the outputs.
        scores: How scores follow from the outputs; see `marship.serving.model.scores`.
        processor: How pictures are prepared.
    """
    about = {
        "labels": [*names],
        "scores": scores,
        "processor": asdict(processor),
        "tag_threshold": TAG_THRESHOLD,
    }
    found = {PICTURE_FILE: (json.dumps(about, indent=2) + "\n").encode()}
    return found | {name: _png(pixels) for name, pixels in samples().items()}


def prepared(folder: ModelFolder, processor: Any) -> tuple[dict[str, bytes], Arrays]:  # noqa: ANN401
    """The files beside the model of a folder, and the inputs for the samples.

    Raises:
        UsageError: The processor does what is not done here, or a label is missing.
        ParityError: It gives other pixels.
    """
    ours = settings_of(processor)
    rows = checked(ours, partial(values_of, processor), type(processor).__name__)
    names, kind = labels.labels_of(folder.config), labels.scores_of(folder.config)
    return files(names, kind, ours), rows


def settings_of(processor: Any) -> Processor:  # noqa: ANN401  a class of many
    """The processor's settings.

    Raises:
        UsageError: It does what is not done here.
    """
    size = dict(processor.size or {}) if processor.do_resize else {}
    size = {name: value for name, value in size.items() if value is not None}
    resize: tuple[int, ...] | None = None
    crop = None
    if size.keys() == {"shortest_edge"}:
        resize = (size["shortest_edge"],)
        if (share := getattr(processor, "crop_pct", None)) is not None:
            (side,) = resize
            is_cropped = side < CONVNEXT_WHOLE
            resize = (int(side / share),) if is_cropped else (side, side)
            crop = (side, side) if is_cropped else None
    elif size.keys() == {"height", "width"}:
        resize = (size["height"], size["width"])
    elif processor.do_resize:
        raise UsageError(
            "size of the image processor must have height and width, or shortest_edge, got "
            f"{', '.join(size) or 'none'}."
        )
    if getattr(processor, "do_center_crop", False):
        edges = dict(processor.crop_size)
        crop = (edges["height"], edges["width"])
    normalizes = bool(processor.do_normalize)
    return Processor(
        resize=resize,
        resample=int(processor.resample),
        crop=crop,
        rescale=float(processor.rescale_factor) if processor.do_rescale else None,
        mean=_of_colours("image_mean", processor.image_mean) if normalizes else None,
        std=_of_colours("image_std", processor.image_std) if normalizes else None,
    )


def _of_colours(name: str, value: Any) -> tuple[float, ...]:  # noqa: ANN401  any JSON value
    """A number for each of red, green and blue.

    Raises:
        UsageError: There is another number of them.
    """
    numbers = [value] * _COLOURS if isinstance(value, int | float) else [*(value or ())]
    if len(numbers) != _COLOURS:
        raise UsageError(
            f"{name} of the image processor must be a number, or one for each of {_COLOURS} "
            f"colours, got {value}. Export the model from a function of your own."
        )
    return tuple(map(float, numbers))


def checked(ours: Processor, values: Callable[[Array], Array], name: str) -> Arrays:
    """Hold this package's way to prepare pictures against a reference's.

    Args:
        ours: The settings.
        values: What the reference makes of pixels, float32 (1, 3, height, width).
        name: The reference, for messages.

    Returns:
        The values of all samples, by the name of a model's input.

    Raises:
        ParityError: They differ.
        UsageError: Pictures of different sizes would reach the model in different sizes.
    """
    rows = []
    for file, pixels in samples().items():
        want, got = values(pixels), ours(pixels)[None]
        if got.shape != want.shape:
            gap = f"shape {got.shape[1:]}, not {want.shape[1:]}"
        elif not np.allclose(got, want, rtol=1e-4, atol=_TOLERANCE):
            gap = f"values {np.abs(got - want).max():.3g} apart"
        else:
            rows.append(want)
            continue
        raise ParityError(
            f"pixels must be those of {name}, got {gap} for {file}. It does more than resize, "
            "crop, rescale and normalize: export the model from a function of your own."
        )
    if len({row.shape for row in rows}) > 1:
        sizes = " and ".join(f"{row.shape[2]} x {row.shape[3]}" for row in rows)
        raise UsageError(
            f"{name} must make one size of all pictures, got {sizes}. Set do_center_crop and "
            "crop_size, or height and width of size, in preprocessor_config.json."
        )
    return {INPUT: np.concatenate(rows)}


def values_of(processor: Any, pixels: Array) -> Array:  # noqa: ANN401
    """What the image processor itself makes of a picture, float32 (1, 3, height, width)."""
    from PIL import Image

    try:
        found = processor(images=Image.fromarray(pixels), return_tensors="np")
    except Exception as error:  # transformers raises errors of many unrelated types
        raise UsageError(
            f"{type(processor).__name__} must prepare a picture of {pixels.shape}, got "
            f"{reason_of(error)}. Correct preprocessor_config.json."
        ) from error
    return np.asarray(found[INPUT], np.float32)


def _png(pixels: Array) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()
