"""The application that takes requests on every node, and passes them to versions of models.

Which version is the default stands in the table that it is configured with: a rollout starts
another application, and switches the table. What is about no model, or has no token, is answered by
an acceptor of the direct host without workers, so that such responses are the same, too.
"""

import asyncio
import json
import logging
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import ray
from ray import serve
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from starlette.requests import Request
from starlette.responses import Response

from marship.engines.ray import binding, ingress, node, placing, plan
from marship.engines.ray.line import Answer, Asked, Headers, LinePool
from marship.engines.ray.scratch import ScratchFolder
from marship.engines.ray.table import Table, TableEntry
from marship.engines.ray.trials import FrontSplit
from marship.serving.hosts.direct import exchange, limits, routes
from marship.serving.hosts.direct.acceptor import Acceptor
from marship.serving.hosts.direct.seats import ModelState
from marship.serving.hosts.direct.tokens import RefusedError, Tokens
from marship.serving.hosts.direct.trial import RunningTrial, RunningTrials
from marship.serving.message import Reply, hidden

if TYPE_CHECKING:
    from marship.errors import MarshipError

logger = logging.getLogger(__name__)

_ENDS = "2999-01-01T00:00:00Z"
_WRITTEN_BY_RAY = {b"date"}
_NONE = (placing.NoReplicaError, DeploymentUnavailableError, TimeoutError, KeyError)
"""No replica took the request; KeyError: its version has no application."""
_GONE = (ray.exceptions.RayActorError, OSError)
"""A replica, its node, or its application ended with the request in hand."""
_SLACK_S, _PROBE_S = 30.0, 2.0
"""What a request may wait beside its batch, and a probe for its answer."""


