"""The hosts that call a handler, each in a folder of its own.

A host loads a handler with `OnnxHandler.load`, passes it each batch through `replies`, and sends
what comes back. One whose worker calls `initialize` and `handle` of the handler's class itself is
told by its context.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marship.serving.handler import OnnxHandler


def initialize(handler: "OnnxHandler", context: Any) -> None:  # noqa: ANN401  the host's own
    """Load a handler as the context of its host says."""
    from marship.serving.hosts.torchserve import entry

    entry.initialize(handler, context)


def handle(
    handler: "OnnxHandler",
    data: Sequence[Mapping[str, object]],
    context: Any,  # noqa: ANN401  the host's own
) -> list[bytes]:
    """The bodies of a batch's responses; their status and headers go to the context."""
    from marship.serving.hosts.torchserve import entry

    return entry.handle(handler, data, context)
