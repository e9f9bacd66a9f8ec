"""Three parties: an ONNX graph as a program, its archives, and the client that asks them."""
