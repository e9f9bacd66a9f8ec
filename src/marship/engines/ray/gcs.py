"""The address of a cluster, where the GCS of its head listens (Ray's global control service)."""

import os
import socket

from marship.errors import NotRunningError, UsageError

_LAST_PORT = 65535
_REACH_S, _RESPONSE_S = 3.0, 20.0
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_REFUSALS = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
_HTTP = "http2 header with status"
"""In what gRPC says of a server of HTTP, whose status it takes for a code of its own."""
_STRANGE = {
    "UNIMPLEMENTED": "another server of gRPC there",
    "DEADLINE_EXCEEDED": f"nothing said within {_RESPONSE_S:g} s there",
}


def checked(address: str) -> tuple[str, int]:
    """A cluster's host and port.

    Raises:
        UsageError: The address is none.

    Example:
        >>> checked("10.0.0.1:6379")
        ('10.0.0.1', 6379)
    """
    host, _, port = address.rpartition(":")
    try:
        is_host = bool(host.encode("idna")) and not set("/@ ") & set(host)
    except UnicodeError:  # an empty label, or one that is too long
        is_host = False
    if not is_host or not (port.isascii() and port.isdecimal() and 0 < int(port) <= _LAST_PORT):
        raise UsageError(f"a cluster's address must be HOST:PORT, got {address!r}.")
    return host.strip("[]"), int(port)


def check_listens(address: str) -> None:
    """Check that a GCS listens there: Ray itself would try for many minutes.

    With RAY_USE_TLS only that something listens: its certificates are Ray's to check.

    Raises:
        UsageError: The address is none.
        NotRunningError: Nothing listens there, or another server.
    """
    try:
        with socket.create_connection(checked(address), _REACH_S) as line:
            host, port = line.getpeername()[:2]
    except OSError as error:
        raise NotRunningError(
            f"a Ray cluster must listen at {address}, got no connection. Start one with: marship "
            "serve --engine ray"
        ) from error
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    got = _strange(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    if got is not None:
        raise NotRunningError(
            f"a Ray cluster must listen at {address}, got {got}. Name the port of its head, which "
            "ray start --head has as --port."
        )


def _strange(target: str) -> str | None:
    """What listens there if it is no GCS; one that asks for another token is one."""
    import grpc

    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=_RESPONSE_S)
        except grpc.RpcError as error:
            code, is_http = error.code().name, _HTTP in (error.details() or "")
            if code in _REFUSALS and not is_http:
                return None
            return _STRANGE.get(code, "another server there")
    return None
