"""Optimization passes, one file each; each documents what it needs and guarantees."""
