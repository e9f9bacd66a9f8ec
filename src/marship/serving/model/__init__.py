"""A model in memory: its session, weights, sealed files, and the batches that it runs."""
