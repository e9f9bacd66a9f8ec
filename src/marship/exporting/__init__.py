"""Exports a checkpoint to an ONNX file, and proves it equivalent to the PyTorch model."""
