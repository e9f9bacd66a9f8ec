"""A batch's answers on their way out: whole ones, and streams.

TorchServe takes a message about some of a batch's requests, and awaits another one as long as an
answer in it has the header `ts_stream_next: true` (BatchAggregator.sendResponse of 0.12.0). So
what is ready can go out early beside a stream that goes on, and only then. A stream's first part
carries its status and headers; those of later parts are lost (RestJob.responseInference).
"""

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus

from marship.serving.hosts.torchserve.wire import STREAM_HEADER
from marship.serving.message import Reply

UNBUFFERED = ("X-Accel-Buffering", "no")
"""Tells nginx to pass parts on as they come (ngx_http_proxy_module, proxy_buffering)."""


class Outbox:
    """Says which answers of a batch can be sent now.

    Args:
        size: How many requests the batch has.
    """

    def __init__(self, size: int) -> None:
        self._waited_for = size  # as many have not ended
        self._held: dict[int, Reply] = {}
        self._begun: set[int] = set()  # streams whose end was not sent

    def take(self, ready: Mapping[int, Reply]) -> dict[int, Reply]:
        """Add what is ready; returns what can be sent at once, perhaps nothing.

        Where all streams have ended and other requests still wait, one stream is kept open: its
        last part is sent as one that others follow, and its end comes with the last message.
        """
        self._held.update(ready)
        self._waited_for -= len([reply for reply in ready.values() if not reply.more])
        if not self._waited_for:
            return {}
        if not any(reply.more for reply in self._held.values()):
            if not self._begun:
                return {}
            kept_open = min(self._begun)
            last = self._held.get(kept_open, Reply(b"", more=True))
            now = self._sent(self._held | {kept_open: replace(last, more=True)})
            self._held = {} if last.more else {kept_open: Reply(b"")}
            return now
        now, self._held = self._sent(self._held), {}
        return now

    def rest(self) -> dict[int, Reply]:
        """What the last message holds."""
        now, self._held = self._sent(self._held), {}
        return now

    def _sent(self, replies: Mapping[int, Reply]) -> dict[int, Reply]:
        return {index: self._marked(index, reply) for index, reply in sorted(replies.items())}

    def _marked(self, index: int, reply: Reply) -> Reply:
        """The answer with the header that tells TorchServe whether more of it follows."""
        if index not in self._begun and not reply.more:
            return reply
        if reply.status != HTTPStatus.OK:  # too late for a status: the error is the last line
            reply = replace(reply, body=reply.body + b"\n")
        if reply.more:
            self._begun.add(index)
        else:
            self._begun.discard(index)
        mark = (STREAM_HEADER, "true" if reply.more else "false")
        return replace(reply, headers=(*reply.headers, mark, UNBUFFERED))
