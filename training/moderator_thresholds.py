"""False alarms and misses of the moderator by threshold, from predictions of labelled pictures.

    marship predict moderator photos/safe --out safe.jsonl
    marship predict moderator photos/unsafe --out unsafe.jsonl
    python training/moderator_thresholds.py safe.jsonl --unsafe unsafe.jsonl

Without `--unsafe` only false alarms are known. Choose `review` and `block` by pictures like those
that will be sent, and set them with `marship configure`.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
from rich.table import Table
from typer import Argument, Option

from marship import console
from marship.contract import Array
from marship.errors import DataError

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def scores_of(predictions: Path) -> Array:
    """The score of each picture, float64.

    Raises:
        DataError: The file has no scores.
    """
    try:
        rows = [orjson.loads(line) for line in predictions.read_bytes().splitlines()]
        scores = np.array([row["answer"]["score"] for row in rows], np.float64)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{predictions} must have the moderator's responses, as marship predict moderator "
            f"FOLDER --out {predictions} writes them, got: {error!r}."
        ) from error
    if not len(scores):
        raise DataError(f"{predictions} must have a response for at least one picture, got none.")
    return scores


def main(
    safe: Annotated[Path, Argument(help="the .jsonl of pictures that may be shown")],
    unsafe: Annotated[Path | None, Option(help="the .jsonl of pictures that may not")] = None,
) -> None:
    """Print false alarms and misses of the moderator by threshold."""
    scores = scores_of(safe)
    columns = {f"false alarms of {len(scores)}": [(scores >= at).mean() for at in THRESHOLDS]}
    if unsafe is not None:
        scores = scores_of(unsafe)
        columns[f"misses of {len(scores)}"] = [(scores < at).mean() for at in THRESHOLDS]
    table = Table("threshold", *columns)
    for threshold, *shares in zip(THRESHOLDS, *columns.values(), strict=True):
        table.add_row(f"{threshold}", *(f"{share:.1%}" for share in shares))
    console.out.print(table)


if __name__ == "__main__":
    console.run_recipe(main)
