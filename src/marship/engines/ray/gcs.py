"""The address of a cluster, where the GCS of its head listens (Ray's global control service)."""

import socket

from marship.errors import NotRunningError, UsageError

_LAST_PORT = 65535
_REACH_S, _RESPONSE_S = 3.0, 20.0
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_STRANGE = {
    "UNIMPLEMENTED": "another server of gRPC there",
    "UNAVAILABLE": "another server there, or one of Ray with other settings of RAY_USE_TLS",
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
    is_host = bool(host) and not set("/@ ") & set(host)
    if not is_host or not (port.isascii() and port.isdecimal() and 0 < int(port) <= _LAST_PORT):
        raise UsageError(f"a cluster's address must be HOST:PORT, got {address!r}.")
    return host.strip("[]"), int(port)


def check_listens(address: str) -> None:
    """Check that a GCS listens there: Ray itself would try for many minutes.

    Raises:
        UsageError: The address is none.
        NotRunningError: Nothing listens there, or another server.
    """
    try:
        socket.create_connection(checked(address), _REACH_S).close()
    except OSError as error:
        raise NotRunningError(
            f"a Ray cluster must listen at {address}, got no connection. Start one with: marship "
            "serve --engine ray"
        ) from error
    got = _strange(address)
    if got is not None:
        raise NotRunningError(
            f"a Ray cluster must listen at {address}, got {got}. Name the port of its head, which "
            "ray start --head has as --port."
        )


def _strange(address: str) -> str | None:
    """What is there if it is no GCS; one that asks for another token or certificate is one."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel  # with RAY_USE_TLS and Ray's token

    with init_grpc_channel(address) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=_RESPONSE_S)
        except grpc.RpcError as error:
            return _STRANGE.get(error.code().name)
    return None
