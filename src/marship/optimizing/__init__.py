"""Variants of an ONNX file, measured; the fastest one within the accuracy budget is chosen."""
