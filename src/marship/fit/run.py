"""A training run as a folder: its settings and output files.

`marship.fit.recipe` lists the files. `metrics.json` is written last: it marks a finished run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from marship import console
from marship.contract import Arrays
from marship.errors import UsageError
from marship.fit.recipe import RECIPE_FILE, Recipe
from marship.settings import Settings, as_dict, setting
from marship.storage import read_json, replacing, write_json

SETTINGS_FILE = "settings.json"
CHECKPOINT_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.json"
CURVE_FILE = "curve.png"
EVENTS_DIR = "events"
_NO_INFLUENCE = {"run_dir", "resume", "again", "threads", "tensorboard"}


@dataclass(frozen=True)
class RunSettings(Settings):
    """Settings common to all recipes; a recipe's settings derive from them."""

    run_dir: Path = setting(Path("runs/model"), "folder for everything that the run writes")
    epochs: int = setting(10, "passes over the training data", minimum=1)
    batch_size: int = setting(32, "rows for each step, over all processes", minimum=1)
    learning_rate: float = setting(1e-3, "step size of the optimizer, at its largest")
    seed: int = setting(1, "start of every random number; equal seeds give equal runs")
    precision: str = setting("float32", "float32, or autocast to bf16 or fp16")
    threads: int = setting(0, "CPU threads of each process; 0 leaves it to PyTorch")
    tensorboard: bool = setting(False, "also write TensorBoard events")
    resume: bool = setting(False, "continue the interrupted run in run_dir")
    again: bool = setting(False, "train anew although run_dir holds this very run")


@dataclass(slots=True)
class Fitted:
    """The result of training.

    Attributes:
        data_digest: A digest of the training data.
        history: One row for each epoch: epoch, loss, learning_rate, seconds, metrics.
        best_epoch: The epoch whose weights were kept; 0 before the first.
        privacy: Of private training: epsilon, delta, noise and sampling; see `fit.privacy`.
    """

    data_digest: str
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    privacy: Mapping[str, Any] | None = None


def influential(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved settings that can change a run's result."""
    return {name: value for name, value in settings.items() if name not in _NO_INFLUENCE}


def publishable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What of metrics.json may leave the folder.

    Of a private run neither losses nor the digest may: training rows decide them without noise.
    """
    if not metrics.get("privacy"):
        return dict(metrics)
    told = {name: value for name, value in metrics.items() if name != "data_digest"}
    rows = metrics.get("history", [])
    told["history"] = [{k: v for k, v in row.items() if k != "loss"} for row in rows]
    return told


def is_finished(settings: RunSettings, data_digest: str) -> bool:
    """Whether `run_dir` holds this run, finished, and `again` is not set.

    If so, one line is printed.
    """
    names = (METRICS_FILE, SETTINGS_FILE, CHECKPOINT_FILE, RECIPE_FILE)
    if settings.again or not all((settings.run_dir / name).is_file() for name in names):
        return False
    old = read_json(settings.run_dir / SETTINGS_FILE)
    digest = read_json(settings.run_dir / METRICS_FILE).get("data_digest")
    if digest != data_digest or influential(old) != influential(as_dict(settings)):
        return False
    console.out.print(
        f"{settings.run_dir} holds this run already: equal settings, equal data. "
        "--again trains anew.",
        soft_wrap=True,
    )
    return True


def begin(settings: RunSettings) -> None:
    """Write settings.json, and remove the results of an older run."""
    for name in (METRICS_FILE, RECIPE_FILE):
        (settings.run_dir / name).unlink(missing_ok=True)
    write_json(settings.run_dir / SETTINGS_FILE, as_dict(settings))


def finish(
    settings: RunSettings,
    fitted: Fitted,
    recipe: Recipe,
    *,
    metrics: Mapping[str, Any],
    arrays: Mapping[str, Arrays],
) -> None:
    """Write the files for later steps, and finally metrics.json.

    Args:
        settings: The run's settings.
        fitted: The result of `fit`.
        recipe: For recipe.json.
        metrics: The results, for metrics.json.
        arrays: By the name of an npz file without its suffix, such as `examples`.
    """
    for name, tensors in arrays.items():
        with replacing(settings.run_dir / f"{name}.npz") as draft:
            np.savez_compressed(draft, **tensors)  # type: ignore[arg-type]  # its stub takes no mapping
    with replacing(settings.run_dir / CURVE_FILE) as draft:
        draw_curve(fitted, settings.run_dir.name, draft)
    recipe.save(settings.run_dir)
    write_json(
        settings.run_dir / METRICS_FILE,
        {
            **metrics,
            "data_digest": fitted.data_digest,
            "best_epoch": fitted.best_epoch,
            "seconds": round(sum(row["seconds"] for row in fitted.history), 3),
            "history": fitted.history,
            **({"privacy": fitted.privacy} if fitted.privacy else {}),
        },
    )


def open_events(settings: RunSettings) -> Any:  # noqa: ANN401  the package may not be there
    """A TensorBoard writer for the run folder if enabled; else None.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    if not settings.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "tensorboard must be installed to write its events, got no such package. "
            "Run: pip install 'marship[tensorboard]'"
        ) from error
    return SummaryWriter(settings.run_dir / EVENTS_DIR)


def draw_curve(fitted: Fitted, title: str, path: Path) -> None:
    """Draw the loss and each validation metric over the epochs, as a PNG."""
    from matplotlib.figure import Figure

    names = [n for n in fitted.history[-1] if n not in ("epoch", "seconds", "learning_rate")]
    names = names[:4]  # more panels would be too small to read
    epochs = [row["epoch"] for row in fitted.history]
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    figure.suptitle(f"Training of {title}")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = [row[name] for row in fitted.history]
        label = "training loss" if name == "loss" else f"validation {name}"
        axes.plot(epochs, values, color="tab:blue" if name == "loss" else "tab:orange")
        if name != "loss":
            best = epochs.index(fitted.best_epoch)
            axes.plot(epochs[best], values[best], "o", color="black", label="weights kept")
            axes.legend(frameon=False)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")
