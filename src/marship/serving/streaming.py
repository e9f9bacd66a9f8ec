"""StreamHandler: a handler whose answers, or parts of them, go out before the batch is done."""

from collections.abc import Iterator, Mapping, Sequence

from marship.serving.handler import Clock, Context, OnnxHandler, describe, hidden, to_request
from marship.serving.hosts.torchserve import wire as transport
from marship.serving.hosts.torchserve.outbox import Outbox
from marship.serving.hosts.torchserve.wire import Reply, Request, Send


class StreamHandler(OnnxHandler):
    """Answers a batch in turns: one of one's own overrides `answers`."""

    def answers(self, requests: Sequence[Request], clock: Clock) -> Iterator[dict[int, Reply]]:
        """What is ready after each turn, by the requests' places in the batch.

        A request has any number of parts that others follow (`Reply.more`), and one last. Pass
        each to `check_fields` first: the transport keeps nothing of a form that is too large.
        """
        raise NotImplementedError

    def rechecks(self) -> bool:
        """No row is repeated: parts of a stream are awaited within TorchServe's time limit."""
        return False

    def handle(self, data: Sequence[Mapping[str, object]], context: Context) -> list[bytes]:
        """Answer a batch that TorchServe's own reader has read.

        Its writer takes whole answers at the end alone, so nothing but parts goes out early.
        """
        requests = [
            to_request(row, context.get_all_request_header(index)) for index, row in enumerate(data)
        ]
        outbox, whole, timing = Outbox(len(requests)), dict[int, Reply](), ""
        for ready, timing in self.replies(requests):
            now = outbox.take(ready)
            if parts := {index: reply for index, reply in now.items() if reply.more}:
                describe(parts, timing, context)
                transport.send_parts(parts, context)
            whole |= {index: reply for index, reply in now.items() if not reply.more}
        whole |= outbox.rest()
        describe(whole, timing, context)
        return [whole[index].body for index in range(len(requests))]

    def answer(self, requests: Sequence[Request], send: Send) -> bytes:
        """Answer a batch that came through the buffer; what can go out early does."""
        outbox, timing = Outbox(len(requests)), ""
        for ready, timing in self.replies(requests):
            if now := outbox.take(ready):
                asked = [requests[index] for index in now]
                send(transport.encode(asked, list(now.values()), timing))
        rest = outbox.rest()
        return transport.encode([requests[index] for index in rest], list(rest.values()), timing)

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[dict[int, Reply], str]]:
        """What is ready after each turn, and the batch's Server-Timing so far; never raises."""
        clock, waiting = Clock(), set(range(len(requests)))
        try:
            for ready in self.answers(requests, clock):
                fitting = {i: self._fitted(reply) for i, reply in ready.items() if i in waiting}
                waiting -= {index for index, reply in fitting.items() if not reply.more}
                yield fitting, clock.server_timing()
        except Exception:  # a fault here must not end the worker
            yield dict.fromkeys(waiting, self._error(hidden("answer"))), clock.server_timing()
        self._metrics.add_batch(len(requests), clock.seconds)
