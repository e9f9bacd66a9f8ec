"""Clients of TorchServe's management and inference APIs: `Client` blocks, `AsyncClient` awaits.

Every operation stands once, as a flow of calls and pauses; what differs is how bytes travel.
gRPC is not spoken: it drops the status and the headers of errors.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from marship import profiles
from marship.client.bodies import decoded, encoded
from marship.client.connected import Connected
from marship.engines.engine import Engine, Model, ModelStatus, OnWait, Registration, Wait, Worker
from marship.exchange.calls import Answer, Flow, line_value
from marship.exchange.transports import BlockingTransport

if TYPE_CHECKING:  # aiohttp takes longer to import than all the rest
    from marship.exchange.async_transport import AsyncTransport

__all__ = ["AsyncClient", "Client", "Model", "ModelStatus", "OnWait", "Worker"]

P = ParamSpec("P")
T = TypeVar("T")
Operation = Callable[Concatenate[Engine, P], Flow[T]]

LOAD_TIMEOUT_S = 180.0


def _register(  # noqa: PLR0913  keyword-only
    engine: Engine,
    archive: str,
    *,
    name: str | None = None,
    workers: int | None = None,
    profile: str | None = None,
    batch_size: int | None = None,
    max_batch_delay_ms: int | None = None,
    timeout_s: float = LOAD_TIMEOUT_S,
    on_wait: OnWait | None = None,
) -> Flow[ModelStatus]:
    """Register an archive of the model store; return when every wanted worker is ready.

    Args:
        engine: The server.
        archive: A file name in the server's model store.
        name: The model's name; None is the archive's own, whatever its file is called.
        workers: How many; None leaves it to the archive's model-config.yaml, else to
            default_workers_per_model. A number given here wins over both.
        profile: "latency" or "throughput", in place of the archive's.
        batch_size: The most requests in one batch; wins over the profile's and the archive's.
        max_batch_delay_ms: How long a batch waits; wins likewise.
        timeout_s: How long all workers may take.
        on_wait: Called with the workers that are ready, and those wanted.

    Raises:
        UsageError: The archive is no file name, or the model's name cannot be used.
        NotFoundError: The model store does not hold the archive, or another client unregistered
            the version while it loaded.
        PackageError: The archive is damaged.
        SignatureError: The server has a trust folder, and the archive is unsigned, altered,
            renamed or signed by another key.
        LoadError: A worker died, or the time is over: the message holds the worker's own
            error, the notes its log's last lines. Nothing of this call stays registered, and
            everything of others does.
        ServerError: The server refused.
    """
    if profile is not None:
        chosen = profiles.find(profile)
        batch_size = batch_size or chosen.batch_size
        max_batch_delay_ms = max_batch_delay_ms or chosen.max_batch_delay_ms
    wanted = Registration(archive, name, workers, batch_size, max_batch_delay_ms)
    return engine.register(wanted, Wait(timeout_s, on_wait))


def _scale(  # noqa: PLR0913  keyword-only
    engine: Engine,
    name: str,
    workers: int,
    *,
    version: str | None = None,
    timeout_s: float = LOAD_TIMEOUT_S,
    on_wait: OnWait | None = None,
) -> Flow[ModelStatus]:
    """Set the number of workers; return when as many are ready and no more exist.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Not all came up; the message says how many did, and why.
    """
    return engine.scale(name, workers, version=version, wait=Wait(timeout_s, on_wait))


def _wait_ready(
    engine: Engine,
    name: str,
    *,
    version: str | None = None,
    timeout_s: float = LOAD_TIMEOUT_S,
    on_wait: OnWait | None = None,
) -> Flow[ModelStatus]:
    """Wait for the workers of a model that the server loads, at its start or after a crash.

    Raises:
        NotFoundError: There is no such model or version.
        LoadError: A worker died, or the time is over.
    """
    return engine.wait_ready(name, version=version, wait=Wait(timeout_s, on_wait))


def _predict(
    engine: Engine,
    name: str,
    inputs: Any,  # noqa: ANN401  any JSON value, arrays, or bytes
    *,
    version: str | None = None,
    content_type: str | None = None,
) -> Flow[Any]:
    """Ask a model.

    Args:
        engine: The server.
        name: The model.
        inputs: Bytes go as they are; anything else as JSON, arrays by their values.
        version: None is the default one.
        content_type: Of bytes: else application/octet-stream.

    Returns:
        A JSON value for application/json, an array for application/x-npy, else bytes.

    Raises:
        RequestError: The model refused the input.
        NotFoundError: There is no such model or version.
        ServerError: The worker failed, or the queue is full.
    """
    body, kind = encoded(inputs, content_type)
    answer = yield from engine.predict(name, version=version, body=body, content_type=kind)
    return decoded(answer)


def _of(operation: Operation[P, T]) -> Operation[P, T]:
    """The operation of that name of whichever engine it is."""

    @functools.wraps(operation)
    def own(engine: Engine, /, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        flow: Flow[T] = getattr(engine, operation.__name__)(*args, **kwargs)
        return flow

    return own


def _blocking(operation: Operation[P, T]) -> "Callable[Concatenate[Client, P], T]":
    """The method of a blocking client that runs an operation."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._transport.run(operation(self._engine, *args, **kwargs))

    return _told_as(operation, method)


