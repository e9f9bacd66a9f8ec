"""Predicts many files concurrently, and writes a row for each file's response.

A run can be stopped at any time and resumed: see `ledger`. An error of one file is written to its
row; an error of the server ends the run.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from marship.client import AsyncClient
from marship.client.address import Address
from marship.client.clients import ModelStatus
from marship.engines.addresses import URL_VARIABLES
from marship.errors import MarshipError, ServerError, UsageError
from marship.predict.asking import Asker, longest_response_s
from marship.predict.bounds import (
    FEWEST_IN_FLIGHT,
    UNKNOWN_WAIT_S,
    ServerLimits,
    longest_wait_s,
)
from marship.predict.ledger import Ledger
from marship.predict.outcome import Outcome
from marship.predict.rows import Row
from marship.predict.sources import Source
from marship.predict.transcripts import Transcripts


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
        waiting = remaining(run, ledger)
        before = len(run.sources) - len(waiting)
        watcher.on_start(len(waiting), before, is_torn=ledger.is_torn)
        began = time.monotonic()
        asker = Asker(run.model, plan.version, limits, run.content_type, watcher.on_trouble)
        timeout_s = longest_response_s(run.content_type, waiting, plan.timeout_s)
        async with address.async_client(**asker.client_settings(timeout_s)) as asker.client:
            # it waits for a server that has responded before
            client = asker.client
            await (_ready_model(run, client) if client.has("management") else client.ping())
            await _Predictions(run, ledger, watcher, asker).all(waiting, plan.in_flight)
        done = Outcome(before, time.monotonic() - began)
        ledger.finish()
        done.take(ledger.rows(run.sources))
        return done


def remaining(run: Run, ledger: Ledger) -> list[Source]:
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
        at_once = model.ready * model.batch_size
        in_flight = limits.in_flight(run.in_flight, at_once)
        wait_s = longest_wait_s(model.response_timeout_s, in_flight, at_once)
        return _Plan(model.version, in_flight, wait_s)
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


@dataclass(frozen=True, slots=True)
class _Predictions:
    """Asks about files and writes their rows."""

    run: Run
    ledger: Ledger
    watcher: Watcher
    asker: Asker

    async def all(self, sources: Sequence[Source], in_flight: int) -> None:
        """Predict all files with bounded concurrency; stops at the first server error."""
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
            row = await self.asker.row_of(source)
            row = await asyncio.to_thread(with_transcripts, self.run, source, row)
            self.ledger.add(row)
            self.watcher.on_row(row)


def with_transcripts(run: Run, source: Source, row: Row) -> Row:
    """Write a row's transcripts, before the row, so that none is missing after a kill."""
    if run.transcripts is None:
        return row
    try:
        if row.has_response:
            run.transcripts.write(source, row.answer)
        else:
            run.transcripts.drop(source)
    except OSError as error:
        return replace(row, status=None, error=f"unwritable: {error.strerror or error}")
    return row
