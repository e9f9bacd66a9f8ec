"""What spans say of a request: OpenTelemetry's semantic conventions for HTTP, 1.38, server."""

from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.traces import Attributes
from marship.serving.message import OK, Reply


def name_of(exchange: Exchange) -> str:
    """A span's name: the method, and the path without names where it is known."""
    return " ".join(filter(None, (exchange.head.method, _route(exchange))))


def _route(exchange: Exchange) -> str:
    path = exchange.head.path.decode("latin-1")
    return exchange.route.template(path) if exchange.route is not None else ""


def facts_of(exchange: Exchange, reply: Reply) -> Attributes:
    """The attributes of a request that has its response."""
    facts: dict[str, str | int] = {
        "http.request.method": exchange.head.method,
        "http.response.status_code": reply.status,
        "http.request.body.size": len(exchange.body),
        "url.path": exchange.head.path.decode("latin-1"),
        "url.scheme": "http",
        "marship.request.id": exchange.id.decode("latin-1"),
    }
    if route := _route(exchange):
        facts["http.route"] = route
    if reply.outcome != OK:
        facts["error.type"] = reply.outcome
    return facts
