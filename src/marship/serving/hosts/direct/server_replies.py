"""What a server answers of itself: health, its name, the OpenAPI document, and its page."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import orjson

from marship import __version__
from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.heads import Head
from marship.serving.hosts.direct.seats import Seats
from marship.serving.message import Reply
from marship.serving.openapi import part, validity
from marship.serving.openapi.document import ServedModel, document

logger = logging.getLogger(__name__)

_MOST_DOCUMENTS = 8
"""The whole one, and those of proxies."""


class ServerReplies:
    """Replies to requests that are about no worker.

    Args:
        seats: The workers.
        pages: Files by their paths, which need no token: they tell nothing of models.
        has_tokens: Whether other requests need a token.
        is_restart: Whether another acceptor served here before.
    """

    def __init__(
        self, seats: Seats, pages: Mapping[bytes, Reply], *, has_tokens: bool, is_restart: bool
    ) -> None:
        self._seats, self._pages = seats, pages
        self._has_tokens, self._is_restart = has_tokens, is_restart
        self._served: list[tuple[str, str, bool, bool, bytes]] = []
        self._documents: dict[bytes, bytes] = {}

    def route(self, path: bytes) -> routes.Route | None:
        """The route of a page or of the document."""
        if path == routes.DOCUMENT_PATH:
            return routes.Route(routes.DOCUMENT)
        return routes.Route(routes.PAGE) if path in self._pages else None

    def reply(self, kind: str, head: Head, *, is_closing: bool) -> Reply:
        """The reply of a route's kind.

        Args:
            kind: Of the route.
            head: Its path for a page, its parameters for the document.
            is_closing: Whether the server is about to end.
        """
        if kind == routes.PAGE:
            return self._pages[head.path]
        if kind == routes.DOCUMENT:
            body = self._documented(head.parameters.get("exposed", b""))
            return Reply(body, headers=(("cache-control", "no-store"),))
        if kind == routes.SERVER:
            return routes.server(__version__)
        if kind == routes.LIVE:
            return Reply(orjson.dumps({"live": True}))
        if kind == routes.SERVER_READY:
            is_right = self._seats.is_complete and not is_closing
            facts: dict[str, object] = {"ready": is_right}
        else:
            is_right = self._seats.knows_models or self._is_restart
            facts = {"status": "Healthy" if is_right else "Unhealthy"}
        return Reply(orjson.dumps(facts), status=200 if is_right else 503)

    def _documented(self, exposed: bytes) -> bytes:
        """The OpenAPI document; made anew when a model or its readiness has changed.

        Args:
            exposed: Models that a proxy passes on, with commas between; empty is all there is.
        """
        served = list(self._seats.served())
        if served != self._served or not self._documents:
            models = [_model(*one) for one in served]
            whole = document(models, __version__, has_tokens=self._has_tokens)
            self._served, self._documents = served, {b"": orjson.dumps(whole)}
        if exposed not in self._documents:
            whole = orjson.loads(self._documents[b""])
            if len(self._documents) == _MOST_DOCUMENTS:
                self._documents.popitem()
            made = part.exposed(whole, exposed.decode(errors="replace").split(","))
            self._documents[exposed] = orjson.dumps(made)
        return self._documents[exposed]


def _model(name: str, version: str, is_default: bool, is_ready: bool, about: bytes) -> ServedModel:
    """A version with what its worker says of it; an archive's own code must not hide the others."""
    bare = ServedModel(name, version, is_default, is_ready, None)
    if not about:
        return bare
    try:
        facts = orjson.loads(about)
        validity.check(facts)  # its archive may have the code of a marship that did not
        found = replace(bare, facts=facts)
        document([found], __version__)
    except Exception:
        logger.exception("%s %s must be described by its worker, got another form.", name, version)
        return bare
    return found
