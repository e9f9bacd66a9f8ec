"""Sends a batch's responses early where TorchServe allows it.

TorchServe accepts a message with responses to some of a batch's requests, and waits for another one
if a response in it has the header `ts_stream_next: true` (BatchAggregator.sendResponse of 0.12.0).
So responses can only be sent early beside a stream that continues. A stream's first part has its
status and headers; those of later parts are lost (RestJob.responseInference).
"""

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus

from marship.serving.hosts.torchserve.wire import STREAM_HEADER
from marship.serving.message import Reply

UNBUFFERED = ("X-Accel-Buffering", "no")
"""Disables nginx's response buffering (ngx_http_proxy_module, proxy_buffering)."""


class Outbox:
    """Decides which responses of a batch can be sent now.

    Args:
        size: How many requests the batch has.
    """

    def __init__(self, size: int) -> None:
        self._waited_for = size  # number of requests that are not finished
        self._held: dict[int, Reply] = {}
        self._begun: set[int] = set()  # streams whose last part was not sent

    def take(self, ready: Mapping[int, Reply]) -> dict[int, Reply]:
        """Add responses that are ready; returns those that can be sent now, possibly none.

        If all streams have ended and other requests are unfinished, one stream is kept open: its
        last part is sent as if others followed, and its end is in the last message.
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
        """The responses for the last message."""
        now, self._held = self._sent(self._held), {}
        return now

    def _sent(self, replies: Mapping[int, Reply]) -> dict[int, Reply]:
        return {index: self._marked(index, reply) for index, reply in sorted(replies.items())}

    def _marked(self, index: int, reply: Reply) -> Reply:
        """The response with the header that tells TorchServe whether more parts follow."""
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
