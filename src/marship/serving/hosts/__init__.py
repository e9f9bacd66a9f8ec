"""The hosts of a service, each in its own folder.

A host loads a service with `Service.load`, passes it each batch through `replies`, and sends what
comes back. Of a host that loads a handler's class itself, the context tells which one it is: by
now it is TorchServe's.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marship.serving.hosts.torchserve.entry import Context, handle, initialize

__all__ = ["Context", "handle", "initialize"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever stands there
    """Import them on use: the acceptor, which is in this package too, needs no ONNX Runtime."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from marship.serving.hosts.torchserve import entry

    return getattr(entry, name)