class Front:
    """Passes requests to versions.

    Args:
        key: The token that requests must carry; None asks for none.
    """

    def __init__(self, key: str | None) -> None:
        binding.keep_to(node.address())
        ingress.hide_headers()
        self._scratch = ScratchFolder()
        self._key_file = _write_key(self._scratch.path, key)
        self._tokens = Tokens(self._key_file)
        self._table, self._handles = Table(), dict[str, Any]()
        self._in_hand: Counter[str] = Counter()
        self._trials, self._split = RunningTrials(lambda: None), FrontSplit()
        self._own: LinePool | None = None
        self._acceptor: Acceptor | None = None

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take the table of models: called by Serve at the start, and whenever it changes."""
        table = Table.from_json(config)
        wanted = {entry.app for _, _, entry in table.entries()}
        loop = asyncio.get_running_loop()
        for app in wanted - set(self._handles):  # it asks the controller, which may take a while
            try:
                self._handles[app] = await loop.run_in_executor(None, serve.get_app_handle, app)
            except RayServeException:  # one that is gone must not take all others with it
                logger.exception("%s must be an application, got none", app)
        self._table = table
        self._trials.follow(table.serving)
        for app in set(self._handles) - wanted:
            del self._handles[app]
        self._start().follow(_states(table, wanted=0))

    def _start(self) -> Acceptor:
        if self._acceptor is None:
            path = self._scratch.path / "own.sock"
            bounds = limits.Limits(request_bytes=plan.MOST_BYTES)
            self._acceptor = Acceptor(asyncio.get_running_loop(), self._key_file, bounds)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen(1024)
            listener.setblocking(False)
            self._acceptor.listen(listener)
            self._own = LinePool(str(path))
        return self._acceptor

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        asked = await _read(request)
        try:
            return await self._answered(asked, routes.find(asked.target))
        except Exception:  # Ray would answer in plain text
            return _whole(_answer(limits.error_reply(hidden("answer")), asked))

    async def _answered(self, asked: Asked, route: routes.Route | None) -> Response:
        if route is not None and route.kind == routes.SERVER_READY:
            self._start().follow(_states(self._table, wanted=int(not await self._is_ready())))
        found = None if route is None else self._table.entry(route.model, route.version)
        if route is None or found is None or not self._may(asked, route):
            assert self._own is not None  # noqa: S101  reconfigure made it
            return _whole(await self._own.whole(asked))
        _, entry = found
        if route.kind == routes.PREDICT and route.version is None:
            self._trials.expire(time.monotonic())
            if (trial := self._trials.of(route.model)) is not None:
                return await self._tried(trial, asked, route)
        if entry.streams and route.kind == routes.PREDICT:
            return _Stream(self._parts(entry, asked, route))
        if route.kind != routes.METADATA:
            return _whole(await self._ask(entry, asked, route))
        if asked.method == "HEAD":  # how long the response would be is known by it alone
            asked = replace(asked, method="GET")
        answer = await self._ask(entry, asked, route)
        if answer.status == HTTPStatus.OK:
            answer = _with_versions(answer, list(self._table.models[route.model].versions))
        return _whole(answer)

    async def _tried(self, trial: RunningTrial, asked: Asked, route: routes.Route) -> Response:
        """Answer a request for a model on trial."""
        versions = self._table.models[route.model].versions
        if any(versions[each].streams for each in (trial.order.default, trial.order.version)):
            given, other = trial.way(dict(asked.headers))
            parts = self._parts(versions[given], asked, route)
            return _Stream(parts if other is None else self._split.noted(trial, given, parts))

        def ask(version: str) -> Awaitable[Answer]:
            return self._ask(versions[version], asked, route)

        return _whole(await self._split.ask(trial, asked, ask))

    async def try_version(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Renew or end this replica's part of a trial; its figures, or why it is refused."""
        now = time.monotonic()
        self._trials.expire(now)
        return self._trials.reply(order, now, self._table.serving)

    async def trials(self) -> list[dict[str, Any]]:
        """The trials that this replica takes part in."""
        self._trials.expire(time.monotonic())
        return [state.to_json() for state in self._trials.states()]

    def _may(self, asked: Asked, route: routes.Route) -> bool:
        """Whether the request has the token, or needs none; the acceptor refuses it otherwise."""
        if route.kind in routes.OPEN or asked.method == "OPTIONS":
            return True
        try:
            given = [value for name, value in asked.headers if name == b"authorization"]
            self._tokens.check(b", ".join(given) if given else None)  # RFC 9110, 5.3
        except RefusedError:
            return False
        return True

    async def _ask(self, entry: TableEntry, asked: Asked, route: routes.Route) -> Answer:
        is_probe = route.kind != routes.PREDICT
        limit_s = _PROBE_S if is_probe else entry.timeout_s + _SLACK_S
        self._in_hand[entry.app] += 1
        try:
            async with asyncio.timeout(limit_s):
                handle = self._handles[entry.app]
                response = handle.ask.remote(asked)
                await placing.placed(handle, response)
                answer: Answer = await response
                return answer
        except Exception as error:
            return _failed(error, asked, route)
        finally:
            self._in_hand[entry.app] -= 1

    async def _parts(
        self, entry: TableEntry, asked: Asked, route: routes.Route
    ) -> AsyncIterator[Answer]:
        self._in_hand[entry.app] += 1
        has_begun = False
        try:
            handle = self._handles[entry.app]
            response = handle.options(stream=True).stream.remote(asked)
            await placing.placed(handle, response)
            async for part in response:
                has_begun = True
                yield part
        except Exception as error:
            if has_begun:  # a client must not take what it has for all
                raise
            yield _failed(error, asked, route)
        finally:
            self._in_hand[entry.app] -= 1

    async def _is_ready(self) -> bool:
        """Whether the default version of every model answers."""
        probes = []
        for name in self._table.models:
            target = b"/v2/models/" + name.encode() + b"/ready"
            route, found = routes.find(target), self._table.entry(name, None)
            assert route is not None  # noqa: S101  it is one
            if found is None:
                return False
            asked = Asked("GET", target, [(b"host", b"here")])
            probes.append(self._ask(found[1], asked, route))
        return all(answer.status == HTTPStatus.OK for answer in await asyncio.gather(*probes))

    async def in_hand(self, app: str) -> int:
        """How many requests this replica has passed to an application and waits for."""
        return self._in_hand[app]

    def __del__(self) -> None:
        """Remove its files: Serve calls this at a replica's end."""
        if scratch := getattr(self, "_scratch", None):
            scratch.remove()


