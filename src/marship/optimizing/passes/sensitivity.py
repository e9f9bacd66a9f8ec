"""Sensitivity analysis: which layers must stay float for int8 to keep the accuracy.

Each layer alone is quantized to int8, and the noise that it causes in the model's outputs is
measured (Nagel et al. 2021, A White Paper on Neural Network Quantization, section 3.6). The
noisiest are left float: as few as bring the loss of the recipe's metric within its budget. All
this is measured on calibration rows that were not used for ranges, and never on the held-out rows
that judge the final variant.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Arrays
from marship.optimizing import measure
from marship.optimizing.choice import within
from marship.optimizing.passes.layers import Layer, Plan
from marship.optimizing.source import ExportedModel, Goal
from marship.proof.parity import runner

Quantize = Callable[[Sequence[str]], Path]
"""Writes the model with these nodes left float, and returns the file."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Evaluation rows, with the exported model's outputs for them."""

    source: ExportedModel
    goal: Goal
    rows: Arrays
    wanted: Arrays

    @classmethod
    def of(cls, source: ExportedModel, goal: Goal, rows: Arrays) -> "Probe":
        """Compute the exported model's outputs."""
        return cls(source, goal, rows, _outputs(source, source.path, rows))

    def noise(self, model: Path) -> float:
        """The mean squared error of a model's outputs, relative to their mean square."""
        outputs = _outputs(self.source, model, self.rows)
        floats = [name for name, wanted in self.wanted.items() if wanted.dtype.kind == "f"]
        off = sum(float(np.square(outputs[n] - self.wanted[n]).sum()) for n in floats)
        power = sum(float(np.square(self.wanted[n]).sum()) for n in floats)
        return off / power if power else off

    def loss(self, model: Path) -> float:
        """How much worse a model is than the exported one by the recipe's metric."""
        outputs = _outputs(self.source, model, self.rows)
        best = self.goal.quality(self.wanted, self.rows)
        return best - self.goal.quality(outputs, self.rows)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A layer, and the noise in the outputs when only this layer is in int8."""

    layer: Layer
    noise: float


@dataclass(frozen=True, slots=True)
class Blame:
    """The result: which layers must stay float.

    Attributes:
        float_layers: The fewest, noisiest layers that keep the budget; none if nothing keeps it.
        tried: How many layers were tried alone within the time.
        losses: The loss, by the number of noisiest layers left float.
    """

    float_layers: tuple[Suspect, ...]
    tried: int
    losses: Mapping[int, float]

    def entry(self, layers: int) -> dict[str, Any]:
        """The entry for `optimize.json`."""
        return {
            "layers": layers,
            "layers_tried": self.tried,
            "loss_by_float_layers": {str(n): self.losses[n] for n in sorted(self.losses)},
            "stays_float": [
                {"node": one.layer.name, "operator": one.layer.operator, "noise": one.noise}
                for one in self.float_layers
            ],
        }


def find_blame(plan: Plan, quantize: Quantize, probe: Probe) -> Blame:
    """Find the fewest layers that must stay float for the loss to be within the budget."""
    source, goal = probe.source, probe.goal
    suspects = rank(plan, quantize, probe)
    losses: dict[int, float] = {}

    def loss(count: int) -> float:
        if count not in losses:
            source.report(f"{count} of {len(plan.layers)} layers left float")
            nodes = [node for suspect in suspects[:count] for node in suspect.layer.nodes]
            losses[count] = probe.loss(quantize(nodes))
        return losses[count]

    most = min(len(suspects), len(plan.layers) - 1)
    count = fewest(most, loss, goal.budget) if most else None
    return Blame(tuple(suspects[: count or 0]), len(suspects), losses)


def rank(plan: Plan, quantize: Quantize, probe: Probe) -> list[Suspect]:
    """The layers that were tried within the time, the noisiest first.

    It starts at both ends, which are usually the most sensitive.
    """
    deadline = time.perf_counter() + probe.goal.limit_s
    found: list[Suspect] = []
    for layer in _from_both_ends(plan.layers):
        if time.perf_counter() > deadline:
            break
        probe.source.report(f"layer {len(found) + 1} of {len(plan.layers)} alone in int8")
        alone = quantize(plan.all_but(layer.name))
        found.append(Suspect(layer, probe.noise(alone)))
    return sorted(found, key=lambda suspect: suspect.noise, reverse=True)


def fewest(most: int, loss: Callable[[int], float], budget: float) -> int | None:
    """The smallest number up to `most` whose loss is within the budget, None if there is none.

    Assumes that more float layers lose less. The number is doubled until it fits, then bisected.
    """
    low, high = 0, 1
    while not within(loss(min(high, most)), budget):
        if high >= most:
            return None
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if within(loss(middle), budget):
            high = middle
        else:
            low = middle
    return high


def _from_both_ends(layers: Sequence[Layer]) -> Iterator[Layer]:
    for number in range(len(layers)):
        yield layers[number // 2 if number % 2 == 0 else -1 - number // 2]


def _outputs(source: ExportedModel, model: Path, rows: Arrays) -> Arrays:
    return measure.predict_rows(runner(model), source.contract, rows)
