"""OnnxHandler: the base of everything in handlers/.

A handler of one's own overrides `prepare`, `decode`, `encode` and `advice`, each for a single
request; batching, errors, headers and timings are the service's.
"""

from collections.abc import Mapping, Sequence

from marship.serving import hosts
from marship.serving.hosts import Context
from marship.serving.message import Reply, Request, hidden
from marship.serving.service import Clock, Placement, Service

__all__ = ["Clock", "Context", "OnnxHandler", "Placement", "Reply", "Request", "hidden"]


class OnnxHandler(Service):
    """Serves an ONNX model: tensors in, tensors out.

    Hosts that load a handler's class themselves call `initialize` and `handle`.
    """

    def initialize(self, context: Context) -> None:
        """Load what a host's context says: the host calls this, once in a worker.

        Raises:
            LoadError: The worker must not serve this model; the message says why.
            SealError: The model is sealed and cannot be opened.
        """
        hosts.initialize(self, context)

    def handle(self, data: Sequence[Mapping[str, object]], context: Context) -> list[bytes]:
        """The responses to a batch that the host has parsed itself.

        Args:
            data: One mapping for each request: `body`, or form fields by name.
            context: The host's; takes each response's status and headers.
        """
        return hosts.handle(self, data, context)
