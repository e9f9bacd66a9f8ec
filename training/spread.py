"""The figures of runs that differ in their seeds, as one table: mean, lowest and highest.

    python training/spread.py runs/recommend-1 runs/recommend-2 runs/recommend-3

Prints Markdown of what metrics.json has under `test`, or `valid`, of each run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from marship import console
from marship.contract import Array
from marship.errors import UsageError
from marship.fit import run
from marship.storage import read_json

JUDGED = ("test", "valid")
Rows = dict[str, dict[str, float]]


def rows_of(run_dir: Path) -> Rows:
    """The figures of a run by row and column.

    Raises:
        UsageError: The run is not finished, or its metrics are no table.
    """
    path = run_dir / run.METRICS_FILE
    if not path.is_file():
        raise UsageError(f"{run_dir} must be the folder of a finished run, got no {path.name}.")
    metrics = read_json(path)
    found = next((metrics[name] for name in JUDGED if name in metrics), None)
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise UsageError(
            f"{path} must have rows of figures under {' or '.join(JUDGED)}, got another form."
        )
    return found


def table(runs: Sequence[Rows]) -> str:
    """Markdown: one row for each row of the runs, mean (lowest to highest) in each column.

    Raises:
        UsageError: The runs have different rows or columns.
    """
    first = runs[0]
    shapes = [{name: list(row) for name, row in rows.items()} for rows in runs]
    if any(shape != shapes[0] for shape in shapes):
        raise UsageError("the runs must have the same rows and columns, got others.")
    columns = list(next(iter(first.values())))
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    for name in first:
        cells = (np.array([rows[name][column] for rows in runs]) for column in columns)
        lines.append([name, *(_cell(values) for values in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check_alike(run_dirs: Sequence[Path]) -> None:
    """Refuse runs that differ in more than their seeds: their mean would mean nothing.

    Raises:
        UsageError: They differ in another setting.
    """
    first, *others = (run.influential(read_json(d / run.SETTINGS_FILE)) for d in run_dirs)
    for folder, settings in zip(run_dirs[1:], others, strict=True):
        unequal = [n for n in sorted(first | settings) if first.get(n) != settings.get(n)]
        if set(unequal) - {"seed"}:
            raise UsageError(
                f"the runs must differ in their seeds alone, got {run_dirs[0]} and {folder}, which "
                f"differ in {', '.join(unequal)}."
            )


def _cell(values: Array) -> str:
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return f"{values.mean():.3f}" + (f" ({low} to {high})" if low != high else "")


def main(run_dirs: Annotated[list[Path], typer.Argument(help="folders of finished runs")]) -> None:
    """Print the figures of runs that differ in their seeds as one table."""
    rows = [rows_of(folder) for folder in run_dirs]
    check_alike(run_dirs)
    console.out.print(table(rows), soft_wrap=True)


if __name__ == "__main__":
    console.run_recipe(main)
