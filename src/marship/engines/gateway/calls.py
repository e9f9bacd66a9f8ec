"""A call as grpc hands it over: its metadata and its message."""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import unquote

import grpc
from grpc import aio

from marship.engines.gateway.shares import MemoryShare
from marship.engines.gateway.statuses import Refusal
from marship.errors import MalformedError

logger = logging.getLogger(__name__)

_TAKEN = ("authorization", "x-request-id", "traceparent", "tracestate")
"""Metadata of a call that become headers."""


class RpcContext(Protocol):
    """A call, as grpc.aio.ServicerContext has it; grpc has no types."""

    async def read(self) -> bytes:
        """The next message, or grpc's EOF."""

    def peer(self) -> str:
        """The client's address, as a URI."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """What the client sent beside its message."""

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Send this behind the response."""

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        """Call this when the response is sent, or nobody waits for it."""

    async def abort(
        self, code: grpc.StatusCode, details: str, metadata: Sequence[tuple[str, str]]
    ) -> NoReturn:
        """End the call with a status."""


@dataclass(frozen=True, slots=True)
class GrpcCall:
    """A call that is under way.

    Attributes:
        context: Of grpc.
        share: What it holds of the memory for messages.
        room: What it holds of the memory for responses.
    """

    context: RpcContext
    share: MemoryShare
    room: MemoryShare


async def receive(
    context: RpcContext, limit: AbstractAsyncContextManager[object], limit_s: float
) -> bytes:
    """The message of a call.

    Args:
        context: The call's.
        limit: Entered while the message is waited for.
        limit_s: How long that may take.

    Raises:
        Refusal: It did not come in time.
        MalformedError: There is none.
    """
    try:
        async with limit:
            message = await context.read()
    except TimeoutError as error:
        raise Refusal(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"a message must arrive within {limit_s:g} s, got a part of it. Send less in one.",
            "slow",
        ) from error
    if message is aio.EOF:
        raise MalformedError("a call must have a message, got none.")
    return message


def headers(context: RpcContext) -> dict[str, str]:
    """The headers for a call's metadata.

    Raises:
        MalformedError: A value would not stay in its header.
    """
    found: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if name in _TAKEN:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if not (text.isascii() and text.isprintable()):
                raise MalformedError(f"metadata {name} must be printable ASCII, got other bytes.")
            found[name] = text
    return found


def disconnect(context: RpcContext) -> None:
    """Close the connection of a call, and with it all calls that came by it.

    grpc's server cannot end one call whose response waits for its client: a status is sent behind
    the response, and what would reset the stream cannot be reached from Python.
    """
    host, _, port = unquote(context.peer().partition(":")[2]).rpartition(":")
    for each in list(Path("/proc/self/fd").iterdir()):
        if not each.is_socket():
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(int(each.name))) as line:
            there = list(map(str, line.getpeername()[:2]))
            if there and [there[0].removeprefix("::ffff:"), *there[1:]] == [host.strip("[]"), port]:
                line.shutdown(socket.SHUT_RDWR)
                return
    logger.debug("%s has left", context.peer())
