"""Serves any ONNX model: tensors in, tensors out, in JSON, KServe v2 JSON or npy."""

from marship.serving.handler import OnnxHandler


class Handler(OnnxHandler):
    """The base handler as it is: TorchServe wants one class defined in the handler's file."""
