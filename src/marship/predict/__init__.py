"""Predicts many files concurrently, and writes a row for each file's response.

A run can be stopped at any time and resumed: see `ledger`. An error of one file is written to its
row; an error of the server ends the run.
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
from marship.engines.addresses import URL_VARIABLES
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
    ByteBudget,
    ServerLimits,
    longest_wait_s,
)
from marship.predict.ledger import Ledger
from marship.predict.outcome import Outcome
from marship.predict.rows import Row, Stamp
from marship.predict.sources import Source, may_be_sound
from marship.predict.transcripts import Transcripts
from marship.serving.formats.media import media_type

MOST_BYTES_IN_FLIGHT = 1 << 27


@dataclass(frozen=True, slots=True)
class Run:
    """The files to predict, and where the responses go.

    Attributes:
        model: The model's name.
        sources: The files.
        out: The output file, .csv or .jsonl.
        version: None is the default version.
        content_type: Of all files; None follows from each one's suffix.
        in_flight: Concurrent requests; None follows from the model's workers and batches.
        again: Discard earlier responses.
        transcripts: Transcripts to write for each file besides its row.
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
        """The content type of a file."""
        return self.content_type or media_type(source.path)


class Watcher:
    """Callbacks for progress; override those that you need."""

    def on_start(self, waiting: int, done: int, *, is_torn: bool) -> None:
        """Before the first request: the number of files to predict, and of those done before."""

    def on_row(self, row: Row) -> None:
        """A file's row was written."""

    def on_trouble(self) -> None:
        """The server is not responding, and requests are retried."""


def predict_files(
    run: Run, address: Address | None = None, watcher: Watcher | None = None
) -> Outcome:
    """Predict every file that has no response yet.

    Args:
        run: The files and options.
        address: The server; None is the default home. If its management API cannot be called, as
            behind a proxy, a version must be given.
        watcher: Receives progress.

    Raises:
        UsageError: The output file belongs to another run, a setting is invalid, or transcripts
            are wanted of a model without them.
        NotFoundError: There is no such model or version.
        ServerError: The model has no worker, or the server is gone. Responses are kept.
        StorageError: The output cannot be written.
    """
    return asyncio.run(_predict_files(run, address or Address(), watcher or Watcher()))


async def _predict_files(run: Run, address: Address, watcher: Watcher) -> Outcome:
    async with address.async_client() as client:
        limits = ServerLimits.of(client)
        plan = await _planned(run, client, limits)
    run = replace(run, version=plan.version)  # the one in the rows, whatever the default becomes
    with Ledger(run.out, f"{run.model} {plan.version}", again=run.again) as ledger:
        waiting = _remaining(run, ledger)
        before = len(run.sources) - len(waiting)
        watcher.on_start(len(waiting), before, is_torn=ledger.is_torn)
        began = time.monotonic()
        has_sound = any(may_be_sound(run.kind(source)) for source in waiting)
        timeout_s = LONGEST_STREAM_S if has_sound else plan.timeout_s
        predictions = _Predictions(run, ledger, watcher, limits)
        async with address.async_client(
            timeout_s=timeout_s, retry_s=RETRY_S, on_retry=predictions.on_retry
        ) as client:
            # it waits for a server that has responded before
            await (_ready_model(run, client) if client.has("management") else client.ping())
            await predictions.all(client, waiting, plan.in_flight)
        done = Outcome(before, time.monotonic() - began)
        ledger.finish()
        done.take(ledger.rows(run.sources))
        return done


def _remaining(run: Run, ledger: Ledger) -> list[Source]:
    """Files to send; missing transcripts are rewritten from their rows, if those are complete."""
    waiting = ledger.remaining(run.sources)
    if run.transcripts is None:
        return waiting
    missing = {source.name for source in waiting}
    for source in run.sources:
        if source.name in missing or not run.transcripts.lacks(source):
            continue
        if ledger.keeps_responses:
            (row,) = ledger.rows([source])
            run.transcripts.write(source, row.answer)
        else:
            waiting.append(source)
    return waiting


@dataclass(frozen=True, slots=True)
class _Plan:
    """The version, the number of concurrent requests, and their timeout."""

    version: str
    in_flight: int
    timeout_s: float


