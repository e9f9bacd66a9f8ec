"""Responses of workers, each within its room in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from marship.engines.gateway.calls import GrpcCall
from marship.engines.gateway.shares import MemoryShare
from marship.engines.gateway.tensors import NoTensorsError
from marship.engines.gateway.upstream import (
    Body,
    CutResponseError,
    Headers,
    Upstream,
    UpstreamResponse,
)

SENT_AT_ONCE_BYTES = 1 << 16
"""Of a response: as much as a client takes of a stream before it has read any (RFC 9113, 6.9.2)."""
_KEPT_BYTES = 1 << 18
"""Of a request until its response comes. Larger ones seldom have responses of various sizes."""


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of a response.

    Attributes:
        call: Whose response it is.
        unread: What the worker holds of it.
        expected: Bytes that the worker was thought to hold.
        largest: Bytes that it may have.
        limit_s: How long to wait for the worker's turn.
    """

    call: GrpcCall
    unread: MemoryShare
    expected: int
    largest: int
    limit_s: float

    async def make(self, kept: Body, headers: Headers) -> None:
        """Wait until there is memory for a response; one that its client takes at once needs none.

        Args:
            kept: The request, dropped unless the response may be cut.
            headers: Of the response.

        Raises:
            NoTensorsError: It is a stream, whose length nobody knows.
        """
        length = headers.get("content-length")
        if length is None:
            raise NoTensorsError
        if int(length) <= max(self.expected, SENT_AT_ONCE_BYTES):
            kept.clear()
        if not kept:
            self.call.share.end()
        self.unread.hold(int(length))
        if int(length) > SENT_AT_ONCE_BYTES:
            # The model has worked for it: only the call's own deadline ends the wait.
            await self.call.room.wait(int(length), None)


async def ask(
    upstream: Upstream, where: str, headers: Mapping[str, str], body: Body, room: Room
) -> UpstreamResponse:
    """The response to a prediction; asked for once more if it was cut and larger than expected.

    The worker has closed its connection then, as responses that nobody read took too much memory.

    Args:
        upstream: The direct address.
        where: The model's path.
        headers: Of the request.
        body: Of the request; is taken.
        room: Of the response.

    Raises:
        Refusal: There was no memory for the response in time.
        NoTensorsError: It is a stream.
        OSError: The connection was lost.
    """
    again = list(body) if sum(map(len, body)) <= _KEPT_BYTES else []
    post = partial(upstream.post, where, f"{where}/infer", headers)
    try:
        return await post(body, partial(room.make, again))
    except CutResponseError:
        if not again:
            raise
    room.call.room.hold(0)  # who waits holds nothing
    await room.unread.wait(room.largest, room.limit_s)
    return await post(again, partial(room.make, []))
