"""From a checkpoint to an ONNX file that is proven equal to the PyTorch model."""
