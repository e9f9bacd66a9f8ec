"""Engines run archives: each starts and stops servers, and manages the models on them."""
