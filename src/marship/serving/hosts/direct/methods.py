"""Which methods each path takes, for the acceptor and the workers."""

from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.limits import StatusError
from marship.serving.message import Reply, no_explanation


def check_method(exchange: Exchange, route: routes.Route) -> None:
    """Raise 405 where a path has not this method, 501 and 413 where nobody would read the body."""
    methods = _methods(exchange, route)
    if exchange.head.method not in methods and exchange.head.method != "OPTIONS":
        allow = ", ".join((*methods, "OPTIONS"))
        raise StatusError(
            405, "method", f"the method must be {allow}, got {exchange.head.method}.", allow=allow
        )
    if route.kind == routes.EXPLAIN and exchange.head.method != "OPTIONS":
        raise no_explanation()
    is_read = route.kind == routes.PREDICT and exchange.head.method != "OPTIONS"
    if not is_read and (exchange.head.length or exchange.head.is_chunked):
        raise StatusError(
            413, "too_large", f"{exchange.head.method} of this path must have no body, got one."
        )


def _methods(exchange: Exchange, route: routes.Route) -> tuple[str, ...]:
    """The methods of a path: a GET is a prediction only with parameters or a body."""
    head = exchange.head
    if route.kind != routes.PREDICT or head.query or head.length or head.is_chunked:
        return route.methods
    return tuple(method for method in route.methods if method != "GET")


def options(route: routes.Route | None) -> Reply:
    """The methods of a path."""
    methods = route.methods if route else ()
    return Reply(b"", status=204, headers=(("allow", ", ".join((*methods, "OPTIONS"))),))
