"""Patches TorchServe's worker script to use the buffered transport."""

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket
from typing import Any

from marship.serving.hosts.torchserve.wire import FrontendConnection, Send
from marship.serving.message import MAX_FORM_FIELDS, Request

logger = logging.getLogger(__name__)

KNOWN_VERSION = "0.12.0"
KNOWN_FILES = {
    "protocol/otf_message_handler.py": (
        "83e82dc62b4a95a362efe4518786c6b389b895b85acaf37721aaff042ec9989a"
    ),
    "service.py": "f18259269551299d25f4e9d2bdc916c8308c10233501df08196cc7cfa2d0d291",
    "model_service_worker.py": "3640d5ae3d03e229cc1980f8bfbb3642865cb49f9ead1769bf41a30aa4e75343",
}
"""SHA-256 of the files whose functions are replaced, or that call them."""

PREDICT, LOAD = b"I", b"L"


def install(
    answer: Callable[[Sequence[Request], Send], bytes],
    *,
    spins: Callable[[], bool] | None = None,
    max_fields: int = MAX_FORM_FIELDS,
) -> bool:
    """Patch this worker to use the buffered transport and `answer`, if its version is known.

    Args:
        answer: Handles a batch and returns the last message; may send others before.
        spins: For `FrontendConnection`.
        max_fields: For `FrontendConnection`.

    Returns:
        Whether it was patched; if not, a warning is logged and the stock functions stay.
    """
    from ts import service, version
    from ts.protocol import otf_message_handler

    if not runs_here():
        return False
    worker = sys.modules["__main__"]
    if reason := unknown(version.__version__.strip(), Path(service.__file__).parent):
        logger.warning("TorchServe's own, slower transport is used: %s", reason)
        return False
    connections: dict[socket, FrontendConnection] = {}
    stock_predict = service.Service.predict

    def retrieve_msg(sock: socket) -> tuple[bytes, Any]:
        connection = connections.get(sock) or connections.setdefault(
            sock, FrontendConnection(sock, spins=spins, max_fields=max_fields)
        )
        command = connection.recv(1)
        if command == PREDICT:
            return command, _Batch(connection.batch())
        if command == LOAD:
            return command, otf_message_handler._retrieve_load_msg(connection)
        raise ValueError(f"a message must begin with I or L, got {command!r}")

    def predict(self: Any, batch: Any) -> bytes:  # noqa: ANN401  TorchServe's own
        is_ours = isinstance(batch, _Batch)
        return answer(batch, self.cl_socket.sendall) if is_ours else stock_predict(self, batch)

    worker.retrieve_msg = retrieve_msg  # type: ignore[attr-defined]  # the script's own global
    service.Service.predict = predict
    return True


def runs_here() -> bool:
    """Whether this process is a worker of TorchServe, which starts model_service_worker.py.

    Otherwise a test or a tool uses the handler, and there is no socket to read.
    """
    return hasattr(sys.modules["__main__"], "TorchModelServiceWorker")


class _Batch(list[Request]):
    """Requests from the buffered transport, as opposed to those of the stock reader."""


def unknown(version: str, folder: Path) -> str | None:
    """Why this TorchServe must not be patched, or None."""
    if version != KNOWN_VERSION:
        return f"version {KNOWN_VERSION} is known, this is {version}"
    for name, digest in KNOWN_FILES.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            return f"{name} of TorchServe was changed"
    return None