def _awaiting(
    operation: Operation[P, T],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    """The method of an asyncio client that runs an operation."""

    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transport.run(operation(self._engine, *args, **kwargs))

    return _told_as(operation, method)


M = TypeVar("M", bound=Callable[..., Any])


def _told_as(operation: Callable[..., Any], method: M) -> M:
    """Give a method the operation's help text and signature, with self for its engine."""
    functools.update_wrapper(method, operation)
    method.__name__ = operation.__name__.lstrip("_")
    engine, *others = inspect.signature(operation).parameters.values()
    this = engine.replace(name="self", annotation=inspect.Parameter.empty)
    signature = inspect.Signature([this, *others])
    method.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it there
    return method


class Client(Connected):
    """A blocking client.

    Addresses and tokens are found in the server's home folder, and tokens are
    renewed before they expire. A server elsewhere is named by its addresses and tokens: those
    of the home go to no address but its own server's.

    Args:
        home: The server's home; None is MARSHIP_HOME, else `.marship` in the current folder.
        inference_url: Where predictions are asked for: in place of MARSHIP_INFERENCE_URL, or of
            the home's address where a home is named.
        management_url: Where models are managed, likewise (MARSHIP_MANAGEMENT_URL).
        metrics_url: Where figures are read, likewise (MARSHIP_METRICS_URL).
        inference_token: In place of MARSHIP_INFERENCE_TOKEN and the home's.
        management_token: In place of MARSHIP_MANAGEMENT_TOKEN and the home's.
        timeout_s: How long one HTTP exchange may take, from the connection to the last byte.
        max_response_bytes: The largest response, or line of a stream, that is read.
        retry_s: How long a prediction that fails through no fault of its own is retried: a
            full queue, a lost connection, a dead worker. 0 asks once. See `torchserve.retries`.
        on_retry: Called before each retry.
        ca: A PEM file with the authorities to trust, in place of SSL_CERT_FILE and the system's.
        model_store: Of a server elsewhere: the folder with copies of its archives for a rollout.

    Example:
        >>> with marship.Client() as client:
        ...     status = client.register("tiny.mar", workers=1)
        ...     client.predict("tiny", [[1, 2, 3]])
        [[16.0, 22.0]]
    """

    models = _blocking(_of(Engine.models))
    describe = _blocking(_of(Engine.describe))
    register = _blocking(_register)
    scale = _blocking(_scale)
    wait_ready = _blocking(_wait_ready)
    set_default = _blocking(_of(Engine.set_default))
    drain = _blocking(_of(Engine.drain))
    unregister = _blocking(_of(Engine.unregister))
    withdraw = _blocking(_of(Engine.withdraw))
    predict = _blocking(_predict)
    ping = _blocking(_of(Engine.ping))
    metrics = _blocking(_of(Engine.metrics))

    def stream(
        self,
        name: str,
        inputs: Any,  # noqa: ANN401  any JSON value, arrays, or bytes
        *,
        version: str | None = None,
        content_type: str | None = None,
    ) -> Generator[Any, None, None]:
        """Ask a model that streams; yields each line's value as it comes, or its only answer.

        The request is sent when the first line is asked for. `timeout_s` of the client is for
        each wait for a line, not for all. A caller that stops early closes the connection.

        Args:
            name: The model.
            inputs: As `predict` takes them.
            version: None is the default one.
            content_type: Of bytes: else application/octet-stream.

        Raises:
            RequestError: The model refused the input.
            NotFoundError: There is no such model or version.
            NoAnswerError: The stream broke off.
            ServerError: The worker failed, or the queue is full.
        """
        asked = _asked_for_lines(self._engine, name, inputs, version, content_type)
        answer = self._transport.run(asked)
        if not answer.has_lines:
            yield decoded(answer)
            return
        with closing(answer.lines) as lines:
            yield from map(line_value, lines)

    def transcribe(
        self, name: str, recording: bytes, *, version: str | None = None
    ) -> Generator[dict[str, Any], None, None]:
        """What is said in a recording, segment by segment as they are ready.

        Each has `start` and `end` in seconds, `text` and `confidence`. `predict` gives the whole
        answer at once; `stream` gives the segments, and the whole answer as the last line.

        Raises:
            MarshipError: As `stream` does.
        """
        with closing(self.stream(name, recording, version=version)) as lines:
            for line in lines:
                if "segments" in line:
                    return
                yield line

    @functools.cached_property
    def _transport(self) -> BlockingTransport:
        return BlockingTransport(self._engine, self._bounds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncClient(Connected):
    """An asyncio client: `Client`'s arguments, and its methods as coroutines.

    Example:
        >>> async def ask():
        ...     async with marship.AsyncClient() as client:
        ...         return await client.predict("tiny", [[1, 2, 3]])
        >>> asyncio.run(ask())
        [[16.0, 22.0]]
    """

    models = _awaiting(_of(Engine.models))
    describe = _awaiting(_of(Engine.describe))
    register = _awaiting(_register)
    scale = _awaiting(_scale)
    wait_ready = _awaiting(_wait_ready)
    set_default = _awaiting(_of(Engine.set_default))
    drain = _awaiting(_of(Engine.drain))
    unregister = _awaiting(_of(Engine.unregister))
    withdraw = _awaiting(_of(Engine.withdraw))
    predict = _awaiting(_predict)
    ping = _awaiting(_of(Engine.ping))
    metrics = _awaiting(_of(Engine.metrics))

    async def stream(
        self,
        name: str,
        inputs: Any,  # noqa: ANN401  any JSON value, arrays, or bytes
        *,
        version: str | None = None,
        content_type: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """As `Client.stream`."""
        asked = _asked_for_lines(self._engine, name, inputs, version, content_type)
        answer = await self._transport.run(asked)
        if not answer.has_lines:
            yield decoded(answer)
            return
        async with aclosing(answer.lines) as lines:
            async for line in lines:
                yield line_value(line)

    async def transcribe(
        self, name: str, recording: bytes, *, version: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """As `Client.transcribe`."""
        async with aclosing(self.stream(name, recording, version=version)) as lines:
            async for line in lines:
                if "segments" in line:
                    return
                yield line

    @functools.cached_property
    def _transport(self) -> "AsyncTransport":
        from marship.exchange.async_transport import AsyncTransport

        return AsyncTransport(self._engine, self._bounds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()


def _asked_for_lines(
    engine: Engine,
    name: str,
    inputs: Any,  # noqa: ANN401  any that a request may be
    version: str | None,
    content_type: str | None,
) -> Flow[Answer]:
    body, kind = encoded(inputs, content_type)
    return engine.predict(name, version=version, body=body, content_type=kind, streams=True)
