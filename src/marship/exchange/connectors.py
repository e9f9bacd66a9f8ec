"""Connectors of the asyncio client: aiohttp's, which check the peer of each new connection."""

import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from marship.exchange import sockets
from marship.exchange.limited import tls_context

Check = Callable[[str, Any], None]


class _Connector(aiohttp.TCPConnector):
    """Checks each new TCP connection; aiohttp has no other hook for it."""

    def __init__(self, base: str, check: Check, tls: ssl.SSLContext | None) -> None:
        context = (tls or tls_context()) if base.startswith("https:") else True
        super().__init__(limit=0, ssl=context)
        self._base, self._check = base, check

    async def _create_connection(self, *args: Any) -> ResponseHandler:  # noqa: ANN401
        return _checked(await super()._create_connection(*args), self._base, self._check)


class _UnixConnector(aiohttp.UnixConnector):
    """Checks each new connection to a unix socket."""

    def __init__(self, path: str, base: str, check: Check) -> None:
        super().__init__(path, limit=0)
        self._base, self._check = base, check

    async def _create_connection(self, *args: Any) -> ResponseHandler:  # noqa: ANN401
        return _checked(await super()._create_connection(*args), self._base, self._check)


def connector(base: str, check: Check, tls: ssl.SSLContext | None = None) -> aiohttp.BaseConnector:
    """A connector without a limit of connections: the caller bounds its requests."""
    path = sockets.path_of(base)
    return _UnixConnector(path, base, check) if path else _Connector(base, check, tls)


def _checked(made: ResponseHandler, base: str, check: Check) -> ResponseHandler:
    try:
        if made.transport is None:
            raise aiohttp.ServerDisconnectedError
        check(base, made.transport.get_extra_info("socket"))
    except BaseException:
        made.close()
        raise
    return made
