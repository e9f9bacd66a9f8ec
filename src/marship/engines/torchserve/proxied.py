"""Spans of a proxy in front of the server, which tells of each traced request in a datagram."""

import asyncio
import json
import logging
import re
import socket
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from marship.serving.hosts.direct import routes, traces
from marship.serving.hosts.direct.traces import Parent, TimedStep

logger = logging.getLogger(__name__)

_MOST_BYTES, _AT_ONCE = 1 << 14, 64
_TRACE, _SPAN = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{16}")


class ProxiedSpans:
    """Takes what the proxy says, as `marship proxy --traces` has it written, and sends spans.

    Args:
        loop: Reads the socket.
        path: Of the socket; what lies there is replaced.
        variables: The environment that says where spans go.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, path: Path, variables: Mapping[str, str]
    ) -> None:
        self._tracer = traces.told(variables, {"service.name": "marship-proxy"})
        path.unlink(missing_ok=True)
        if self._tracer is None:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(str(path))
        except OSError as error:  # such as a path that is too long; no request needs it
            logger.warning("spans of a proxy must be taken at %s, got: %s", path, error)
            self._socket.close()
            return
        loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data = self._socket.recv(_MOST_BYTES)
            except OSError:
                return
            try:
                self._add(json.loads(data[data.index(b"{") :]))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                logger.debug("a proxy must tell of a request, got %s", error)

    def _add(self, told: Mapping[str, object]) -> None:
        """Send the span of a request.

        Raises:
            ValueError: It is not told of as it must be.
            KeyError: Something is missing.
        """
        trace, above, own = (str(told[name]) for name in ("trace", "above", "span"))
        if not (_TRACE.fullmatch(trace) and _SPAN.fullmatch(above) and _SPAN.fullmatch(own)):
            raise ValueError("no ids")
        status = int(str(told["status"]))
        method, target, _ = str(told["request"]).split(" ")
        path = urlsplit(target).path
        facts: dict[str, str | int] = {
            "http.request.method": method,
            "http.response.status_code": status,
            "url.path": path,
            "url.scheme": "https",
            "marship.request.id": str(told["id"]),
        }
        name = method
        if (route := routes.find(path.encode())) is not None:
            facts["http.route"] = route.template(path)
            facts["marship.model.name"] = route.model
            name = f"{method} {facts['http.route']}"
        if status >= HTTPStatus.BAD_REQUEST:
            facts["error.type"] = str(status)
        ended_s = traces.perf_s(float(str(told["ended_s"])))
        whole = TimedStep(name, ended_s - float(str(told["took_s"])), ended_s)
        parent = Parent(trace, above, str(told["state"]))
        failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        assert self._tracer is not None  # noqa: S101  else nothing is read
        self._tracer.add(parent, whole, (), facts, failed=failed, own=own)
