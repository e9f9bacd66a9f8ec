"""The hosts of a service, each in its own folder.

A host loads a service with `Service.load`, passes it each batch through `replies`, and sends what
comes back. Of a host that loads a handler's class itself, the context tells which one it is: by
now it is TorchServe's.
"""

from marship.serving.hosts.torchserve.entry import Context, handle, initialize

__all__ = ["Context", "handle", "initialize"]
