"""Replaces the maps that a classifier's ONNX file gives by tensors, whose classes have names.

skl2onnx, onnxmltools and others end a classifier with a ZipMap, which turns each row of
probabilities into a map from class to probability. A sequence of maps is no tensor: it can neither
be batched nor sent as one. The tensor before it can, and JSON responses name its classes again.

Source: ONNX's operators of ai.onnx.ml, ZipMap-1.
"""

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from marship.errors import ModelError

_DOMAIN = "ai.onnx.ml"
_OPSET = 13
"""Of a file that had no operators of the default set; Identity needs one."""


def replaced(model: ModelProto) -> dict[str, tuple[str, ...]]:
    """Replace outputs that are the maps of a ZipMap by their tensors, in place.

    Returns:
        The names of the classes along the last axis, by output; empty without such an output.

    Raises:
        ModelError: The classes of a map are missing, or one occurs twice.
    """
    outputs = {value.name: value for value in model.graph.output}
    labels = {}
    for node in model.graph.node:
        if (node.domain, node.op_type) != (_DOMAIN, "ZipMap") or node.output[0] not in outputs:
            continue
        name = node.output[0]
        labels[name] = _classes(node)
        node.CopyFrom(onnx.helper.make_node("Identity", node.input, node.output, node.name))
        outputs[name].type.CopyFrom(_row_of(len(labels[name])))
    if labels and not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", _OPSET))
    return labels


def _classes(node: NodeProto) -> tuple[str, ...]:
    """The names of a map's classes, in the order of the tensor's last axis."""
    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    texts = [text.decode("utf-8", "replace") for text in values.get("classlabels_strings", ())]
    names = tuple(texts or map(str, values.get("classlabels_int64s", ())))
    if not names or len(set(names)) < len(names):
        raise ModelError(
            f"the classes of {node.output[0]} must have names of their own, got "
            f"{', '.join(names)[:200] or 'none'}. Convert the classifier again, or with zipmap off."
        )
    return names


def _row_of(classes: int) -> TypeProto:
    """A table of float32 with a column for each class; ZipMap takes no other type."""
    table: TypeProto = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, [None, classes])
    return table
