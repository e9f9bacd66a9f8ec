"""What the square and differential privacy cost: test figures of the recipes over several seeds.

    python benchmarks/private_training.py
    python benchmarks/private_training.py --only mlp --seeds 3

Each row trains `training/digits.py` or `training/regression.py` with these settings and seeds 1,
2, ... and reads the test figure of its metrics.json. Test rows are the same for all seeds; digits
choose other training rows to watch, and private runs draw other noise. Prints a table for
docs/training.md, with the mean and, in brackets, the lowest and highest.
"""

import argparse
import contextlib
import importlib
import io
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from marship.fit.run import METRICS_FILE
from marship.storage import read_json

TRAINING = Path(__file__).parents[1] / "training"
EPSILONS = (None, 8.0, 3.0, 1.0)


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table, without epsilon."""

    model: str
    recipe: str
    metric: str
    settings: dict[str, Any]


CASES = [
    Case(model, recipe, metric, {**settings, "activation": activation})
    for model, recipe, metric, settings in (
        ("mlp", "digits", "accuracy", {"network": "mlp"}),
        ("cnn", "digits", "accuracy", {"network": "cnn"}),
        ("regression", "regression", "r2", {}),
    )
    for activation in ("relu", "square")
]


def figures(module: ModuleType, case: Case, epsilon: float | None, seeds: int) -> Iterator[float]:
    """The test figure of each seed."""
    train = module.main.__wrapped__  # without its flags
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory(prefix="private-training-") as name:
            settings = module.Settings(
                run_dir=Path(name), seed=seed, threads=1, dp_epsilon=epsilon, **case.settings
            )
            told = io.StringIO()
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                train(settings)
            metrics = read_json(Path(name) / METRICS_FILE)
            if epsilon is not None and not metrics["privacy"]["epsilon"] <= epsilon:
                raise SystemExit(f"epsilon must be at most {epsilon}, got {metrics['privacy']}.")
            yield metrics[case.metric]


def cell(values: list[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Train, and print the table row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=sorted({case.model for case in CASES}))
    given = parser.parse_args()
    sys.path.insert(0, str(TRAINING))
    names = ["none" if epsilon is None else f"{epsilon:g}" for epsilon in EPSILONS]
    print(f"| model | activation | metric | {' | '.join(f'epsilon {name}' for name in names)} |")
    print(f"|---|---|---|{'---|' * len(names)}")
    for case in CASES:
        if given.only and case.model not in given.only:
            continue
        module = importlib.import_module(case.recipe)
        cells = [cell(list(figures(module, case, epsilon, given.seeds))) for epsilon in EPSILONS]
        row = (case.model, case.settings["activation"], case.metric, *cells)
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
