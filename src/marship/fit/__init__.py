"""Training: the loop, checkpoints, and the run folder that later steps read."""
