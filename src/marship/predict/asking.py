"""Asks a model about one file: its row with the response, or with the reason of the failure."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson

from marship.client import AsyncClient
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
from marship.exchange.calls import Pause
from marship.exchange.retries import FIRST_PAUSE_S, RETRY_S, RetryPolicy
from marship.predict.bounds import LONGEST_STREAM_S, ByteBudget, ServerLimits
from marship.predict.rows import Row
from marship.predict.sources import Source, may_be_sound

MOST_BYTES_IN_FLIGHT = 1 << 27


@dataclass(slots=True)
class Asker:
    """Asks about files, several at a time.

    Attributes:
        model: The model's name.
        version: Its version.
        limits: The server's limits.
        content_type: Of all files; None follows from each one's suffix.
        on_trouble: Called when the server is not responding, and requests are retried.
        retries: Whether to wait for a server that is busy or away; else whoever asks does.
        client: The server's client; its `on_retry` is the one here.
    """

    model: str
    version: str
    limits: ServerLimits
    content_type: str | None = None
    on_trouble: Callable[[], None] = lambda: None
    retries: bool = True
    client: AsyncClient = field(init=False)
    _byte_budget: ByteBudget = field(default_factory=lambda: ByteBudget(MOST_BYTES_IN_FLIGHT))
    _responded_at: float = field(default_factory=time.monotonic)
    _troubled_at: float = -math.inf

    @property
    def label(self) -> str:
        """The model and its version, as rows have them."""
        return f"{self.model} {self.version}"

    def kind(self, source: Source) -> str:
        """The content type of a file."""
        return self.content_type or source.kind

    def client_settings(self, timeout_s: float) -> dict[str, Any]:
        """Arguments of the client."""
        retry_s = RETRY_S if self.retries else 0.0
        return {"timeout_s": timeout_s, "retry_s": retry_s, "on_retry": self.on_retry}

    def on_retry(self) -> None:
        """The server is busy or not running, and the client retries."""
        self._troubled_at = time.monotonic()
        self.on_trouble()

    async def row_of(self, source: Source) -> Row:
        """Predict a file: its row with the response, or the reason of the failure."""
        row = Row(source.name, self.label)
        try:
            stamp = source.stamp()
            row, size_bytes = replace(row, stamp=stamp), stamp.size_bytes
            if refusal := self.limits.refusal(size_bytes, self.kind(source)):
                return replace(row, error=f"{refusal.code}: {refusal}")
            async with self._byte_budget.take(size_bytes):  # not read before it is sent
                body = await asyncio.to_thread(source.read)
                response = plain(await self._send(source, body))
        except OSError as error:
            return replace(row, error=f"unreadable: {error.strerror or error}")
        except (TokenError, NotFoundError, UsageError, _GoneError):
            raise  # applies to every file
        except MarshipError as error:
            status = None if isinstance(error, _UNSAID) else error.status
            return replace(row, status=status, error=f"{error.code}: {error}")
        return replace(row, status=HTTPStatus.OK, answer=response)

    async def _send(self, source: Source, body: bytes) -> Any:  # noqa: ANN401  any JSON value
        """The model's response.

        The client retries a server that is busy or not running, as for a single prediction. What
        is added here: requests are failing together after a restart, and a broken stream may be
        restarted.
        """
        kind = self.kind(source)
        policy = RetryPolicy(RETRY_S, self.on_retry)
        while True:
            try:
                response = await self._response(body, kind)
            except MarshipError as error:
                pause = self._pause(error, policy)
            else:
                self._responded_at = time.monotonic()
                return response
            await asyncio.sleep(pause.seconds)

    async def _response(self, body: bytes, kind: str) -> Any:  # noqa: ANN401  any JSON value
        """The whole response; for audio the last line, as a long recording must be streamed."""
        options = {"version": self.version, "content_type": kind}
        if not may_be_sound(kind):
            return await self.client.predict(self.model, body, **options)
        response = None
        try:
            async with aclosing(self.client.stream(self.model, body, **options)) as values:
                async for value in values:
                    response, self._responded_at = value, time.monotonic()
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
        if not self.retries:
            if isinstance(error, NoAnswerError) and not error.timed_out:
                raise WorkerDiedError(str(error)) from error  # in the middle of its response
            raise error
        now = time.monotonic()
        silent_s, is_back = now - self._responded_at, now - self._troubled_at <= RETRY_S
        if isinstance(error, NotFoundError):
            if is_back and (pause := policy.next_pause()):
                return pause  # a restarted server loads its models a little later
            raise self._unregistered(error) from error
        if isinstance(error, _BrokenOffError) and (pause := policy.after_loss()):
            return pause
        if not _may_pass(error):
            self._responded_at = now
            raise error
        if silent_s < RETRY_S / 4:
            raise error  # others succeed: the error is this file's
        if silent_s > RETRY_S:
            raise _GoneError(
                f"the server must respond within {RETRY_S:g} s, got for every file: {error}"
            ) from error
        return Pause(FIRST_PAUSE_S)

    def _unregistered(self, error: NotFoundError) -> NotFoundError:
        name, version = self.model, self.version
        return NotFoundError(
            f"{name} {version} must stay registered until every file has its row, got it "
            f"unregistered ({error}) Use the default version now with --again or another "
            "--out; a rollout with --keep-old leaves the old version to those who use it."
        )


def longest_response_s(
    content_type: str | None, sources: Iterable[Source], otherwise_s: float
) -> float:
    """The timeout of a response: that to a recording may take hours."""
    kinds = [content_type] if content_type else (source.kind for source in sources)
    return LONGEST_STREAM_S if any(map(may_be_sound, kinds)) else otherwise_s


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
