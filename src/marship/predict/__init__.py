"""Ask a model about many files: many requests at a time, and a row for each file's answer.

A run can be ended at any time and goes on where it stopped: see `ledger`. What is wrong with
one file is its row; what is wrong with the server ends the run.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from marship.client import AsyncClient
from marship.client.address import Address
from marship.client.clients import ModelStatus
from marship.engines.torchserve.access import URL_VARIABLES
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotFoundError,
    NotRunningError,
    RateLimitError,
    ServerError,
    TokenError,
    UsageError,
)
from marship.exchange.calls import Pause
from marship.exchange.retries import FIRST_PAUSE_S, RETRY_S, RetryPolicy
from marship.predict.bounds import (
    FEWEST_IN_FLIGHT,
    LONGEST_STREAM_S,
    UNKNOWN_WAIT_S,
    Limits,
    Room,
    longest_wait_s,
)
from marship.predict.ledger import Ledger
from marship.predict.outcome import Outcome
from marship.predict.rows import Row, Stamp
from marship.predict.sources import Source, may_be_sound, media_type
from marship.predict.transcripts import Transcripts

MOST_BYTES_IN_FLIGHT = 1 << 27


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked, and where the answers go.

    Attributes:
        model: The model's name.
        sources: The files.
        out: The file of answers, .csv or .jsonl.
        version: None is the default one.
        content_type: Of all files; None goes by each one's suffix.
        in_flight: Requests at a time; None goes by the model's workers and batches.
        again: Forget earlier answers.
        transcripts: What is written of each file beside its row.
    """

    model: str
    sources: Sequence[Source]
    out: Path
    version: str | None = None
    content_type: str | None = None
    in_flight: int | None = None
    again: bool = False
    transcripts: Transcripts | None = None

    def kind(self, source: Source) -> str:
        """What a file is sent as."""
        return self.content_type or media_type(source.path)


class Watcher:
    """Told how a run goes; what it does not override says nothing."""

    def on_start(self, waiting: int, answered: int, *, is_torn: bool) -> None:
        """Before the first request: files to ask about, and those answered before."""

    def on_row(self, row: Row) -> None:
        """A file has its row."""

    def on_trouble(self) -> None:
        """The server does not respond just now, and is retried."""


def ask_all(run: Run, address: Address | None = None, watcher: Watcher | None = None) -> Outcome:
    """Ask a model about every file that has no answer yet.

    Args:
        run: What is asked.
        address: Where the server is; None is the default home. One whose management API cannot
            be called, such as a proxy, must be asked for a version by name.
        watcher: Told how it goes.

    Raises:
        UsageError: The file of responses belongs to another run, a setting cannot be meant, or
            transcripts are wanted of a model that makes none.
        NotFoundError: There is no such model or version.
        ServerError: The model has no worker, or the server is gone. Answers are kept.
        StorageError: Answers cannot be written.
    """
    return asyncio.run(_ask_all(run, address or Address(), watcher or Watcher()))


async def _ask_all(run: Run, address: Address, watcher: Watcher) -> Outcome:
    async with address.async_client() as client:
        limits = Limits.of(client)
        plan = await _planned(run, client, limits)
    run = replace(run, version=plan.version)  # the one in the rows, whatever the default becomes
    with Ledger(run.out, f"{run.model} {plan.version}", again=run.again) as ledger:
        waiting = _unanswered(run, ledger)
        before = len(run.sources) - len(waiting)
        watcher.on_start(len(waiting), before, is_torn=ledger.is_torn)
        began = time.monotonic()
        hears = any(may_be_sound(run.kind(source)) for source in waiting)
        timeout_s = LONGEST_STREAM_S if hears else plan.timeout_s
        asking = _Asking(run, ledger, watcher, limits)
        async with address.async_client(
            timeout_s=timeout_s, retry_s=RETRY_S, on_retry=asking.on_retry
        ) as client:
            # it waits for a server that it has met
            await (_ready_model(run, client) if client.has("management") else client.ping())
            await asking.all(client, waiting, plan.in_flight)
        done = Outcome(before, time.monotonic() - began)
        ledger.finish()
        done.take(ledger.rows(run.sources))
        return done


