"""Plots the confusion matrix and the most confused pairs of classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from marship.contract import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 80
"""With more classes, the matrix shows those with the most mistakes, to fit on a screen."""
MOST_PAIRS = 20
LONGEST_NAME = 24
CELL_IN, DIGIT_IN, LETTER_IN, ROW_IN = 0.26, 0.085, 0.08, 0.27
"""Inches: least edge of a cell, width of a digit, width of a letter, height of a pair's row."""
SMALLEST_IN, BAR_IN, GAP_IN, COUNT_IN = 2.6, 1.6, 0.6, 1.2
"""Inches: smallest matrix, longest bar, space around panels, a bar's label."""
NUMBER_PT, LABEL_PT = 7, 8


def draw_confusion(
    *, predicted: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> "Figure":
    """Draw the confusion matrix, rows coloured by shares of the true class, and the worst pairs.

    The figure grows with the number of classes, so that every label and number can be read.
    """
    from matplotlib.figure import Figure
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    table = multiclass_confusion_matrix(predicted, labels, len(classes)).numpy()
    names = [shortened(name) for name in classes]
    shown, pairs = most_mistaken(table), confused_pairs(table)
    cell_in = max(CELL_IN, DIGIT_IN * len(str(table.max())) + 0.03, SMALLEST_IN / len(shown))
    side_in, labels_in = cell_in * len(shown), LETTER_IN * max(len(names[n]) for n in shown)
    texts = [f"{names[true]}, predicted {names[predicted]}" for true, predicted, _ in pairs]
    texts_in = LETTER_IN * max(map(len, texts), default=0)
    left_in, pairs_in = labels_in + GAP_IN, ROW_IN * max(len(pairs), 1)
    bars_in = left_in + side_in + GAP_IN + texts_in
    width_in = bars_in + BAR_IN + COUNT_IN
    height_in = max(side_in + labels_in + GAP_IN, pairs_in + GAP_IN / 2) + GAP_IN
    figure = Figure(figsize=(width_in, height_in))

    def panel(left: float, width: float, height: float) -> Any:  # noqa: ANN401  matplotlib's stubs leave it open
        bottom = height_in - GAP_IN - height
        place = left / width_in, bottom / height_in, width / width_in, height / height_in
        return figure.add_axes(place)

    _draw_matrix(panel(left_in, side_in, side_in), table, shown, names)
    _draw_pairs(panel(bars_in, BAR_IN, pairs_in), table, pairs, texts)
    return figure


def shortened(name: str) -> str:
    """The name, shortened in the middle if it is long: both ends tell classes apart."""
    if len(name) <= LONGEST_NAME:
        return name
    half = LONGEST_NAME // 2
    return f"{name[: half - 1]}…{name[-half:]}"


def most_mistaken(table: Array) -> Array:
    """Indices of the classes to show, in order: all, or those with the most mistakes.

    Args:
        table: int64, shape (classes, classes): counts by true class and by predicted class.
    """
    wrong = table.sum(0) + table.sum(1) - 2 * table.diagonal()
    return np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])


def confused_pairs(table: Array) -> list[tuple[int, int, int]]:
    """The most frequent mistakes as true class, predicted class and count, the largest first."""
    wrong = table - np.diag(table.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = np.column_stack(np.unravel_index(order, wrong.shape))
    return [(int(i), int(j), int(wrong[i, j])) for i, j in places if wrong[i, j]]


def _draw_matrix(axes: Any, table: Array, shown: Array, names: Sequence[str]) -> None:  # noqa: ANN401  matplotlib's stubs leave it open
    from matplotlib.colors import PowerNorm

    shares = (table / np.maximum(table.sum(1, keepdims=True), 1))[np.ix_(shown, shown)]
    counts = table[np.ix_(shown, shown)]
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # rare mistakes stand out, too
    part = (
        ""
        if len(shown) == len(names)
        else f"; the {len(shown)} of {len(names)} classes with the most mistakes"
    )
    axes.set_title(f"counts; colour by share of the row{part}", loc="left", fontsize=10)
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks = [names[place] for place in shown]
    style = {"fontsize": LABEL_PT, "parse_math": False}
    axes.set_xticks(range(len(shown)), ticks, rotation=90, **style)
    axes.set_yticks(range(len(shown)), ticks, **style)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.3 else "black"
        place = {"ha": "center", "va": "center", "fontsize": NUMBER_PT}
        axes.text(column, row, str(counts[row, column]), color=color, **place)


def _draw_pairs(
    axes: Any,  # noqa: ANN401  the same
    table: Array,
    pairs: Sequence[tuple[int, int, int]],
    texts: Sequence[str],
) -> None:
    counts = [count for *_, count in pairs]
    bars = axes.barh(range(len(pairs)), counts, 0.6, color="#1864ab")
    shares = [f"{count} of {table[true].sum()}" for true, _, count in pairs]
    axes.bar_label(bars, shares, padding=3, fontsize=LABEL_PT)
    axes.set_yticks(range(len(pairs)), texts, fontsize=LABEL_PT, parse_math=False)
    axes.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
    title = "most frequent mistakes" if pairs else "no mistakes"
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(labelbottom=False, length=0)
