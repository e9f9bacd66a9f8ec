"""Corrects the output shapes that the graph of an exported ONNX file declares."""

from collections.abc import Mapping
from pathlib import Path

import onnx

from marship.contract import Arrays
from marship.errors import UsageError


def state_output_shapes(path: Path, results: list[tuple[Mapping[str, int], Arrays]]) -> None:
    """Correct declared output shapes that differ from those of actual runs.

    torch.export treats the length of a recurrent layer's output as constant, although the
    operator's is not.

    Args:
        path: The ONNX file, changed in place.
        results: For several sizes of the variable axes, the model's outputs.
    """
    graph = onnx.load(str(path), load_external_data=False)
    wrong = False
    for value in graph.graph.output:
        for index, axis in enumerate(value.type.tensor_type.shape.dim):
            given = [arrays[value.name].shape[index] for _, arrays in results]
            if not axis.HasField("dim_value") or set(given) == {axis.dim_value}:
                continue
            wrong = True
            names = [n for n in results[0][0] if given == [sizes[n] for sizes, _ in results]]
            axis.dim_param = names[0] if names else f"{value.name}_{index}"
    if wrong:
        del graph.graph.value_info[:]  # inferred from the wrong constant
        onnx.save(graph, str(path))


def name_output_axes(path: Path, names: tuple[str, ...]) -> None:
    """Name axes of outputs, in place of expressions of the inputs' axes.

    Args:
        path: The ONNX file, changed in place.
        names: As `Recipe.output_axes`.

    Raises:
        UsageError: A name is not for a variable axis of an output.
    """
    if not names:
        return
    graph = onnx.load(str(path), load_external_data=False)
    axes = {
        f"{value.name}:{index}": axis
        for value in graph.graph.output
        for index, axis in enumerate(value.type.tensor_type.shape.dim)
        if not axis.HasField("dim_value")
    }
    for text in names:
        place, _, name = text.rpartition("=")
        if place not in axes:
            raise UsageError(
                f"output_axes must name variable axes, {' or '.join(axes)}, got {place!r}. "
                "Correct the recipe."
            )
        axes[place].dim_param = name
    onnx.save(graph, str(path))
