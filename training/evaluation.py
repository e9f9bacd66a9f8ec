"""Accuracy and calibration of a classifier: metrics and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from confusion import draw_confusion
from imagefolder import Pictures
from torch import nn
from torch.nn import functional

from marship import console
from marship.contract import Array
from marship.storage import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
COLDEST, HOTTEST = 0.1, 10.0
"""Bounds of the temperature; without any mistake in the validation part there is no minimum."""
BATCH = 128
MISTAKES = 24
FEW_PICTURES = 200
"""With fewer held out, temperature scaling can make calibration worse: see docs/image.md."""
BEST = 5


def logits_of(model: nn.Module, pictures: Pictures) -> torch.Tensor:
    """The network's logits before any temperature, float32 (pictures, classes)."""
    device = next(model.parameters()).device
    parts = []
    with torch.no_grad():
        for start in range(0, len(pictures), BATCH):
            pixels = torch.from_numpy(pictures.pixels[start : start + BATCH]).to(device)
            parts.append(model.network(model.pixels(pixels)).float().cpu())
    return torch.cat(parts)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature by which the logits are divided to make the labels most likely.

    Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2. The loss is convex
    in 1/T and its slope there is the expected minus the true class's logit, so halving the
    interval finds the one minimum.
    """
    exact = logits.double()
    true = exact.gather(1, labels[:, None])[:, 0]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((exact * middle).softmax(1) * exact).sum(1)
        if (expected - true).mean() > 0:
            high = middle
        else:
            low = middle
    return 2 / (low + high)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of pictures whose most likely class is the true one."""
    return float((logits.argmax(1) == labels).double().mean())


def apart(logits: torch.Tensor, labels: torch.Tensor, copied: Array) -> dict[str, Any]:
    """Accuracy, how many pictures have a near copy among those learned from, and it without."""
    others = torch.from_numpy(~copied)
    found = accuracy(logits[others], labels[others]) if others.any() else None
    return {
        "accuracy": accuracy(logits, labels),
        "near_copies": int(copied.sum()),
        "accuracy_without_near_copies": found,
    }


def measure(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float, classes: Sequence[str]
) -> dict[str, Any]:
    """The metrics of metrics.json: accuracy, each class, calibration before and after."""
    from torchmetrics.functional import classification

    count = len(classes)
    rates = {
        name: function(logits, labels, count, average="none").tolist()
        for name, function in (
            ("precision", classification.multiclass_precision),
            ("recall", classification.multiclass_recall),
        )
    }
    pictures = torch.bincount(labels, minlength=count).tolist()
    share = accuracy(logits, labels)
    best = logits.topk(min(BEST, count)).indices
    return {
        "accuracy": share,
        "accuracy_standard_error": (share * (1 - share) / len(labels)) ** 0.5,
        f"top_{BEST}_accuracy": float((best == labels[:, None]).any(1).double().mean()),
        "calibration": {
            "temperature": temperature,
            "bins": BINS,
            "before": _calibration(logits, labels),
            "after": _calibration(logits / temperature, labels),
        },
        "classes": {
            name: {
                "precision": rates["precision"][place],
                "recall": rates["recall"][place],
                "pictures": pictures[place],
            }
            for place, name in enumerate(classes)
        },
    }


def _calibration(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Expected calibration error (Guo et al. 2017, equation 3) and mean negative log likelihood."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS)
    likelihood = functional.cross_entropy(logits.double(), labels)
    return {"expected_calibration_error": float(error), "log_loss": float(likelihood)}


def mistakes(probabilities: torch.Tensor, labels: torch.Tensor) -> Array:
    """Indices of the misclassified pictures, the most confident mistake first."""
    confidence, predicted = probabilities.max(1)
    wrong = torch.nonzero(predicted != labels)[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)].numpy()


def draw(
    pictures: Pictures,
    before: torch.Tensor,
    after: torch.Tensor,
    classes: Sequence[str],
    folder: Path,
) -> None:
    """Write the three plots."""
    labels = torch.from_numpy(pictures.labels)
    drawings = {
        "confusion": draw_confusion(predicted=after.argmax(1), labels=labels, classes=classes),
        "mistakes": draw_mistakes(pictures, after, classes),
        "reliability": draw_reliability(before, after, labels),
    }
    for name, figure in drawings.items():
        with replacing(folder / f"{name}.png") as draft:
            figure.savefig(draft, dpi=100, format="png")


def draw_mistakes(
    pictures: Pictures, probabilities: torch.Tensor, classes: Sequence[str]
) -> "Figure":
    """Draw a contact sheet of the most confident mistakes, each with both labels."""
    from matplotlib.figure import Figure

    labels = torch.from_numpy(pictures.labels)
    found = mistakes(probabilities, labels)
    columns = 6
    rows = max(1, -(-min(len(found), MISTAKES) // columns))
    figure = Figure(figsize=(1.9 * columns, 0.6 + 2.3 * rows), layout="constrained")
    figure.suptitle(f"The most confident of {len(found)} mistakes in {len(pictures)} pictures")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, place in zip(grid, found[:MISTAKES], strict=False):
        predicted = int(probabilities[place].argmax())
        confidence = float(probabilities[place, predicted])
        text = f"{classes[predicted]} {confidence:.2f}\nis {classes[labels[place]]}"
        axes.imshow(pictures.pixels[place])
        axes.set_title(text, fontsize=9, parse_math=False)
    return figure


def draw_reliability(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> "Figure":
    """Plot accuracy against predicted probability."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name, probabilities, style in (("before", before, "o--"), ("after", after, "o-")):
        confidence, predicted = probabilities.max(1)
        right = (predicted == labels).double().numpy()
        bins = np.minimum((confidence.numpy() * BINS).astype(int), BINS - 1)
        used = np.unique(bins)
        mean_confidence = [confidence.numpy()[bins == number].mean() for number in used]
        accuracies = [right[bins == number].mean() for number in used]
        axes.plot(mean_confidence, accuracies, style, label=f"{name} temperature scaling", ms=4)
    axes.set(xlabel="predicted probability", ylabel="accuracy")
    axes.set(title="Reliability diagram", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def show(results: dict[str, Any], pictures: dict[str, int]) -> None:
    """Print the metrics."""
    from rich.table import Table

    table = Table("class", "precision", "recall", title=f"Accuracy {results['accuracy']:.4f}")
    for name, row in results["classes"].items():
        table.add_row(name, f"{row['precision']:.3f}", f"{row['recall']:.3f}")
    console.out.print(table)
    found = results["calibration"]
    before, after = (found[name]["expected_calibration_error"] for name in ("before", "after"))
    console.out.print(
        f"on {pictures['test']} test pictures; expected calibration error {before:.4f}, "
        f"and {after:.4f} with temperature {found['temperature']:.3f}",
        soft_wrap=True,
    )
    if pictures["validation"] < FEW_PICTURES:
        console.out.print(
            f"the temperature comes from {pictures['validation']} held-out pictures, too few to "
            "trust the probabilities. Hold out more with --validation.",
            soft_wrap=True,
        )