def _unanswered(run: Run, ledger: Ledger) -> list[Source]:
    """What is to be asked; transcripts that are missing come from the rows, if they are whole."""
    waiting = ledger.unanswered(run.sources)
    if run.transcripts is None:
        return waiting
    asked = {source.name for source in waiting}
    for source in run.sources:
        if source.name in asked or not run.transcripts.lacks(source):
            continue
        if ledger.keeps_answers:
            (row,) = ledger.rows([source])
            run.transcripts.write(source, row.answer)
        else:
            waiting.append(source)
    return waiting


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which version is asked, how many requests at a time, and how long each may take."""

    version: str
    in_flight: int
    timeout_s: float


async def _planned(run: Run, client: AsyncClient, limits: Limits) -> _Plan:
    """By the model's workers and batches, where the management API tells them.

    Raises:
        UsageError: It cannot be asked which version is the default.
    """
    if client.has("management"):
        model = await _ready_model(run, client)
        in_flight = limits.in_flight(run.in_flight, model)
        return _Plan(model.version, in_flight, longest_wait_s(model, in_flight))
    if run.version is None:
        raise UsageError(
            "--version must be given where only predictions can be asked for, got none: one file "
            f"of answers belongs to one version. Name it, or set {URL_VARIABLES['management']}."
        )
    return _Plan(run.version, run.in_flight or FEWEST_IN_FLIGHT, UNKNOWN_WAIT_S)


async def _ready_model(run: Run, client: AsyncClient) -> ModelStatus:
    (model,) = await client.describe(run.model, run.version)
    if not model.ready:
        raise ServerError(
            f"{model.name} must have a worker that is ready, got none of {len(model.workers)}. "
            f"Wait for it, or start one with: marship scale {model.name} 1"
        )
    return model


@dataclass(slots=True)
class _Asking:
    """Sends files and writes their rows."""

    run: Run
    ledger: Ledger
    watcher: Watcher
    limits: Limits
    room: Room = field(default_factory=lambda: Room(MOST_BYTES_IN_FLIGHT))
    answered_at: float = field(default_factory=time.monotonic)
    troubled_at: float = -math.inf
    client: AsyncClient = field(init=False)

    def on_retry(self) -> None:
        """The server is busy or away, and the client retries."""
        self.troubled_at = time.monotonic()
        self.watcher.on_trouble()

    async def all(self, client: AsyncClient, sources: Sequence[Source], in_flight: int) -> None:
        """Ask about all files, so many at a time; the first error of the server ends it."""
        self.client = client
        rest = iter(sources)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(in_flight, len(sources))):
                    group.create_task(self._ask_each(rest))
        except ExceptionGroup as errors:
            ours, bugs = errors.split(MarshipError)
            if ours is None or bugs is not None:
                raise
            raise ours.exceptions[0] from None

    async def _ask_each(self, sources: Iterator[Source]) -> None:
        for source in sources:
            row = await asyncio.to_thread(self._keep, source, await self._ask(source))
            self.ledger.add(row)
            self.watcher.on_row(row)

    async def _ask(self, source: Source) -> Row:
        """A file's row: a response, or the reason of its failure."""
        row = Row(source.name, self.ledger.model)
        try:
            stamp = Stamp.of(source.path.stat())
            row, size_bytes = replace(row, stamp=stamp), stamp.size_bytes
            if refusal := self.limits.refusal(size_bytes, self.run.kind(source)):
                return replace(row, error=f"{refusal.code}: {refusal}")
            async with self.room.take(size_bytes):  # read no sooner than it is sent
                body = await asyncio.to_thread(source.path.read_bytes)
                answer = plain(await self._send(source, body))
        except OSError as error:
            return replace(row, error=f"unreadable: {error.strerror or error}")
        except (TokenError, NotFoundError, UsageError, _GoneError):
            raise  # true of every file
        except MarshipError as error:
            status = None if isinstance(error, _UNSAID) else error.status
            return replace(row, status=status, error=f"{error.code}: {error}")
        return replace(row, status=HTTPStatus.OK, answer=answer)

    def _keep(self, source: Source, row: Row) -> Row:
        """Write a row's transcripts: before the row, so that none is missing after a kill."""
        if self.run.transcripts is None:
            return row
        try:
            if row.is_answered:
                self.run.transcripts.write(source, row.answer)
            else:
                self.run.transcripts.drop(source)
        except OSError as error:
            return replace(row, status=None, error=f"unwritable: {error.strerror or error}")
        return row

    async def _send(self, source: Source, body: bytes) -> Any:  # noqa: ANN401  any JSON value
        """The model's answer.

        The client retries a server that is busy or away, as for a single prediction. What it
        cannot know: that others see a restart, too, and that a stream which broke off may start
        over.
        """
        kind = self.run.kind(source)
        policy = RetryPolicy(RETRY_S, self.on_retry)
        while True:
            try:
                answer = await self._answer(body, kind)
            except MarshipError as error:
                pause = self._pause(error, policy)
            else:
                self.answered_at = time.monotonic()
                return answer
            await asyncio.sleep(pause.seconds)

    async def _answer(self, body: bytes, kind: str) -> Any:  # noqa: ANN401  any JSON value
        """The whole answer. Of sound it is the last line: a long recording must be streamed."""
        ask = {"version": self.run.version, "content_type": kind}
        if not may_be_sound(kind):
            return await self.client.predict(self.run.model, body, **ask)
        answer = None
        try:
            async with aclosing(self.client.stream(self.run.model, body, **ask)) as values:
                async for value in values:
                    answer, self.answered_at = value, time.monotonic()
        except NoAnswerError as error:
            if answer is None or error.timed_out:
                raise
            raise _BrokenOffError(str(error)) from error
        return answer

    def _pause(self, error: MarshipError, policy: RetryPolicy) -> Pause:
        """How long to wait before a file is asked about once more.

        Raises:
            NotFoundError: The version is gone.
            _GoneError: Nobody was answered for as long as the client has asked.
            MarshipError: It is this file's own.
        """
        now = time.monotonic()
        silent_s, is_back = now - self.answered_at, now - self.troubled_at <= RETRY_S
        if isinstance(error, NotFoundError):
            if is_back and (pause := policy.next_pause()):
                return pause  # a server that was away has its models a little later
            raise self._unregistered(error) from error
        if isinstance(error, _BrokenOffError) and (pause := policy.after_loss()):
            return pause
        if not _may_pass(error):
            self.answered_at = now
            raise error
        if silent_s < RETRY_S / 4:
            raise error  # others have answers: it is this file
        if silent_s > RETRY_S:
            raise _GoneError(
                f"the server must answer within {RETRY_S:g} s, got for every file: {error}"
            ) from error
        return Pause(FIRST_PAUSE_S)

    def _unregistered(self, error: NotFoundError) -> NotFoundError:
        name, version = self.run.model, self.run.version
        return NotFoundError(
            f"{name} {version} must stay registered until every file has its row, got it "
            f"unregistered ({error}) Ask the version that answers now with --again or another "
            "--out; a rollout with --keep-old leaves the old version to those who ask it."
        )


_UNSAID = (NotRunningError, NoAnswerError)


class _BrokenOffError(NoAnswerError):
    """A stream ended in the middle."""


class _GoneError(ServerError):
    """No file is answered any more."""


def _may_pass(error: MarshipError) -> bool:
    """Whether the client's retries were exhausted: a full queue, a limit, a loss."""
    if isinstance(error, NoAnswerError):
        return not error.timed_out
    return isinstance(error, RateLimitError) or error.status == HTTPStatus.SERVICE_UNAVAILABLE


def plain(answer: Any) -> Any:  # noqa: ANN401  any JSON value
    """An answer as a JSON value; a server that names no type may still send JSON or text.

    Raises:
        ServerError: It is neither.
    """
    if isinstance(answer, np.ndarray):
        return answer.tolist()
    if not isinstance(answer, bytes):
        return answer
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        pass
    try:
        return answer.decode()
    except UnicodeDecodeError as error:
        raise ServerError(
            f"an answer must be JSON, npy or text to be a row, got {len(answer)} other bytes. "
            "Ask about this file alone."
        ) from error
