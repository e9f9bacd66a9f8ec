"""False alarms and misses of the moderator by threshold, from predictions of labelled pictures.

    marship predict moderator photos/fit --out fit.jsonl
    marship predict moderator photos/unfit --out unfit.jsonl
    python training/moderator_thresholds.py fit.jsonl --unfit unfit.jsonl

Without `--unfit` only false alarms are known. Choose `review` and `block` by pictures like those
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
    fit: Annotated[Path, Argument(help="the .jsonl of pictures that are fit to be shown")],
    unfit: Annotated[Path | None, Option(help="the .jsonl of pictures that are not")] = None,
) -> None:
    """Print false alarms and misses of the moderator by threshold."""
    good, bad = scores_of(fit), None if unfit is None else scores_of(unfit)
    columns = ["threshold", f"false alarms of {len(good)}"]
    table = Table(*columns, *([] if bad is None else [f"misses of {len(bad)}"]))
    for threshold in THRESHOLDS:
        cells = [(good >= threshold).mean()] + ([] if bad is None else [(bad < threshold).mean()])
        table.add_row(f"{threshold}", *(f"{share:.1%}" for share in cells))
    console.out.print(table)


if __name__ == "__main__":
    console.run_recipe(main)
