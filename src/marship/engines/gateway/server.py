"""The gRPC server: each method is a request to the direct address, by its unix socket.

So validation, tokens, versions, limits, batching and metrics are those of the direct address.
When a client cancels or its deadline passes, grpc cancels the method, which closes the HTTP
connection.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import quote

import grpc
import orjson
from grpc import aio

from marship.engines.gateway import calls, messages, requests, statuses, tensors
from marship.engines.gateway.calls import GrpcCall, RpcContext
from marship.engines.gateway.messages import Message, kind
from marship.engines.gateway.requests import InferRequest
from marship.engines.gateway.responses import SENT_AT_ONCE_BYTES, Room, ask
from marship.engines.gateway.shares import Memory, MemoryShare, Newest, Unread
from marship.engines.gateway.statuses import Refusal
from marship.engines.gateway.tensors import LENGTH_HEADER, NoTensorsError
from marship.engines.gateway.turns import Turns
from marship.engines.gateway.upstream import Upstream, UpstreamResponse
from marship.errors import MalformedError, MarshipError, TooLargeError
from marship.serving.hosts.direct.tokens import RefusedError, Tokens

logger = logging.getLogger(__name__)

_MOST_RUNNING = 1024
"""Of calls with the right token."""
_STREAMS = 256
_PENDING = 1 << 14
"""Of calls that nobody has looked at yet: beyond it grpc ends new ones, whatever their token."""
_MESSAGES_BYTES = 1 << 28
"""Of the messages of running calls; one that is being received counts as the largest. Responses
have as much of their own, so that neither waits for the other; and so have calls that need no
token, while they are received."""
_UNREAD_BYTES = 3 << 26
"""Of the responses that a model's workers are asked for and that are not read here yet: less than
that of which one worker closes connections (serving/hosts/direct/limits.py, unsent_bytes)."""
_FEW = 16
"""The least number of messages that are received at a time."""
_OPEN_RUNNING = 256
"""Of calls that need no token, once their message is there."""
_MESSAGE_S, _OPEN_MESSAGE_S = 60.0, 5.0
"""How long a message may take to arrive, and that of a call that needs no token."""
_TAKEN_S = 5.0
"""How long a response may wait for its client while others wait for memory. A response of a worker
may wait four times as long for this process to read it: so it gets its turn behind others."""
_OPEN = ("ServerLive", "ServerReady", "ModelReady")
"""Without a token, as at the direct address."""
_IDLE_MS, _PING_MS, _PING_WITHIN_MS = 300_000, 60_000, 20_000

_OF_ERRORS: Sequence[tuple[type[MarshipError], grpc.StatusCode]] = (
    (NoTensorsError, grpc.StatusCode.UNIMPLEMENTED),
    (RefusedError, grpc.StatusCode.UNAUTHENTICATED),
    (TooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (MarshipError, grpc.StatusCode.INVALID_ARGUMENT),
)

RequestT = TypeVar("RequestT")


class GrpcService:
    """The methods of the protocol.

    Args:
        upstream: The direct address.
        request_bytes: The largest message, and the largest body at the direct address.
        key_file: Holds the token; None asks for none.
        message_s: How long a message may take to arrive.
    """

    def __init__(
        self,
        upstream: Upstream,
        request_bytes: int,
        key_file: Path | None = None,
        message_s: float = _MESSAGE_S,
    ) -> None:
        self._upstream, self._request_bytes = upstream, request_bytes
        self._tokens, self._message_s = Tokens(key_file), message_s
        self._turns = Turns()
        self._running = 0
        most = max(_MESSAGES_BYTES, _FEW * request_bytes)
        self._memory, self._responses = Memory(most), Memory(most, _TAKEN_S)
        self._unread = Unread(_UNREAD_BYTES, request_bytes)
        self._silent = Newest(max(_FEW, _MESSAGES_BYTES // request_bytes))
        self._open = Newest(_OPEN_RUNNING)

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server of grpc calls."""
        own: dict[str, Callable[[Message, GrpcCall], Awaitable[Message]]] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
        }
        methods = messages.service().methods_by_name
        made = {
            name: grpc.stream_unary_rpc_method_handler(
                self._method(
                    method,
                    partial(requests.parse, methods[name].input_type.name),
                    is_open=name in _OPEN,
                ),
                response_serializer=kind(methods[name].output_type.name).SerializeToString,
            )
            for name, method in own.items()
        }
        made["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
            self._method(self.model_infer, requests.read)
        )
        return grpc.method_handlers_generic_handler(messages.SERVICE, made)

    def _method(
        self,
        method: Callable[[RequestT, GrpcCall], Awaitable[Message]],
        parse: Callable[[bytes], RequestT],
        *,
        is_open: bool = False,
    ) -> Callable[[object, RpcContext], Awaitable[Message]]:
        """A method from the bytes of its request to its response or its status.

        To grpc it is one that takes a stream: else a message would be received whole, for as long
        as it takes, before anything is known of its call.
        """
        respond = self._respond_to_any if is_open else self._respond

        async def run(_messages: object, context: RpcContext) -> Message:
            try:
                with MemoryShare(self._memory) as share, MemoryShare(self._responses) as room:
                    return await respond(method, parse, GrpcCall(context, share, room))
            except Exception as error:
                logger.debug("a call was refused", exc_info=True)
                await _abort(context, _refusal(error))

        return run

    async def _respond_to_any(
        self,
        method: Callable[[RequestT, GrpcCall], Awaitable[Message]],
        parse: Callable[[bytes], RequestT],
        call: GrpcCall,
    ) -> Message:
        """The response to a call that needs no token, which takes nothing that others need."""
        silent = self._silent.place(_OPEN_MESSAGE_S)
        request = parse(await calls.receive(call.context, silent, _OPEN_MESSAGE_S))
        async with self._open.place():
            return await method(request, call)

    async def _respond(
        self,
        method: Callable[[RequestT, GrpcCall], Awaitable[Message]],
        parse: Callable[[bytes], RequestT],
        call: GrpcCall,
    ) -> Message:
        """The response to a call, which counts once its token is right.

        Nothing here keeps the message: its memory is free once the request is sent.
        """
        token = calls.headers(call.context).get("authorization")
        self._tokens.check(None if token is None else token.encode())
        if self._running >= _MOST_RUNNING:
            raise statuses.busy(f"at most {_MOST_RUNNING} calls may run at a time")
        self._running += 1
        try:
            return await method(parse(await self._message(call)), call)
        finally:
            self._running -= 1

    async def _message(self, call: GrpcCall) -> bytes:
        """The message of a call, which may be of any size until it is there."""
        await call.share.wait(self._request_bytes, self._message_s)
        limit = asyncio.timeout(self._message_s)
        message = await calls.receive(call.context, limit, self._message_s)
        call.share.hold(len(message))
        return message

    async def server_live(self, _request: Message, call: GrpcCall) -> Message:
        """Whether the server runs."""
        response = await self._health("", "/v2/health/live", call)
        return kind("ServerLiveResponse")(live=response.status == HTTPStatus.OK)

    async def server_ready(self, _request: Message, call: GrpcCall) -> Message:
        """Whether every model has its workers."""
        response = await self._health("", "/v2/health/ready", call)
        return kind("ServerReadyResponse")(ready=response.status == HTTPStatus.OK)

    async def model_ready(self, request: Message, call: GrpcCall) -> Message:
        """Whether a model has a worker."""
        where = _path(request.name, request.version)
        response = await self._health(where, f"{where}/ready", call)
        return kind("ModelReadyResponse")(ready=response.status == HTTPStatus.OK)

    async def server_metadata(self, _request: Message, call: GrpcCall) -> Message:
        """The server's name and version; its extensions are of HTTP."""
        description = await self._metadata("", "/v2", call)
        return kind("ServerMetadataResponse")(
            name=description["name"], version=description["version"]
        )

    async def model_metadata(self, request: Message, call: GrpcCall) -> Message:
        """What a model takes and returns; the message has no parameters, which HTTP has."""
        where = _path(request.name, request.version)
        description = await self._metadata(where, where, call)
        description.pop("parameters", None)
        return kind("ModelMetadataResponse")(**description)

    async def model_infer(self, request: InferRequest, call: GrpcCall) -> bytes:
        """A prediction, as it is sent."""
        where = _path(request.message.model_name, request.message.model_version)
        text, body = await tensors.to_body(request, self._turns, self._request_bytes)
        headers = {
            **calls.headers(call.context),
            "content-type": "application/octet-stream",
            LENGTH_HEADER: str(len(text)),
        }
        is_typed, model = request.is_typed, request.message.model_name
        del request  # the body has all that is needed of it, until it is sent
        body.insert(0, text)
        size = sum(map(len, body))
        call.share.hold(size)
        with self._unread.share(model) as unread:
            expected = self._unread.expected(where, size)
            if expected > SENT_AT_ONCE_BYTES:
                await unread.wait(expected, self._message_s)
            room = Room(call, unread, expected, self._unread.largest, self._message_s)
            response = await ask(self._upstream, where, headers, body, room)
        _check(response)
        self._unread.note(where, size, len(response.body))
        call.context.set_trailing_metadata(statuses.trailing(response.headers))
        made = await tensors.from_body(response.headers, response.body, self._turns, typed=is_typed)
        if len(made) > SENT_AT_ONCE_BYTES:
            sending = MemoryShare(self._responses)
            sending.hold(len(made))
            # who takes nothing keeps nobody else from theirs
            self._responses.lend(sending, partial(calls.disconnect, call.context))
            call.context.add_done_callback(lambda _: sending.end())
        return made

    async def _health(self, key: str, target: str, call: GrpcCall) -> UpstreamResponse:
        """A response whose status is the result: 503 is not an error."""
        response = await self._upstream.get(key, target, calls.headers(call.context))
        if response.status != HTTPStatus.SERVICE_UNAVAILABLE:
            _check(response)
        return response

    async def _metadata(self, key: str, target: str, call: GrpcCall) -> dict[str, Message]:
        response = await self._upstream.get(key, target, calls.headers(call.context))
        _check(response)
        call.context.set_trailing_metadata(statuses.trailing(response.headers))
        return dict(orjson.loads(response.body))


