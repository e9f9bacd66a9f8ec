"""What a model is held against: its graph, inputs for it, and how far two runs are apart."""
