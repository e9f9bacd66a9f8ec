"""A handler that streams: a line for each number up to three, then one with all."""

from collections.abc import Iterator, Sequence

from marship.serving.handler import Clock, Reply, Request
from marship.serving.streaming import StreamHandler

LINES = "application/jsonl"


class CountHandler(StreamHandler):
    """Counts, whatever it is sent; the model is not asked."""

    def answers(self, requests: Sequence[Request], clock: Clock) -> Iterator[dict[int, Reply]]:
        """Three parts and a last one."""
        for number in range(3):
            clock.lap("infer")
            line = b'{"number":%d}\n' % number
            yield {index: Reply(line, LINES, more=True) for index in range(len(requests))}
        yield {index: Reply(b'{"all":3}\n', LINES) for index in range(len(requests))}