async def _planned(run: Run, client: AsyncClient, limits: ServerLimits) -> _Plan:
    """Plan by the model's workers and batches, if the management API is known.

    Raises:
        UsageError: The default version is unknown.
    """
    if client.has("management"):
        model = await _ready_model(run, client)
        in_flight = limits.in_flight(run.in_flight, model)
        return _Plan(model.version, in_flight, longest_wait_s(model, in_flight))
    if run.version is None:
        raise UsageError(
            "--version must be given without a management address, got none: one file "
            f"of predictions belongs to one version. Name it, or set {URL_VARIABLES['management']}."
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
class _Predictions:
    """Sends files and writes their rows."""

    run: Run
    ledger: Ledger
    watcher: Watcher
    limits: ServerLimits
    byte_budget: ByteBudget = field(default_factory=lambda: ByteBudget(MOST_BYTES_IN_FLIGHT))
    responded_at: float = field(default_factory=time.monotonic)
    troubled_at: float = -math.inf
    client: AsyncClient = field(init=False)

    def on_retry(self) -> None:
        """The server is busy or not running, and the client retries."""
        self.troubled_at = time.monotonic()
        self.watcher.on_trouble()

    async def all(self, client: AsyncClient, sources: Sequence[Source], in_flight: int) -> None:
        """Predict all files with bounded concurrency; stops at the first server error."""
        self.client = client
        rest = iter(sources)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(in_flight, len(sources))):
                    group.create_task(self._predict_each(rest))
        except ExceptionGroup as errors:
            ours, bugs = errors.split(MarshipError)
            if ours is None or bugs is not None:
                raise
            raise ours.exceptions[0] from None

    async def _predict_each(self, sources: Iterator[Source]) -> None:
        for source in sources:
            row = await asyncio.to_thread(self._keep, source, await self._row_of(source))
            self.ledger.add(row)
            self.watcher.on_row(row)

    async def _row_of(self, source: Source) -> Row:
        """Predict a file: its row with the response, or the reason of the failure."""
        row = Row(source.name, self.ledger.model)
        try:
            stamp = Stamp.of(source.path.stat())
            row, size_bytes = replace(row, stamp=stamp), stamp.size_bytes
            if refusal := self.limits.refusal(size_bytes, self.run.kind(source)):
                return replace(row, error=f"{refusal.code}: {refusal}")
            async with self.byte_budget.take(size_bytes):  # not read before it is sent
                body = await asyncio.to_thread(source.path.read_bytes)
                response = plain(await self._send(source, body))
        except OSError as error:
            return replace(row, error=f"unreadable: {error.strerror or error}")
        except (TokenError, NotFoundError, UsageError, _GoneError):
            raise  # applies to every file
        except MarshipError as error:
            status = None if isinstance(error, _UNSAID) else error.status
            return replace(row, status=status, error=f"{error.code}: {error}")
        return replace(row, status=HTTPStatus.OK, answer=response)

    def _keep(self, source: Source, row: Row) -> Row:
        """Write a row's transcripts, before the row, so that none is missing after a kill."""
        if self.run.transcripts is None:
            return row
        try:
            if row.has_response:
                self.run.transcripts.write(source, row.answer)
            else:
                self.run.transcripts.drop(source)
        except OSError as error:
            return replace(row, status=None, error=f"unwritable: {error.strerror or error}")
        return row

    async def _send(self, source: Source, body: bytes) -> Any:  # noqa: ANN401  any JSON value
        """The model's response.

        The client retries a server that is busy or not running, as for a single prediction. What
        is added here: requests are failing together after a restart, and a broken stream may be
        restarted.
        """
        kind = self.run.kind(source)
        policy = RetryPolicy(RETRY_S, self.on_retry)
        while True:
            try:
                response = await self._response(body, kind)
            except MarshipError as error:
                pause = self._pause(error, policy)
            else:
                self.responded_at = time.monotonic()
                return response
            await asyncio.sleep(pause.seconds)

    async def _response(self, body: bytes, kind: str) -> Any:  # noqa: ANN401  any JSON value
        """The whole response; for audio the last line, as a long recording must be streamed."""
        options = {"version": self.run.version, "content_type": kind}
        if not may_be_sound(kind):
            return await self.client.predict(self.run.model, body, **options)
        response = None
        try:
            async with aclosing(self.client.stream(self.run.model, body, **options)) as values:
                async for value in values:
                    response, self.responded_at = value, time.monotonic()
        except NoAnswerError as error:
            if response is None or error.timed_out:
                raise
            raise _BrokenOffError(str(error)) from error
        return response

    def _pause(self, error: MarshipError, policy: RetryPolicy) -> Pause:
        """How long to wait before a file is retried.

        Raises:
            NotFoundError: The version was unregistered.
            _GoneError: No request has succeeded within the retry time.
            MarshipError: The error is this file's.
        """
        now = time.monotonic()
        silent_s, is_back = now - self.responded_at, now - self.troubled_at <= RETRY_S
        if isinstance(error, NotFoundError):
            if is_back and (pause := policy.next_pause()):
                return pause  # a restarted server loads its models a little later
            raise self._unregistered(error) from error
        if isinstance(error, _BrokenOffError) and (pause := policy.after_loss()):
            return pause
        if not _may_pass(error):
            self.responded_at = now
            raise error
        if silent_s < RETRY_S / 4:
            raise error  # others succeed: the error is this file's
        if silent_s > RETRY_S:
            raise _GoneError(
                f"the server must respond within {RETRY_S:g} s, got for every file: {error}"
            ) from error
        return Pause(FIRST_PAUSE_S)

    def _unregistered(self, error: NotFoundError) -> NotFoundError:
        name, version = self.run.model, self.run.version
        return NotFoundError(
            f"{name} {version} must stay registered until every file has its row, got it "
            f"unregistered ({error}) Use the default version now with --again or another "
            "--out; a rollout with --keep-old leaves the old version to those who use it."
        )


_UNSAID = (NotRunningError, NoAnswerError)


class _BrokenOffError(NoAnswerError):
    """A stream ended early."""


class _GoneError(ServerError):
    """The server does not respond for any file."""


def _may_pass(error: MarshipError) -> bool:
    """Whether the client's retries were exhausted: a full queue, a limit, a loss."""
    if isinstance(error, NoAnswerError):
        return not error.timed_out
    return isinstance(error, RateLimitError) or error.status == HTTPStatus.SERVICE_UNAVAILABLE


def plain(response: Any) -> Any:  # noqa: ANN401  any JSON value
    """A response as a JSON value; without a content type it may still be JSON or text.

    Raises:
        ServerError: It is neither JSON, npy nor text.
    """
    if isinstance(response, np.ndarray):
        return response.tolist()
    if not isinstance(response, bytes):
        return response
    try:
        return orjson.loads(response)
    except orjson.JSONDecodeError:
        pass
    try:
        return response.decode()
    except UnicodeDecodeError as error:
        raise ServerError(
            f"a response must be JSON, npy or text to be a row, got {len(response)} other bytes. "
            "Send this file alone."
        ) from error
