"""What Ray's own HTTP server of a front sees of a request: none of its headers.

Ray Serve 2.60 (`ray/serve/_private/replica.py`, direct ingress) takes orders from clients' headers
(a timeout, a session, another model, a trace), answers with any id of a request as it came, and
decodes some as UTF-8: one odd byte is a 500 in plain text. The front reads them itself.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

from marship.engines.ray.line import Headers

_HEADERS = "marship.headers"


class HiddenHeaders:
    """Middleware (ASGI 3.0) in place of Ray's, which would write the id of a request.

    Args:
        app: What answers.
    """

    def __init__(self, app: Any) -> None:  # noqa: ANN401  ASGI's
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401
        """Pass a request on without headers."""
        if scope["type"] == "http":
            scope = {**scope, _HEADERS: scope["headers"], "headers": []}
        await self._app(scope, receive, send)


def headers_of(scope: Mapping[str, Any]) -> Headers:
    """A request's headers, with names in lower case.

    They are not hidden where Ray's own proxy, in place of HAProxy, passes the request on.
    """
    return [(name.lower(), value) for name, value in scope.get(_HEADERS, scope["headers"])]


def hide_headers() -> None:
    """Hide headers from the server that Serve is about to start in this process.

    Called by a replica's constructor, which runs before.

    Raises:
        RuntimeError: This version of Ray starts it in another way.
    """
    from ray.serve._private import http_util

    if not hasattr(http_util, "RequestIdMiddleware"):
        raise RuntimeError("Ray must start its HTTP server as 2.60 does, got another version.")
    http_util.RequestIdMiddleware = HiddenHeaders  # type: ignore[misc, assignment]
