"""Clients of TorchServe's management and inference APIs: `Client` blocks, `AsyncClient` awaits.

Every operation is written once, as a flow of calls and pauses; the clients differ in their
transport. gRPC is not supported: it drops the status and the headers of errors.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from marship import profiles
from marship.arguments import checked
from marship.client.bodies import decoded, encoded
from marship.client.connected import Connected, file_name
from marship.engines.engine import Engine, Model, ModelStatus, OnWait, Registration, Wait, Worker
from marship.exchange.calls import Flow, HttpResponse, line_value
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
    archive: str | Path,
    *,
    name: str | None = None,
    workers: int | None = None,
    profile: str | None = None,
    batch_size: int | None = None,
    max_batch_delay_ms: int | None = None,
    timeout_s: float = LOAD_TIMEOUT_S,
    on_wait: OnWait | None = None,
) -> Flow[ModelStatus]:
    """Register an archive of the model store, and wait until its workers are ready.

    Args:
        engine: The server.
        archive: A file name in the server's model store, or a path to the file there.
        name: The model's name; None is the archive's own, regardless of its file name.
        workers: Number of workers; None is that of the archive's model-config.yaml, else
            default_workers_per_model. A number given here overrides both.
        profile: "latency" or "throughput"; overrides the archive's.
        batch_size: Maximum requests in one batch; overrides the profile's and the archive's.
        max_batch_delay_ms: How long a batch waits to fill; overrides both likewise.
        timeout_s: Time for all workers to become ready.
        on_wait: Called with the number of workers that are ready, and that are wanted.

    Raises:
        UsageError: The archive lies elsewhere, or the model's name or the batch size is invalid.
        NotFoundError: The archive is not in the model store, or another client unregistered
            the version while it loaded.
        PackageError: The archive is corrupted.
        SignatureError: The server has a trust folder, and the archive is unsigned, modified,
            renamed or signed by another key.
        LoadError: A worker crashed or timed out: the message holds the worker's error, the
            notes hold the last lines of its log. This registration is undone, and nothing else.
        ServerError: The server refused.
    """
    if profile is not None:
        chosen = profiles.find(profile, batch_size, max_batch_delay_ms)
        batch_size, max_batch_delay_ms = chosen.batch_size, chosen.max_batch_delay_ms
    file = file_name(engine, Path(archive))
    wanted = Registration(file, name, workers, batch_size, max_batch_delay_ms)
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
    """Set the number of workers, and wait until exactly that many are ready.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: Not all became ready; the message says how many did, and why.
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
    """Wait for the workers of a model that the server loads, at startup or after a crash.

    Raises:
        NotFoundError: There is no such model or version.
        LoadError: A worker crashed, or the timeout passed.
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
    """Get a prediction.

    Args:
        engine: The server.
        name: The model.
        inputs: Bytes are sent unchanged; anything else as JSON, arrays as lists.
        version: None is the default version.
        content_type: For bytes; the default is application/octet-stream.

    Returns:
        A JSON value for application/json, an array for application/x-npy, else bytes.

    Raises:
        RequestError: The model rejected the input.
        NotFoundError: There is no such model or version.
        ServerError: The worker failed, or the queue is full.
    """
    body, kind = encoded(inputs, content_type)
    response = yield from engine.predict(name, version=version, body=body, content_type=kind)
    return decoded(response)


def _of(operation: Operation[P, T]) -> Operation[P, T]:
    """The method of the same name of the client's engine."""

    @functools.wraps(operation)
    def run(engine: Engine, /, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        flow: Flow[T] = getattr(engine, operation.__name__)(*args, **kwargs)
        return flow

    return run


def _blocking(operation: Operation[P, T]) -> "Callable[Concatenate[Client, P], T]":
    """The method of a blocking client that runs an operation."""
    flow = checked(operation)

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._transport.run(flow(self._engine, *args, **kwargs))

    return _documented_as(operation, method)


def _awaiting(
    operation: Operation[P, T],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    """The method of an asyncio client that runs an operation."""
    flow = checked(operation)

    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transport.run(flow(self._engine, *args, **kwargs))

    return _documented_as(operation, method)


M = TypeVar("M", bound=Callable[..., Any])


def _documented_as(operation: Callable[..., Any], method: M) -> M:
    """Give a method the operation's docstring and signature, with self in place of engine."""
    functools.update_wrapper(method, operation)
    method.__name__ = operation.__name__.lstrip("_")
    engine, *others = inspect.signature(operation).parameters.values()
    this = engine.replace(name="self", annotation=inspect.Parameter.empty)
    signature = inspect.Signature([this, *others])
    method.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it there
    return method


class Client(Connected):
    """A blocking client.

    Addresses and tokens are read from the server's home folder, and tokens are renewed before
    they expire. For a remote server give addresses and tokens: tokens of the home are only sent
    to the home's own server.

    Args:
        home: The server's home; None is MARSHIP_HOME, else `.marship` in the current folder.
        inference_url: Address of the inference API; overrides MARSHIP_INFERENCE_URL, and the
            address in the home if one is given.
        management_url: Address of the management API, likewise (MARSHIP_MANAGEMENT_URL).
        metrics_url: Address of the metrics API, likewise (MARSHIP_METRICS_URL).
        inference_token: Overrides MARSHIP_INFERENCE_TOKEN and the home's.
        management_token: Overrides MARSHIP_MANAGEMENT_TOKEN and the home's.
        timeout_s: Timeout of one HTTP exchange, from connecting to the last byte.
        max_response_bytes: Maximum size of a response, or of a line of a stream.
        retry_s: How long a prediction is retried after a transient failure: a full queue, a
            lost connection, a crashed worker. 0 disables retries. See `exchange.retries`.
        on_retry: Called before each retry.
        ca: A PEM file with the trusted CA certificates; replaces SSL_CERT_FILE and the system's.
        model_store: For a remote server: the local folder with copies of its archives, which
            rollouts read, and whose paths `register` takes.
        engine: "torchserve" or "ray", which the home must be of; None is whichever it is.

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
    openapi = _blocking(_of(Engine.openapi))
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
        """Get a streamed prediction: yields each line's value as it arrives, or the one response.

        The request is sent on the first `next`. The client's `timeout_s` applies to each line,
        not to the whole stream. Closing the generator early closes the connection.

        Args:
            name: The model.
            inputs: As for `predict`.
            version: None is the default version.
            content_type: For bytes; the default is application/octet-stream.

        Raises:
            RequestError: The model rejected the input.
            NotFoundError: There is no such model or version.
            NoAnswerError: The stream ended early.
        ServerError: The worker failed, or the queue is full.
        """
        call = _predict_lines(self._engine, name, inputs, version, content_type)
        response = self._transport.run(call)
        if not response.has_lines:
            yield decoded(response)
            return
        with closing(response.lines) as lines:
            yield from map(line_value, lines)

    def transcribe(
        self, name: str, recording: bytes, *, version: str | None = None
    ) -> Generator[dict[str, Any], None, None]:
        """Transcribe a recording; yields segments as they are ready.

        Each has `start` and `end` in seconds, `text` and `confidence`. `predict` returns the whole
        transcript at once; `stream` yields the segments, and the whole transcript as last line.

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
    """An asyncio client, with `Client`'s arguments, and its methods as coroutines.

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
    openapi = _awaiting(_of(Engine.openapi))
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
        """Like `Client.stream`."""
        call = _predict_lines(self._engine, name, inputs, version, content_type)
        response = await self._transport.run(call)
        if not response.has_lines:
            yield decoded(response)
            return
        async with aclosing(response.lines) as lines:
            async for line in lines:
                yield line_value(line)

    async def transcribe(
        self, name: str, recording: bytes, *, version: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Like `Client.transcribe`."""
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


@checked
def _predict_lines(
    engine: Engine,
    name: str,
    inputs: Any,  # noqa: ANN401  any that a request may be
    version: str | None,
    content_type: str | None,
) -> Flow[HttpResponse]:
    body, kind = encoded(inputs, content_type)
    return engine.predict(name, version=version, body=body, content_type=kind, streams=True)
