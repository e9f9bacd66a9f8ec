"""scikit-learn's handwritten digits as a folder of pictures: 1,797 of them, ten classes."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TEST_EVERY = 4


def write_digits(folder: Path, most: int = 1797) -> Path:
    """Write `train/<digit>/*` and `test/<digit>/*`: grey PNGs of 8 x 8, and some larger in RGB."""
    digits = load_digits()
    for number, (values, label) in enumerate(
        zip(digits.images[:most], digits.target[:most], strict=True)
    ):
        part = "test" if number % TEST_EVERY == 0 else "train"
        picture = Image.fromarray((values * 15.9).astype(np.uint8))
        if number % 7 == 0:
            picture = picture.convert("RGB").resize((21, 16), Image.Resampling.BICUBIC)
        path = folder / part / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder
