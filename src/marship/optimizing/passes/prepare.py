"""Preparation for both int8 passes: constant folding, batch norm fusion, shape inference."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marship.optimizing.source import ExportedModel, NotBuiltError
from marship.proof.parity import first_line


@contextmanager
def prepared(source: ExportedModel, folder: Path) -> Iterator[Path]:
    """Yield the model prepared for the quantizers, in a temporary folder below `folder`.

    Raises:
        NotBuiltError: ONNX Runtime cannot prepare the model.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=folder, prefix=".prepared.") as place:
        path = Path(place) / "model.onnx"
        try:
            quant_pre_process(
                source.path,
                path,
                skip_symbolic_shape=True,  # it fails on unknown operators
                save_as_external_data=source.has_outside_weights,
            )
        except Exception as error:  # the same holds for what it raises
            raise NotBuiltError(first_line(error)) from error
        yield path


def operators(path: Path) -> set[str]:
    """The types of the operators in a graph."""
    import onnx

    return {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}


def check_operators(path: Path, wanted: list[str]) -> None:
    """Reject a graph without any of the wanted operators.

    Raises:
        NotBuiltError: The graph has none of them.
    """
    if not operators(path) & set(wanted):
        raise NotBuiltError(f"the graph has none of {', '.join(wanted)} to quantize")
