"""Packages an ONNX model as a `.mar` archive: settings, encryption, bill of materials."""
