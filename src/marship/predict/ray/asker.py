"""What runs on a node: an archive's worker process, asked about shares of the files."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from marship.client import AsyncClient
from marship.engines.ray import plan, problems
from marship.engines.ray.hosted import Hosted, HostedVersion
from marship.errors import LoadError, MarshipError
from marship.exchange import sockets
from marship.predict.asking import Asker
from marship.predict.bounds import ServerLimits
from marship.predict.ray import shares
from marship.predict.rows import Row
from marship.predict.sources import Source

LIMITS = ServerLimits(plan.QUEUE, plan.MOST_BYTES, "Make it smaller: a cluster takes no more.")
"""Of one worker."""
_LOST = HTTPStatus.SERVICE_UNAVAILABLE
"""The worker ended with the file in hand, or had ended just before."""
_MOST_LATE = 3
_LATE = HTTPStatus.GATEWAY_TIMEOUT
"""The file took too long, or another one stopped the whole process."""
_START_S = 20.0
"""What a process takes until it loads a model, and from then on until it has its seat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareTask:
    """What every worker does.

    Attributes:
        served: The archive.
        chunks: References to its parts in Ray's object store.
        content_type: Of all files; None follows from each one's suffix.
        in_flight: Concurrent requests of one worker.
        timeout_s: Of a response.
    """

    served: HostedVersion
    chunks: Sequence[Any] = field(repr=False)
    content_type: str | None
    in_flight: int
    timeout_s: float

    def kept(self, digest: str) -> Iterator[bytes]:  # noqa: ARG002  there is one
        """The archive's bytes."""
        import ray

        for chunk in self.chunks:
            yield ray.get(chunk)


class ShareAsker:
    """Asks about shares of the files; called by Ray Data on two threads.

    Args:
        task: What it does.

    Raises:
        ReplicaError: The archive cannot be served here.
    """

    def __init__(self, task: ShareTask) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        try:
            self._hosted = Hosted(task.served, task.kept)
        except MarshipError as error:
            raise problems.ReplicaError(error) from None
        self._run(self._begin(task))

    def _run(self, work: Any) -> Any:  # noqa: ANN401  a coroutine and its result
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _begin(self, task: ShareTask) -> None:
        served = task.served
        self._label, self._load_s = served.name, served.startup_s + _START_S
        await self._wait_ready()
        self._asker = Asker(served.name, served.version, LIMITS, task.content_type, retries=False)
        self._asker.client = AsyncClient(
            inference_url=sockets.url(str(self._hosted.socket)),
            **self._asker.client_settings(task.timeout_s),
        )
        self._in_flight, self._slots = task.in_flight, asyncio.Semaphore(task.in_flight)
        self._lonely = asyncio.Lock()

    def __call__(self, share: Any) -> Any:  # noqa: ANN401  Arrow's tables
        """A share's rows.

        Raises:
            ReplicaError: The worker is gone, or refuses every file alike.
        """
        sources = [shares.unpacked(row) for row in share.to_pylist()]
        try:
            return shares.table(self._run(self._rows(sources)))
        except MarshipError as error:
            raise problems.ReplicaError(error) from None

    async def _rows(self, sources: Sequence[Source]) -> list[Row]:
        """Their rows; a file in hand when another one ended or stopped the worker is asked again.

        Alone, and once: so a file that has ended the worker twice is a row of that error. Where one
        after the other is late alone as well, the rest stays late: the same command asks it again.
        """
        late = 0
        doubtful = {_LOST, _LATE} if self._in_flight > 1 else {_LOST}
        rows = await asyncio.gather(*map(self._row, sources))
        for index, source in enumerate(sources):
            if rows[index].status not in doubtful:
                continue
            if rows[index].status == _LATE and late >= _MOST_LATE:
                continue
            rows[index] = await self._row_alone(source)
            late = late + 1 if rows[index].status == _LATE else 0
        return rows

    async def _row(self, source: Source) -> Row:
        async with self._slots:
            return await self._row_of(source)

    async def _row_alone(self, source: Source) -> Row:
        async with self._lonely:
            for _ in range(self._in_flight):
                await self._slots.acquire()
            try:
                return await self._row_of(source)
            finally:
                for _ in range(self._in_flight):
                    self._slots.release()

    async def _row_of(self, source: Source) -> Row:
        await self._wait_ready()
        return await self._asker.row_of(source)

    async def _wait_ready(self) -> None:
        """Wait for a worker that loads after another one died, as long as loading may take.

        Raises:
            LoadError: None starts any more.
        """
        if not await self._hosted.ready(self._load_s):
            self._hosted.check()
            raise LoadError(
                f"{self._label} must have a worker within {self._load_s:g} s, got none. Package it "
                "with a longer --startup-timeout-s."
            )

    def __del__(self) -> None:
        """End the worker."""
        if hosted := getattr(self, "_hosted", None):
            hosted.close()
