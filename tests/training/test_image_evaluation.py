"""Figures and pictures of a classifier."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from torch.nn import functional

from marship.fit.recipe import resolve
from recipes import REPOSITORY


@pytest.fixture(scope="module")
def evaluation() -> ModuleType:
    """training/evaluation.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/evaluation.py:measure")).__module__]


def drawn(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn with the probabilities of these logits over a temperature."""
    torch.manual_seed(0)
    logits = torch.randn(count, 5) * 3
    return logits, torch.multinomial((logits / temperature).softmax(1), 1)[:, 0]


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_labels_is_found(evaluation: ModuleType, true: float) -> None:
    """Labels drawn at a temperature give it back, and no temperature near it is more likely."""
    logits, labels = drawn(true)
    found = evaluation.fit_temperature(logits, labels)
    assert found == pytest.approx(true, rel=0.05)
    best = functional.cross_entropy(logits.double() / found, labels)
    for other in (found * 0.99, found * 1.01):
        assert functional.cross_entropy(logits.double() / other, labels) > best


def test_without_mistakes_the_temperature_stays_within_reason(evaluation: ModuleType) -> None:
    """Labels that are always right would want a temperature of 0: it stays at its lower end."""
    logits = torch.eye(5) * 9
    found = evaluation.fit_temperature(logits, torch.arange(5))
    assert found == pytest.approx(evaluation.COLDEST, rel=0.01)


def test_scaling_calibrates(evaluation: ModuleType) -> None:
    """Of overconfident logits, scaling takes most of the calibration error, and no accuracy."""
    logits, labels = drawn(2.5)
    temperature = evaluation.fit_temperature(logits, labels)
    found = evaluation.measure(logits, labels, temperature, [*"abcde"])
    before, after = (found["calibration"][name] for name in ("before", "after"))
    assert before["expected_calibration_error"] > 0.1
    assert after["expected_calibration_error"] < 0.02
    assert after["log_loss"] < before["log_loss"]
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_precision_and_recall_are_each_classes_own(evaluation: ModuleType) -> None:
    """Worked by hand: 2 of 3 called a are a, and 2 of 4 that are a are called so."""
    said, labels = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 0, 1, 0])
    logits = functional.one_hot(said, 3).float()
    found = evaluation.measure(logits, labels, 1.0, [*"abc"])["classes"]
    assert found["a"] == pytest.approx({"precision": 2 / 3, "recall": 1 / 2, "pictures": 4})
    assert found["b"] == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "pictures": 2})
    assert found["c"] == {"precision": 0, "recall": 0, "pictures": 0}


def test_mistakes_come_the_most_confident_first(evaluation: ModuleType) -> None:
    """Right answers are left out, however confident."""
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.99, 0.01], [0.2, 0.8]])
    found = evaluation.mistakes(probabilities, torch.tensor([0, 1, 1, 0]))
    assert found.tolist() == [2, 3, 1]


def pictures_of(labels: np.ndarray) -> Any:
    """Black pictures with these labels."""
    names = tuple(map(str, range(len(labels))))
    pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
    pictures = sys.modules["imagefolder"].Pictures
    return pictures(names, pixels, labels, np.array(names))


def test_a_confusion_has_a_row_for_what_is(evaluation: ModuleType) -> None:
    """Down is the truth, across the prediction: of three a, two were called b, and no b an a."""
    said, labels = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 0, 1])
    figure = evaluation.draw_confusion(predicted=said, labels=labels, classes=["a", "b"])
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    np.testing.assert_allclose(axes.images[0].get_array(), [[1 / 3, 2 / 3], [0, 1]])
    assert axes.images[0].origin == "upper"  # the first row is at the top, where 0 stands
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "1", (1, 0): "2", (1, 1): "1"}  # across, down
    assert [
        [tick.get_text() for tick in one]
        for one in (axes.get_xticklabels(), axes.get_yticklabels())
    ] == [["a", "b"]] * 2
    pairs = figure.axes[1]
    assert [tick.get_text() for tick in pairs.get_yticklabels()] == ["a, predicted b"]
    assert [text.get_text() for text in pairs.texts] == ["2 of 3"]


LONG = "a class of birds with a rather long name, number {}"


@pytest.mark.parametrize(("count", "name"), [(2, LONG), (10, "c{}"), (60, LONG), (150, "c{}")])
def test_every_text_of_a_confusion_can_be_read(
    evaluation: ModuleType, count: int, name: str
) -> None:
    """Of any number of classes: no text covers another, is cut off or is tiny."""
    rng = np.random.default_rng(count)
    labels = torch.from_numpy(rng.integers(0, count, 40 * count))
    right = torch.from_numpy(rng.random(len(labels)) < 0.5)
    said = torch.where(right, labels, (labels + 1) % count)
    classes = [name.format(number) for number in range(count)]
    figure = evaluation.draw_confusion(predicted=said, labels=labels, classes=classes)
    FigureCanvasAgg(figure).draw()
    shown = min(count, 80)
    matrix = figure.axes[0]
    assert len(matrix.get_yticklabels()) == shown
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = np.array([text.get_window_extent().extents for text in texts])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= figure.bbox.size).all()
    left, bottom, right, top = boxes.T
    meet = (left[:, None] < right) & (left < right[:, None])
    meet &= (bottom[:, None] < top) & (bottom < top[:, None])
    assert meet.sum() == len(texts), "each meets itself alone"
    assert min(text.get_size() for text in texts) >= 7
    cell = matrix.bbox.width / shown
    numbers = np.array([text.get_window_extent().width for text in matrix.texts])
    assert (numbers < cell).all()


def test_a_mistake_is_drawn_with_both_labels(evaluation: ModuleType) -> None:
    """What was said and how surely, and what it is; nothing of the right answers."""
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    figure = evaluation.draw_mistakes(pictures_of(np.array([1, 1, 0])), probabilities, ["a", "b"])
    shown = [axes.get_title() for axes in figure.axes if axes.images]
    assert shown == ["a 0.90\nis b", "b 0.80\nis a"]


def test_reliability_is_drawn_as_confidence_against_truth(evaluation: ModuleType) -> None:
    """Four answers of 0.9 of which three are right: a point at (0.9, 0.75), for each of the two."""
    before = torch.tensor([[0.9, 0.1]] * 4)
    after = torch.tensor([[0.7, 0.3]] * 4)
    figure = evaluation.draw_reliability(before, after, torch.tensor([0, 0, 0, 1]))
    points = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines[1:]}
    assert points == {
        "before temperature scaling": [pytest.approx([0.9, 0.75])],
        "after temperature scaling": [pytest.approx([0.7, 0.75])],
    }


@pytest.mark.parametrize("classes", [2, 30])
@pytest.mark.parametrize("right", [True, False])
def test_pictures_are_drawn_whatever_the_results(
    evaluation: ModuleType, tmp_path: Path, classes: int, right: bool
) -> None:
    """Two or thirty classes, with mistakes or without any: three PNGs that can be read."""
    count = 60
    labels = np.arange(count) % classes
    said = labels if right else (labels + 1) % classes
    probabilities = functional.one_hot(torch.from_numpy(said), classes).float()
    names = [f"class_{number} $a^b" for number in range(classes)]
    evaluation.draw(pictures_of(labels), probabilities, probabilities, names, tmp_path)
    for name in ("confusion", "mistakes", "reliability"):
        with Image.open(tmp_path / f"{name}.png") as drawing:
            drawing.load()
            assert min(drawing.size) > 200
