"""StreamHandler: a handler whose answers, or parts of them, go out before the batch is done."""

from collections.abc import Iterator, Sequence

from marship.serving.handler import Clock, OnnxHandler
from marship.serving.message import Reply, Request, hidden


class StreamHandler(OnnxHandler):
    """Answers a batch in turns: one of one's own overrides `answers`."""

    streams = True

    def answers(self, requests: Sequence[Request], clock: Clock) -> Iterator[dict[int, Reply]]:
        """What is ready after each turn, by the requests' places in the batch.

        A request has any number of parts that others follow (`Reply.more`), and one last. Pass
        each to `check_fields` first: the transport keeps nothing of a form that is too large.
        """
        raise NotImplementedError

    def rechecks(self) -> bool:
        """No row is repeated: parts of a stream are awaited within the host's time limit."""
        return False

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[dict[int, Reply], str]]:
        """What is ready after each turn, and the Server-Timing so far; nothing is raised."""
        clock, waiting = Clock(), set(range(len(requests)))
        try:
            for ready in self.answers(requests, clock):
                fitting = {i: self._fitted(reply) for i, reply in ready.items() if i in waiting}
                waiting -= {index for index, reply in fitting.items() if not reply.more}
                yield fitting, clock.server_timing()
        except Exception:  # a fault here must not end the worker
            yield dict.fromkeys(waiting, self._error(hidden("answer"))), clock.server_timing()
        self.metrics.add_batch(len(requests), clock.seconds)
