"""Replaces the maps that a classifier's ONNX file gives by tensors, whose classes have names.

skl2onnx, onnxmltools and others end a classifier with a ZipMap, which turns each row of
probabilities into a map from class to probability. A sequence of maps is no tensor: it can neither
be batched nor sent as one. The tensor before it can, and JSON responses name its classes again.

Source: ONNX's operators of ai.onnx.ml, ZipMap-1.
"""

import onnx
from onnx import ModelProto, NodeProto, TensorProto

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
    zipmaps = [
        node
        for node in model.graph.node
        if (node.domain, node.op_type) == (_DOMAIN, "ZipMap") and node.output[0] in outputs
    ]
    kinds = _kinds(model) if zipmaps else {}
    for node in zipmaps:
        name = node.output[0]
        labels[name] = _classes(node)
        node.CopyFrom(onnx.helper.make_node("Identity", node.input, node.output, node.name))
        kind = kinds.get(node.input[0], TensorProto.FLOAT)
        table = onnx.helper.make_tensor_type_proto(kind, [None, len(labels[name])])
        outputs[name].type.CopyFrom(table)
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


def _kinds(model: ModelProto) -> dict[str, int]:
    """The types of tensors, as far as they can be inferred, by name.

    ONNX Runtime's ZipMap takes float32 alone, yet converters write one behind float64, too.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # over 2 GB, or invalid
        return {}
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
