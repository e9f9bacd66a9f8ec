"""StreamHandler: a handler that sends responses, or parts of them, before the batch is done."""

from collections.abc import Iterator, Sequence

from marship.serving.handler import Clock, OnnxHandler
from marship.serving.message import OK, Reply, Request, hidden


class StreamHandler(OnnxHandler):
    """Handles a batch incrementally; a custom handler overrides `answers`."""

    streams = True

    def answers(self, requests: Sequence[Request], clock: Clock) -> Iterator[dict[int, Reply]]:
        """Yield replies as they are ready, by the requests' index in the batch.

        A request has any number of parts with `Reply.more`, and one last part. Call `check_fields`
        for each request first: the host keeps nothing of a form that is too large.
        """
        raise NotImplementedError

    def rechecks(self) -> bool:
        """No rows are rechecked: the host's timeout applies to each part of a stream."""
        return False

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[dict[int, Reply], str]]:
        """Yield replies as they are ready, with the Server-Timing so far; never raises."""
        clock, waiting = Clock(), set(range(len(requests)))
        failed: list[str] = []
        try:
            for ready in self._turns(requests, clock):
                fitting = {i: self._fitted(reply) for i, reply in ready.items() if i in waiting}
                ended = {i: reply for i, reply in fitting.items() if not reply.more}
                waiting -= ended.keys()
                failed += [reply.outcome for reply in ended.values() if reply.outcome != OK]
                yield fitting, clock.server_timing()
        except Exception:  # a fault here must not end the worker
            error = self._error(hidden("answer"))
            failed += [error.outcome] * len(waiting)
            yield dict.fromkeys(waiting, error), clock.server_timing()
        self.metrics.add_batch(len(requests), clock.seconds, failed)

    def _turns(self, requests: Sequence[Request], clock: Clock) -> Iterator[dict[int, Reply]]:
        """Turns of several batches go on side by side, one after the other."""
        turns = self.answers(requests, clock)
        while True:
            with self._calls:
                ready = next(turns, None)
            if ready is None:
                return
            yield ready
