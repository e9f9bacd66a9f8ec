"""From a PyTorch model to a fast, safe, managed endpoint on TorchServe.

    export, optimize, package, check    the steps from a trained model to an archive, each with its
                                        settings and its result
    Client, AsyncClient                 the management and inference APIs of a running server
    MarshipError and those below it     what all of them raise: see `marship.errors`

These names are the public interface; every other module is internal and may change.

They are found on first use: this package travels inside every archive, where nothing but
`errors`, `contract` and `serving` exists, so it imports nothing by itself.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from marship.version import VERSION

if TYPE_CHECKING:
    from marship.client import AsyncClient, Client
    from marship.client.clients import Model, ModelStatus, Worker
    from marship.errors import (
        CheckpointError,
        DataError,
        DecryptionError,
        InvalidInputError,
        KeysMissingError,
        KeyStoreFullError,
        LoadError,
        MalformedError,
        MarshipError,
        ModelError,
        NoAnswerError,
        NotFoundError,
        NotRunningError,
        PackageError,
        ParityError,
        PartyError,
        PrivateError,
        RateLimitError,
        ReplayError,
        RequestError,
        ResponseTimeoutError,
        RolloutError,
        ScaledToZeroError,
        SealError,
        ServerError,
        SignatureError,
        StorageError,
        TLSError,
        TokenError,
        TooLargeError,
        TrainingError,
        UnsupportedError,
        UnsupportedMediaError,
        UsageError,
        WorkerDiedError,
    )
    from marship.exporting.settings import ExportSettings
    from marship.exporting.step import Exported, export
    from marship.operate.check import Checked, Response, check
    from marship.optimizing.settings import OptimizeSettings
    from marship.optimizing.step import Optimized, optimize
    from marship.packaging.settings import PackageSettings
    from marship.packaging.step import package

__version__ = VERSION
__all__ = [
    "AsyncClient",
    "Checked",
    "CheckpointError",
    "Client",
    "DataError",
    "DecryptionError",
    "ExportSettings",
    "Exported",
    "InvalidInputError",
    "KeyStoreFullError",
    "KeysMissingError",
    "LoadError",
    "MalformedError",
    "MarshipError",
    "Model",
    "ModelError",
    "ModelStatus",
    "NoAnswerError",
    "NotFoundError",
    "NotRunningError",
    "OptimizeSettings",
    "Optimized",
    "PackageError",
    "PackageSettings",
    "ParityError",
    "PartyError",
    "PrivateError",
    "RateLimitError",
    "ReplayError",
    "RequestError",
    "Response",
    "ResponseTimeoutError",
    "RolloutError",
    "ScaledToZeroError",
    "SealError",
    "ServerError",
    "SignatureError",
    "StorageError",
    "TLSError",
    "TokenError",
    "TooLargeError",
    "TrainingError",
    "UnsupportedError",
    "UnsupportedMediaError",
    "UsageError",
    "Worker",
    "WorkerDiedError",
    "check",
    "export",
    "optimize",
    "package",
]

_PLACES = {
    **dict.fromkeys(("AsyncClient", "Client", "Model", "ModelStatus", "Worker"), "client.clients"),
    **dict.fromkeys(("ExportSettings", "Exported", "export"), "exporting.step"),
    **dict.fromkeys(("OptimizeSettings", "Optimized", "optimize"), "optimizing.step"),
    **dict.fromkeys(("PackageSettings", "package"), "packaging.step"),
    **dict.fromkeys(("Checked", "Response", "check"), "operate.check"),
}

# ONNX Runtime 1.32 keeps error messages, which hold names of a graph and values of requests, in
# ~/.cache for its telemetry. It reads this when it is imported: always after marship.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module's attributes have no common type
    if name in __all__:
        return getattr(import_module(f"marship.{_PLACES.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'marship' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
