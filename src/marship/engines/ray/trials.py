"""Trials of new versions on a cluster: each front splits the requests that it gets."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import TypeAlias

from marship.engines.ray import cluster
from marship.engines.ray.access import ClusterAccess
from marship.engines.ray.line import Answer, Asked
from marship.engines.trials import TrialFigures, TrialOrder, TrialState, figures_of, merged
from marship.exchange.calls import Flow, Work
from marship.serving.hosts.direct.likeness import JSON_LENGTH, MOST_BYTES, compare
from marship.serving.hosts.direct.outcome import Likeness, VersionResponse
from marship.serving.hosts.direct.split import MOST_COPIES, MOST_COPY_BYTES
from marship.serving.hosts.direct.trial import RunningTrial

Ask: TypeAlias = Callable[[str], Awaitable[Answer]]
"""Asks a version, by its number."""


def renew_trial(access: ClusterAccess, order: TrialOrder) -> Flow[list[TrialFigures]]:
    """Begin a trial on all fronts, or let it go on, change or end it.

    Raises:
        ServerError: A front refuses it.
    """

    def renew() -> list[dict[str, object]]:
        access.connect()
        return cluster.broadcast(cluster.FRONT, "try_version", asdict(order))

    answers = yield Work(renew)
    return figures_of(answers)


def trials(access: ClusterAccess) -> Flow[list[TrialState]]:
    """The trials that run, with the figures of all fronts."""

    def look() -> list[TrialState]:
        access.connect()
        return merged(cluster.trial_states())

    found: list[TrialState] = yield Work(look)
    return found


class FrontSplit:
    """Sends the requests of a front's trials to one version, and those in the share to both."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._copies = self._copy_bytes = 0

    async def ask(self, trial: RunningTrial, asked: Asked, ask: Ask) -> Answer:
        """The response that the client gets to a request; perhaps both versions are asked."""
        given, other = trial.way(dict(asked.headers))
        if other is None:
            return await ask(given)
        is_level = trial.is_level(given, other)  # before either begins
        first = asyncio.ensure_future(_timed(trial, ask, given))
        second = None
        if (
            not is_level
            or self._copies >= MOST_COPIES
            or self._copy_bytes + len(asked.body) > MOST_COPY_BYTES
        ):
            trial.figures.dropped += 1
        else:
            self._copies, self._copy_bytes = self._copies + 1, self._copy_bytes + len(asked.body)
            second = asyncio.ensure_future(_timed(trial, ask, other))
        task = asyncio.ensure_future(self._note(trial, asked, given, first, second))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        answer, _ = await asyncio.shield(first)
        if given != trial.order.default and _is_gone(answer):
            return await ask(trial.order.default)
        return answer

    async def _note(
        self,
        trial: RunningTrial,
        asked: Asked,
        given: str,
        first: "asyncio.Future[tuple[Answer, VersionResponse]]",
        second: "asyncio.Future[tuple[Answer, VersionResponse]] | None",
    ) -> None:
        its = None
        if second is not None:
            try:
                its = (await second)[1]
            finally:
                size = self._copy_bytes - len(asked.body)
                self._copies, self._copy_bytes = self._copies - 1, size
        answer, mine = await first
        default, new = (mine, its) if given == trial.order.default else (its, mine)
        if given != trial.order.default and _is_gone(answer):
            trial.figures.absent += 1
            new = None
        trial.figures.note(default, new)
        if default is None or new is None:
            return
        loop, names = asyncio.get_running_loop(), dict(asked.headers)
        kind = names.get(b"content-type", b"").decode("latin-1")
        told = partial(compare, new, default, trial.order, request=asked.body, request_type=kind)
        found: Likeness = await loop.run_in_executor(None, told)
        trial.figures.note_likeness(names.get(b"x-request-id", b"?").decode("latin-1"), found)

    @staticmethod
    async def noted(
        trial: RunningTrial, version: str, parts: AsyncIterator[Answer]
    ) -> AsyncIterator[Answer]:
        """A stream of a version as it comes; it is counted, and compared with nothing."""
        began, is_first = time.perf_counter(), True
        wait = trial.begin(version)
        try:
            async for part in parts:
                if is_first:
                    wait.end()
                    outcome = VersionResponse(part.status, time.perf_counter() - began)
                    is_default = version == trial.order.default
                    trial.figures.note(*((outcome, None) if is_default else (None, outcome)))
                    is_first = False
                yield part
        finally:
            wait.leave()


def _is_gone(answer: Answer) -> bool:
    """Whether the version has no replica any more."""
    return answer.status == HTTPStatus.SERVICE_UNAVAILABLE and b'"no_worker"' in answer.body


async def _timed(trial: RunningTrial, ask: Ask, version: str) -> tuple[Answer, VersionResponse]:
    began, wait = time.perf_counter(), trial.begin(version)
    try:
        answer = await ask(version)
        wait.end()
    finally:
        wait.leave()
    took_s = time.perf_counter() - began
    names = {name.lower(): value for name, value in answer.headers}
    kind = names.get(b"content-type", b"").decode("latin-1")
    body = answer.body if len(answer.body) <= MOST_BYTES else None
    json_bytes = names.get(JSON_LENGTH.encode(), b"").decode("latin-1")
    return answer, VersionResponse(answer.status, took_s, kind, body, json_bytes)