async def _read(request: Request) -> Asked:
    """A request as it came, and its body as far as it may be large."""
    headers = ingress.headers_of(request.scope)
    path = request.scope.get("raw_path") or request.scope["path"].encode()
    query = request.scope["query_string"]
    target = path.partition(b"?")[0] + (b"?" + query if query else b"")
    stated = dict(headers).get(b"content-length", b"")
    if stated.isdigit() and int(stated) > plan.MOST_BYTES:
        return Asked(request.method, target, headers, length=int(stated))
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > plan.MOST_BYTES:
            return Asked(request.method, target, headers, length=size)
    return Asked(request.method, target, headers, b"".join(parts))


def _states(table: Table, *, wanted: int) -> dict[str, ModelState]:
    return {
        name: ModelState(model.default, tuple(model.versions), {model.default: wanted})
        for name, model in table.models.items()
    }


def _with_versions(answer: Answer, versions: list[str]) -> Answer:
    """What a model takes and gives, with all of its versions: a replica knows of its own."""
    facts = orjson.loads(answer.body)
    facts["versions"] = versions
    headers = [pair for pair in answer.headers if pair[0].lower() != b"content-length"]
    return Answer(answer.status, headers, orjson.dumps(facts))


def _failed(error: Exception, asked: Asked, route: routes.Route) -> Answer:
    """What the client gets where no replica could answer."""
    told: MarshipError
    if isinstance(error, BackPressureError):
        told = limits.busy(plan.QUEUE)
    elif isinstance(error, _NONE):
        told = limits.unstaffed(route.model, route.version)
    elif isinstance(error, _GONE):
        told = limits.worker_died()
    else:
        told = hidden("pass on")
    if route.kind == routes.READY:
        facts = {"name": route.model, "ready": False}
        return _answer(Reply(orjson.dumps(facts), status=503), asked)
    reply = limits.error_reply(told)
    return _answer(exchange.for_kserve(reply) if route.is_kserve else reply, asked)


def _answer(reply: Reply, asked: Asked) -> Answer:
    """A response of the front's own, with the request's id as the direct host has it."""
    given = b", ".join(value for name, value in asked.headers if name == b"x-request-id")
    is_fine = 0 < len(given) <= exchange.LONGEST_ID
    named = (b"x-request-id", given if is_fine else uuid.uuid4().hex.encode())
    return Answer(reply.status, [*_headers(reply), named], reply.body)


def _headers(reply: Reply) -> Headers:
    pairs = [("content-type", reply.content_type), *reply.headers]
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


def _whole(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = _passed(answer.headers)
    if not any(name == b"content-length" for name, _ in response.raw_headers):
        response.raw_headers.append((b"content-length", b"%d" % len(answer.body)))
    return response


def _passed(headers: Headers) -> Headers:
    """ASGI's headers: names in lower case, without those that Ray's own server writes."""
    lower = [(name.lower(), value) for name, value in headers]
    return [pair for pair in lower if pair[0] not in _WRITTEN_BY_RAY]


class _Stream(Response):
    """A response in parts; the first one has the head."""

    def __init__(self, parts: AsyncIterator[Answer]) -> None:
        super().__init__()
        self._parts = parts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401, ARG002
        """Send them as they come (ASGI 3.0, HTTP)."""
        async for part in self._parts:
            if part.status:
                start = {"type": "http.response.start", "status": part.status}
                await send({**start, "headers": _passed(part.headers)})
            if part.body:
                await send({"type": "http.response.body", "body": part.body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _write_key(folder: Path, key: str | None) -> Path | None:
    """A key file as the direct host reads it."""
    if key is None:
        return None
    path = folder / "key_file.json"
    path.touch(0o600)
    path.write_text(json.dumps({"inference": {"key": key, "expiration time": _ENDS}}))
    return path
