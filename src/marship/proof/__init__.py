"""Proofs about a model: its graph, test inputs, parity of two runs, independence of rows."""