def _path(model: str, version: str) -> str:
    if not model:
        raise MalformedError("the model must be named, got an empty name.")
    where = f"/v2/models/{quote(model, safe='')}"
    return f"{where}/versions/{quote(version, safe='')}" if version else where


def _check(response: UpstreamResponse) -> None:
    if response.status != HTTPStatus.OK:
        raise statuses.refusal(response)


def _refusal(error: Exception) -> Refusal:
    """The status for whatever ended a method."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MarshipError):
        status = next(status for kind, status in _OF_ERRORS if isinstance(error, kind))
        return Refusal(status, str(error), error.code)
    if isinstance(error, OSError):
        return Refusal(
            grpc.StatusCode.UNAVAILABLE,
            "the worker must respond, got a lost connection. Retry.",
            "no_answer",
        )
    reference = uuid.uuid4().hex[:12]
    logger.error("a call failed, reference %s", reference, exc_info=error)
    return Refusal(
        grpc.StatusCode.INTERNAL,
        f"the gateway must respond, got an error of its own. The log has it: {reference}",
        "internal",
    )


async def _abort(context: RpcContext, refusal: Refusal) -> NoReturn:
    await context.abort(refusal.status, refusal.message, refusal.trailing)


def options(request_bytes: int) -> Mapping[str, int]:
    """The settings of grpc's server (grpc/impl/channel_arg_names.h).

    Args:
        request_bytes: The largest message, after any compression is undone.
    """
    return {
        "grpc.max_receive_message_length": request_bytes,
        "grpc.max_send_message_length": -1,  # the worker bounds it
        "grpc.so_reuseport": 0,  # a port that is taken is an error
        "grpc.max_concurrent_streams": _STREAMS,
        "grpc.server.max_pending_requests": _PENDING,
        "grpc.server.max_pending_requests_hard_limit": _PENDING,
        "grpc.max_connection_idle_ms": _IDLE_MS,
        "grpc.keepalive_time_ms": _PING_MS,  # a peer that vanished is noticed
        "grpc.keepalive_timeout_ms": _PING_WITHIN_MS,
    }


async def serve(  # noqa: PLR0913  keyword-only
    address: str,
    socket: Path,
    request_bytes: int,
    on_started: Callable[[int], None],
    *,
    key_file: Path | None = None,
    message_s: float = _MESSAGE_S,
) -> None:
    """Serve until cancelled.

    Args:
        address: Host and port; port 0 takes any free one.
        socket: Of the direct address.
        request_bytes: The largest message.
        on_started: Called with the port when the server listens.
        key_file: Holds the token; None asks for none.
        message_s: How long a message may take to arrive.

    Raises:
        RuntimeError: The address cannot be used.
    """
    upstream = Upstream(socket)
    service = GrpcService(upstream, request_bytes, key_file, message_s)
    server = aio.server(options=list(options(request_bytes).items()))
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        on_started(port)
        await server.wait_for_termination()
    finally:
        await server.stop(None)
        upstream.close()


def run(
    address: str,
    socket: Path,
    request_bytes: int,
    on_started: Callable[[int], None],
    *,
    key_file: Path | None,
) -> None:
    """The same in an event loop of its own; see `serve`."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(address, socket, request_bytes, on_started, key_file=key_file))
