"""OnnxHandler: the base class of all handlers.

A custom handler overrides `prepare`, `decode`, `encode` and `advice`, each for a single request,
and `interface`, which says what requests and responses look like; the service does batching,
errors, headers and timings.
"""

from collections.abc import Mapping, Sequence

from marship.serving import hosts
from marship.serving.hosts import Context
from marship.serving.message import Reply, Request, hidden
from marship.serving.metrics import Clock
from marship.serving.placement import Placement
from marship.serving.service import Service

__all__ = ["Clock", "Context", "OnnxHandler", "Placement", "Reply", "Request", "hidden"]


class OnnxHandler(Service):
    """Serves an ONNX model: tensors in, tensors out.

    Hosts that instantiate a handler's class themselves call `initialize` and `handle`.
    """

    def initialize(self, context: Context) -> None:
        """Load the model of a host's context: called by the host, once in each worker.

        Raises:
            LoadError: The model cannot be served; the message says why.
            SealError: The model is sealed and cannot be decrypted.
        """
        hosts.initialize(self, context)

    def handle(self, data: Sequence[Mapping[str, object]], context: Context) -> list[bytes]:
        """Handle a batch that the host has parsed itself.

        Args:
            data: One mapping for each request: `body`, or form fields by name.
            context: The host's context, which gets each response's status and headers.
        """
        return hosts.handle(self, data, context)
