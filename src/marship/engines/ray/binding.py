"""Where a replica's own gRPC server listens: at its node's address alone.

Ray Serve 2.60 starts one in every replica (`ray/serve/_private/replica.py`, `_on_initialized`), on
all addresses. It unpickles what it gets, and asks for no token, even with RAY_AUTH_MODE=token: who
reaches it runs code. On a machine of one's own it is moved to loopback; between nodes RAY_USE_TLS=1
has it ask for a certificate.
"""

from typing import Any


def keep_to(address: str) -> None:
    """Have the server that Serve is about to start in this process listen at an address alone.

    Called by a replica's constructor, which runs before.

    Raises:
        RuntimeError: This version of Ray starts it in another way.
    """
    from ray.serve._private import replica

    if not hasattr(replica, "add_port_to_grpc_server"):
        raise RuntimeError("Ray must start the replicas' server as 2.60 does, got another version.")
    listen = replica.add_port_to_grpc_server
    host = f"[{address}]" if ":" in address else address

    def narrow(server: Any, wanted: str) -> int:  # noqa: ANN401  gRPC's
        return int(listen(server, wanted.replace("[::]", host)))

    replica.add_port_to_grpc_server = narrow
