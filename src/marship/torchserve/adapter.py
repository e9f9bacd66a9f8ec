"""HTTP over unix sockets, for requests; aiohttp has it of its own."""

import socket
from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from marship.torchserve.sockets import path_of


class UnixAdapter(HTTPAdapter):
    """Lets a session of requests call URLs of unix sockets; mount it at their `SCHEME`."""

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[str, _Pool] = {}

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: bool | str | None,  # noqa: ARG002  there is no TLS
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002  and no proxy
        cert: Any = None,  # noqa: ANN401, ARG002
    ) -> HTTPConnectionPool:
        """The connections to the socket that the URL names."""
        path = path_of(request.url or "") or ""
        return self._pools.setdefault(path, _Pool(path))

    def close(self) -> None:
        """Close the connections."""
        for pool in self._pools.values():
            pool.close()
        super().close()


class _Pool(HTTPConnectionPool):
    """Connections to one socket that stay open."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", maxsize=10)
        self._path = path

    def _new_conn(self) -> HTTPConnection:
        self.num_connections += 1
        return _Connection(self._path)


class _Connection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        try:
            if isinstance(self.timeout, int | float):
                line.settimeout(self.timeout)
            line.connect(self._path)
        except OSError as error:
            line.close()
            raise NewConnectionError(self, f"no connection to {self._path}: {error}") from error
        return line
