"""scikit-learn's handwritten digits as a folder of pictures: 1,797 of them, ten classes.

A ninth is WebP, the others are JPEG and PNG by halves. A seventh of all is larger and in RGB; the
others are grey, 8 x 8.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TEST_EVERY = 4


def write_digits(folder: Path, most: int = 1797) -> Path:
    """Write `train/<digit>/*` and `test/<digit>/*`."""
    digits = load_digits()
    for number, (values, label) in enumerate(
        zip(digits.images[:most], digits.target[:most], strict=True)
    ):
        part = "test" if number % TEST_EVERY == 0 else "train"
        picture = Image.fromarray((values * 15.9).astype(np.uint8))
        if number % 7 == 0:
            picture = picture.convert("RGB").resize((21, 16), Image.Resampling.BICUBIC)
        suffix = "webp" if number % 9 == 1 else ("jpg", "png")[number // TEST_EVERY % 2]
        path = folder / part / str(label) / f"{number:04}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=95)
    return folder
