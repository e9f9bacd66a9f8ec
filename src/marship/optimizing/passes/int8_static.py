"""Static int8: weights and activations, with scales calibrated on training data.

Needs: `calibration.npz` in the run folder, training inputs by name; matrix products or
convolutions with constant weights.
Guarantees: the same inputs and outputs, in float32; rows do not influence each other, since
all scales are constants. Weights have one scale for each output channel. The file holds
QuantizeLinear and DequantizeLinear pairs (QDQ) of the ONNX standard, which every provider reads.

With targets in `calibration.npz` the pass measures its loss: every fourth row is not used for
calibration but for evaluation. If int8 in all layers loses more than the recipe's budget, it tries
ranges without outliers, then leaves the few layers float that `sensitivity` finds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from marship.contract import Arrays
from marship.errors import MarshipError
from marship.optimizing import measure
from marship.optimizing.choice import within
from marship.optimizing.passes import layers, saturation
from marship.optimizing.passes.guard import keep_float
from marship.optimizing.passes.layers import Plan
from marship.optimizing.passes.sensitivity import Probe, find_blame
from marship.optimizing.source import ExportedModel, NotBuiltError
from marship.proof.cases import allowed
from marship.proof.parity import first_line

NAME = "int8_static"
PRODUCTS = ["MatMul", "Gemm"]
CONVOLUTIONAL = [
    *PRODUCTS,
    "Conv",
    "Add",
    "Mul",
    "Relu",
    "Clip",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Sigmoid",
    "LeakyRelu",
    "Resize",
]
"""Between convolutions all stays in int8; elsewhere only products gain, the rest would lose."""

BATCH_ROWS = 16
JUDGED_EVERY = 4
HISTOGRAM_ROWS = 64
"""Maximum rows for histograms of all activations, which are slow."""
METHODS = ("MinMax", "Percentile")
PERCENTILE = 99.99


def build(source: ExportedModel, target: Path) -> dict[str, Any]:
    """Write the quantized model to `target`.

    Returns:
        Details for the report.

    Raises:
        NotBuiltError: Training data is missing, there is nothing to quantize, or ONNX Runtime
            cannot do it.
        DataError: The recipe's judge fails on calibration rows.
    """
    from marship.optimizing.passes.prepare import check_operators, operators, prepared

    if source.calibration is None:
        raise NotBuiltError("there is no calibration data: real inputs, as calibration.npz or flag")
    if source.goal is not None and len(next(iter(source.calibration.values()))) < JUDGED_EVERY:
        raise NotBuiltError(f"calibration.npz with targets holds fewer than {JUDGED_EVERY} rows")
    check_operators(source.path, [*PRODUCTS, "Conv"])
    with prepared(source, target.parent) as model:
        types = CONVOLUTIONAL if "Conv" in operators(model) else PRODUCTS
        quantizer = Quantizer(source, model, tuple(types))
        try:
            return saturation.entry() | _search(quantizer, layers.plan(model, types), target)
        except MarshipError:
            raise
        except Exception as error:  # the quantizer raises errors of many unrelated types
            raise NotBuiltError(first_line(error)) from error


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A prepared model and its calibration rows; ranges are computed once for each method."""

    source: ExportedModel
    model: Path
    types: tuple[str, ...]

    def write(self, target: Path, floats: Sequence[str], method: str = METHODS[0]) -> Path:
        """Write the model with these nodes left float."""
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        ranges = self.model.with_name(f"{method}.json")
        reader = None if ranges.is_file() else self._reader(method)
        for old in target.parent.glob(f"{target.name}*"):
            old.unlink()  # external weights would be appended to an existing file
        quantize_static(
            self.model,
            target,
            reader,
            calibration_cache_path=ranges,
            calibrate_method=CalibrationMethod[method],
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(self.types),
            nodes_to_exclude=list(floats),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=saturation.saturates(),
            use_external_data_format=self.source.has_outside_weights,
            extra_options={"MatMulConstBOnly": True, **(reader.options if reader else {})},
        )
        keep_float(target, set(floats))
        return target

    def _reader(self, method: str) -> Any:  # noqa: ANN401  onnxruntime ships no types
        """A data reader of the calibration rows, in batches."""
        rows = _rows(self.source, judged=False)
        names = [spec.name for spec in self.source.contract.inputs]
        most = None if method == METHODS[0] else HISTOGRAM_ROWS
        rows = {name: rows[name][:most] for name in names}
        return _reader(rows, None if self._takes_requests() else _rows_at_once(self.source))

    def _takes_requests(self) -> bool:
        """Whether each calibration row is a whole request, with all axes of the inputs."""
        return measure.holds_requests(self.source.contract, self.source.calibration or {})


