"""Ask a model about many files: many requests at a time, and a row for each file's answer.

A run can be ended at any time and goes on where it stopped: see `ledger`. What is wrong with
one file is its row; what is wrong with the server ends the run.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from marship.client import AsyncClient, ModelStatus
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotFoundError,
    NotRunningError,
    RateLimitError,
    ServerError,
    TokenError,
    UsageError,
    WorkerDiedError,
)
from marship.predict.bounds import LONGEST_STREAM_S, Limits, Room, longest_wait_s
from marship.predict.ledger import Ledger
from marship.predict.outcome import Outcome
from marship.predict.rows import Row, Stamp
from marship.predict.sources import Source, may_be_sound, media_type
from marship.predict.transcripts import Transcripts
from marship.torchserve.retries import FIRST_PAUSE_S, LONGEST_PAUSE_S, MOST_DEATHS, RETRY_S

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

    def on_trouble(self, error: MarshipError) -> None:
        """The server does not answer just now, and is asked again."""


def ask_all(run: Run, home: Path | None = None, watcher: Watcher | None = None) -> Outcome:
    """Ask a model about every file that has no answer yet.

    Args:
        run: What is asked.
        home: The server's folder; None is the default one.
        watcher: Told how it goes.

    Raises:
        UsageError: The file of answers is another's, a setting cannot be meant, or transcripts
            are wanted of a model that makes none.
        NotFoundError: There is no such model or version.
        ServerError: The model has no worker, or the server is gone. Answers are kept.
        StorageError: Answers cannot be written.
    """
    return asyncio.run(_ask_all(run, home, watcher or Watcher()))


async def _ask_all(run: Run, home: Path | None, watcher: Watcher) -> Outcome:
    limits = Limits.of(home)
    model = await _ready_model(run, home)
    in_flight = limits.in_flight(run.in_flight, model)
    with Ledger(run.out, f"{model.name} {model.version}", again=run.again) as ledger:
        waiting = _unanswered(run, ledger)
        before = len(run.sources) - len(waiting)
        watcher.on_start(len(waiting), before, is_torn=ledger.is_torn)
        began = time.monotonic()
        hears = any(may_be_sound(run.kind(source)) for source in waiting)
        timeout_s = LONGEST_STREAM_S if hears else longest_wait_s(model, in_flight)
        async with AsyncClient(home, timeout_s=timeout_s, retry_s=0) as client:  # see _send
            await _Asking(run, client, ledger, watcher, limits).all(waiting, in_flight)
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


async def _ready_model(run: Run, home: Path | None) -> ModelStatus:
    async with AsyncClient(home) as client:
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
    client: AsyncClient
    ledger: Ledger
    watcher: Watcher
    limits: Limits
    room: Room = field(default_factory=lambda: Room(MOST_BYTES_IN_FLIGHT))
    answered_at: float = field(default_factory=time.monotonic)

    async def all(self, sources: Sequence[Source], in_flight: int) -> None:
        """Ask about all files, so many at a time; the first error of the server ends it."""
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
        """A file's row: an answer, or why there is none."""
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
        """The model's answer; a server that is busy or away is asked again for a while."""
        kind = self.run.kind(source)
        troubled_at: float | None = None
        pause_s, deaths = FIRST_PAUSE_S, 0
        while True:
            try:
                answer = await self._answer(body, kind)
            except MarshipError as error:
                deaths += isinstance(error, WorkerDiedError)
                if deaths > MOST_DEATHS or not _may_pass(error):
                    self.answered_at = time.monotonic()
                    raise
                troubled_at = troubled_at or time.monotonic()
                self._check_patience(error, troubled_at)
                self.watcher.on_trouble(error)
            else:
                self.answered_at = time.monotonic()
                return answer
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  no secret
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _answer(self, body: bytes, kind: str) -> Any:  # noqa: ANN401  any JSON value
        """The whole answer. Of sound it is the last line: a long recording must be streamed."""
        ask = {"version": self.run.version, "content_type": kind}
        if not may_be_sound(kind):
            return await self.client.predict(self.run.model, body, **ask)
        answer = None
        async with aclosing(self.client.stream(self.run.model, body, **ask)) as values:
            async for value in values:
                answer, self.answered_at = value, time.monotonic()
        return answer

    def _check_patience(self, error: MarshipError, troubled_at: float) -> None:
        """Give up a file that long had trouble, or the run if nobody was answered since."""
        now = time.monotonic()
        silent_s = now - self.answered_at
        if now - troubled_at <= RETRY_S:
            return
        if silent_s > RETRY_S:
            raise _GoneError(
                f"the server must answer within {RETRY_S:g} s, got for every file: {error}"
            ) from error
        if silent_s < RETRY_S / 2:
            raise error  # others have answers: it is this file


_UNSAID = (NotRunningError, NoAnswerError)
_PASSING = (*_UNSAID, RateLimitError, WorkerDiedError)


class _GoneError(ServerError):
    """No file is answered any more."""


def _may_pass(error: MarshipError) -> bool:
    """Whether the same request may be answered later: a full queue, a limit, a dead worker."""
    return isinstance(error, _PASSING) or error.status == HTTPStatus.SERVICE_UNAVAILABLE


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
