"""From an ONNX file to a `.mar` archive, its settings, seal and bill of materials."""