def _search(quantizer: Quantizer, plan: Plan, target: Path) -> dict[str, Any]:
    """Write the variant with the fewest float layers that is within the budget."""
    source, goal = quantizer.source, quantizer.source.goal
    quantizer.write(target, plan.outside)
    if goal is None:
        return {}
    trial = quantizer.model.with_name("trial.onnx")
    probe = Probe.of(source, goal, _rows(source, judged=True))
    losses = {METHODS[0]: probe.loss(target)}
    if not within(losses[METHODS[0]], goal.budget):
        source.report("ranges without outliers")
        losses[METHODS[1]] = probe.loss(quantizer.write(trial, plan.outside, METHODS[1]))
    method = min(losses, key=lambda name: losses[name])
    found = {"ranges": method, "budget": goal.budget, "loss_all_int8": losses}
    if within(losses[method], goal.budget):
        quantizer.write(target, plan.outside, method)
        return found | {"loss": losses[method], "stays_float": []}
    blame = find_blame(
        plan, lambda floats: quantizer.write(trial, [*plan.outside, *floats], method), probe
    )
    floats = [node for suspect in blame.float_layers for node in suspect.layer.nodes]
    quantizer.write(target, [*plan.outside, *floats], method)
    return found | blame.entry(len(plan.layers))


def _rows(source: ExportedModel, *, judged: bool) -> Arrays:
    """The calibration rows for evaluation, or those for calibration: all without a goal."""
    rows = source.calibration or {}
    if source.goal is None:
        return rows
    count = len(next(iter(rows.values())))
    chosen = (np.arange(count) % JUDGED_EVERY == JUDGED_EVERY - 1) == judged
    return {name: array[chosen] for name, array in rows.items()}


def _rows_at_once(source: ExportedModel) -> int:
    spec = source.contract.inputs[0]
    if not spec.shape:
        raise NotBuiltError(
            f"input {spec.name} has no axis for rows: give calibration data with an axis for "
            "requests in front of each array"
        )
    size = spec.shape[0]
    return allowed(source.contract, size, BATCH_ROWS) if isinstance(size, str) else size


def _reader(rows: Arrays, rows_at_once: int | None) -> Any:  # noqa: ANN401  onnxruntime ships no types
    """A data reader; without a number of rows at once each row is a request of its own."""
    from onnxruntime.quantization import CalibrationDataReader

    count = len(next(iter(rows.values())))
    at_once = min(rows_at_once or 1, count)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the same
        options: ClassVar = {
            "CalibPercentile": PERCENTILE,
            "CalibTensorRangeSymmetric": False,
            "CalibStridedMinMax": at_once,  # otherwise all activations are kept in memory
        }

        def __init__(self) -> None:
            self.set_range(0, len(self))

        def __len__(self) -> int:
            return count // at_once * at_once  # whole batches

        def set_range(self, start_index: int, end_index: int) -> None:
            part = {name: array[start_index:end_index] for name, array in rows.items()}
            batches = measure.requests(part) if rows_at_once is None else _batches(part, at_once)
            self.batches = batches

        def get_next(self) -> Arrays | None:
            return next(self.batches, None)

    return Reader()


def _batches(rows: Arrays, at_once: int) -> Iterator[Arrays]:
    for start in range(0, len(next(iter(rows.values()))), at_once):
        yield {name: array[start : start + at_once] for name, array in rows.items()}
