"""From a PyTorch model to a fast, safe, managed endpoint on TorchServe.

`marship.Client` and `marship.AsyncClient` are found on first use: this package travels
inside every archive, where nothing but `errors`, `contract` and `serving` exists, so it
imports nothing by itself.
"""

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client"]

# ONNX Runtime 1.32 keeps error messages, which hold names of a graph and values of requests, in
# ~/.cache for its telemetry. It reads this when it is imported: always after marship.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module's attributes have no common type
    if name in __all__:
        from marship import client

        return getattr(client, name)
    raise AttributeError(f"module 'marship' has no attribute {name!r}")
