"""Judge the recipe for spoken digits on speakers left out, and what each of its parts is worth.

    python training/speech_protocol.py recordings --leave 1 --seeds 1 --seeds 2 --seeds 3
    python training/speech_protocol.py recordings --leave 2 --variants recipe --variants "no masks"

With `--leave 1` each speaker is left out in turn and judged: the figures that are reported. With
`--leave 2` each pair is left out: one of the two is to choose settings on, the other to judge the
choice, and then the other way round. For each judged speaker the variant is chosen that has the
fewest errors on the others, each in the training that left both out; so no setting is chosen on
the speaker it is judged on.

A finished training is not repeated, so a run may be interrupted and extended; a changed recipe
needs another --out. Of each training its metrics.json is kept, data and weights are removed.
"""

import fcntl
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from spoken_digits import read
from typer import Argument

from marship import console
from marship.errors import TrainingError, UsageError
from marship.settings import flags, setting
from marship.storage import write_json

VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recipe": ((), ()),
    "from scratch": (
        ("--utterances", "3000", "--longest", "8", "--synthetic", "0.35"),
        ("--backbone", "none", "--epochs", "10"),
    ),
    "half frozen": ((), ("--frozen", "2")),
    "nothing frozen": ((), ("--frozen", "0")),
    "synthetic voices": (("--synthetic", "0.35"), ()),
    "no speed": ((), ("--speed", "0")),
    "no vocal tract": ((), ("--warp", "0")),
    "no filters": ((), ("--colour", "0")),
    "no rooms": ((), ("--echo", "0")),
    "no noise": ((), ("--noise", "0")),
    "no masks": ((), ("--mask-bands", "0", "--mask-s", "0")),
    "no dropout": ((), ("--dropout", "0")),
    "no average": ((), ("--average", "0")),
}
"""Flags of spoken_digits.py and of speech.py; all but the first change one part."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Which models to train."""

    out: Path = setting(Path("runs/speech-protocol"), "folder for results.json and tables.md")
    leave: int = setting(1, "speakers left out of each training", minimum=1, maximum=2)
    seeds: tuple[str, ...] = setting(("1",), "seed of a training; may be repeated")
    variants: tuple[str, ...] = setting(
        ("recipe",), "recipe, or what to change, or all; may be repeated", usual=(*VARIANTS,)
    )
    only: tuple[str, ...] = setting((), "train only where this speaker is left out; repeatable")
    epochs: int | None = setting(
        None, "fewer passes, for a quick look; else the recipe's", minimum=1
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One training: a variant, who is left out, and the seed."""

    variant: str
    left_out: tuple[str, ...]
    seed: str
    epochs: int | None = None

    def name(self) -> str:
        """Its folder's name."""
        short = (f"{self.epochs}-epochs",) if self.epochs else ()
        return "_".join((self.variant.replace(" ", "-"), *self.left_out, self.seed, *short))


@dataclass(frozen=True, slots=True)
class Row:
    """A cell's results.

    Attributes:
        errors: Word error rate of each speaker left out, in percent.
        known: Of the other speakers together, on recordings that were not learned from.
        processor_s: Of writing the data and training; after an interruption, of what was left.
    """

    cell: Cell
    errors: dict[str, float]
    known: float
    processor_s: float


def cells(speakers: Sequence[str], settings: Settings) -> Iterator[Cell]:
    """Every cell that the settings ask for.

    Raises:
        UsageError: There is no such variant, or no such speaker.
    """
    names = [name for name in settings.variants if name != "all"]
    names += VARIANTS if "all" in settings.variants else ()
    for what, given, known in (("variants", names, VARIANTS), ("only", settings.only, speakers)):
        for name in given:
            if name not in known:
                raise UsageError(f"{what} must be of {', '.join(known)}, got {name!r}.")
    if len(speakers) <= settings.leave:
        raise UsageError(
            f"recordings must be of more than {settings.leave} speakers, got {', '.join(speakers)}."
        )
    groups = itertools.combinations(speakers, settings.leave)
    several = (dict.fromkeys(settings.seeds), groups, dict.fromkeys(names))  # each once
    for seed, group, variant in itertools.product(*several):
        if not settings.only or set(settings.only) & set(group):
            yield Cell(variant, group, seed, settings.epochs)


def train(cell: Cell, recordings: Path, settings: Settings) -> Row:
    """Write the data and train, unless that is done; the results.

    Raises:
        TrainingError: A command fails.
    """
    folder = settings.out / cell.name()
    kept, data, run_dir = folder / "row.json", folder / "data", folder / "run"
    if kept.exists():
        return Row(**json.loads(kept.read_text()) | {"cell": cell})
    for_data, for_training = VARIANTS[cell.variant]
    before = os.times()
    if not data.exists():
        draft = folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was interrupted
        left_out = [word for name in cell.left_out for word in ("--leave-out", name)]
        flags = ["--out", str(draft), "--seed", cell.seed, *left_out, *for_data]
        command("spoken_digits.py", str(recordings), *flags)
        draft.rename(data)
    flags = ["--data-dir", str(data), "--run-dir", str(run_dir), "--seed", cell.seed]
    flags += ["--sample-rate", "8000", "--threads", "1"]
    flags += ["--epochs", str(settings.epochs)] if settings.epochs else []
    flags += ["--resume"] if (run_dir / "checkpoint.pt").exists() else []
    command("speech.py", *flags, *for_training)
    spent_s = sum(os.times()[2:4]) - sum(before[2:4])  # of the commands, which have ended
    metrics = shutil.copyfile(run_dir / "metrics.json", folder / "metrics.json")
    row = judged(cell, json.loads(metrics.read_text())["test"], spent_s)
    write_json(kept, asdict(row))
    shutil.rmtree(data)
    shutil.rmtree(run_dir)
    return row


def command(script: str, *words: str) -> None:
    """Run a script of this folder, on one thread.

    Raises:
        TrainingError: It fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    run = [sys.executable, str(Path(__file__).with_name(script)), *words]
    # progress and errors go to stderr; the tables of one training are not shown
    done = subprocess.run(run, env=environment, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise TrainingError(f"{script} must succeed, got exit code {done.returncode}. See above.")


def judged(cell: Cell, test: dict[str, Any], processor_s: float) -> Row:
    """A cell's results, from the test part of metrics.json."""
    rates = {name: 100 * found["word_error_rate"] for name, found in test["speakers"].items()}
    words = {n: found["words"] for n, found in test["speakers"].items() if n not in cell.left_out}
    wrong = sum(rates[name] * count for name, count in words.items())
    errors = {name: rates[name] for name in cell.left_out}
    return Row(cell, errors, wrong / sum(words.values()), processor_s)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def table(*lines: Sequence[str]) -> str:
    """A table in Markdown; the first line is its head."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by variant; each variant has the same speakers and seeds in the same order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.cell.variant, []).append(row)
    return groups


def by_variant(rows: Sequence[Row]) -> str:
    """All variants: errors in percent, and how many more than the first in equal trainings."""
    groups = grouped(rows)
    first = next(iter(groups))
    means = {n: [statistics.mean(r.errors.values()) for r in group] for n, group in groups.items()}
    lines = [("", "trainings", "left out", f"more than {first}", "known", "processor minutes")]
    for name, group in groups.items():
        more = [own - base for own, base in zip(means[name], means[first], strict=True)]
        columns = (means[name], more, [r.known for r in group], [r.processor_s / 60 for r in group])
        lines.append((name, str(len(group)), *(spread(column) for column in columns)))
    return table(*lines)


def by_speaker(rows: Sequence[Row]) -> str:
    """The speakers left out, one column for each seed: mean errors of the first variant."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in next(iter(grouped(rows).values())):
        for name, error in row.errors.items():
            found.setdefault(name, {}).setdefault(row.cell.seed, []).append(error)
    means = {n: [statistics.mean(e) for e in seeds.values()] for n, seeds in found.items()}
    columns = [statistics.mean(column) for column in zip(*means.values(), strict=True)]
    lines = [("left out", *(f"seed {seed}" for seed in next(iter(found.values()))), "mean")]
    for name, errors in (*sorted(means.items()), ("mean", columns)):
        lines.append((name, *(f"{error:.1f}" for error in errors), spread(errors)))
    return table(*lines)


def by_choice(rows: Sequence[Row]) -> str:
    """For each judged speaker, the variant chosen on the others, and its errors on both."""
    lines, chosen = [("judged", "chosen on the others", "their errors", "its own")], []
    for judge in sorted({name for row in rows for name in row.errors}):
        groups = grouped([row for row in rows if judge in row.errors])
        others = {
            variant: [error for row in group for name, error in row.errors.items() if name != judge]
            for variant, group in groups.items()
        }
        best = min(others, key=lambda variant: statistics.mean(others[variant]))
        own = [row.errors[judge] for row in groups[best]]
        lines.append((judge, best, spread(others[best]), spread(own)))
        chosen.append(statistics.mean(own))
    return table(*lines, ("mean", "", "", spread(chosen)))


@flags(Settings)
def main(recordings: Annotated[Path, Argument(help="their folder")], *, settings: Settings) -> None:
    """Train and judge, and write results.json and tables.md."""
    wanted = list(cells(sorted({digit.speaker for digit in read(recordings)[0]}), settings))
    settings.out.mkdir(parents=True, exist_ok=True)
    with (settings.out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{settings.out} must be for one run at a time, got another that is running. "
                "Wait for it, or give another --out."
            ) from error
        judge(wanted, recordings, settings)


def judge(wanted: Sequence[Cell], recordings: Path, settings: Settings) -> None:
    """Train the cells, and write and print what came of them."""
    rows = []
    for number, cell in enumerate(wanted, 1):
        rows.append(train(cell, recordings, settings))
        errors = ", ".join(f"{name} {error:.1f} %" for name, error in rows[-1].errors.items())
        done = f"{number}/{len(wanted)} {cell.variant}, seed {cell.seed}"
        console.out.print(f"{done}: {errors}", soft_wrap=True)
    shown = (by_variant, by_speaker, by_choice) if settings.leave == 2 else (by_variant, by_speaker)
    text = "\n\n".join(make(rows) for make in shown)
    write_json(settings.out / "results.json", [asdict(row) for row in rows])
    (settings.out / "tables.md").write_text(f"{text}\n")
    console.out.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    console.run_recipe(main)
