"""Clients of TorchServe's management and inference APIs: `Client` blocks, `AsyncClient` awaits.

Every operation stands once, as a flow of calls and pauses; what differs is how bytes travel.
gRPC is not spoken: it drops the status and the headers of errors.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from marship import profiles
from marship.client.bodies import decoded, encoded
from marship.client.connected import Connected
from marship.engines.torchserve import draining, status, versions
from marship.engines.torchserve import models as flows
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.registration import Registration
from marship.engines.torchserve.status import Model, ModelStatus, OnWait, Patience, Worker
from marship.exchange.calls import Answer, Flow, line_value
from marship.exchange.transports import AsyncTransport, BlockingTransport

__all__ = ["AsyncClient", "Client", "Model", "ModelStatus", "OnWait", "Worker"]

P = ParamSpec("P")
T = TypeVar("T")
Operation = Callable[Concatenate[Access, P], Flow[T]]

LOAD_TIMEOUT_S = 180.0


def _register(  # noqa: PLR0913  keyword-only
    access: Access,
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
        access: The server's addresses and tokens.
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
    return flows.register(access, wanted, Patience(timeout_s, on_wait))


def _scale(  # noqa: PLR0913  keyword-only
    access: Access,
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
    return flows.scale(
        access, name, workers, version=version, patience=Patience(timeout_s, on_wait)
    )


def _wait_ready(
    access: Access,
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
    return flows.wait_ready(access, name, version=version, patience=Patience(timeout_s, on_wait))


def _predict(
    access: Access,
    name: str,
    inputs: Any,  # noqa: ANN401  any JSON value, arrays, or bytes
    *,
    version: str | None = None,
    content_type: str | None = None,
) -> Flow[Any]:
    """Ask a model.

    Args:
        access: The server's addresses and tokens.
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
    answer = yield from flows.predict(access, name, version=version, body=body, content_type=kind)
    return decoded(answer)


def _blocking(operation: Operation[P, T]) -> "Callable[Concatenate[Client, P], T]":
    """The method of a blocking client that runs an operation."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._transport.run(operation(self._access, *args, **kwargs))

    return _told_as(operation, method)


def _awaiting(
    operation: Operation[P, T],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    """The method of an asyncio client that runs an operation."""

    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transport.run(operation(self._access, *args, **kwargs))

    return _told_as(operation, method)


M = TypeVar("M", bound=Callable[..., Any])


def _told_as(operation: Callable[..., Any], method: M) -> M:
    """Give a method the operation's help text and signature, with self for its access."""
    functools.update_wrapper(method, operation)
    method.__name__ = operation.__name__.lstrip("_")
    access, *others = inspect.signature(operation).parameters.values()
    this = access.replace(name="self", annotation=inspect.Parameter.empty)
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
        retry_s: How long a prediction that fails through no fault of its own is asked again: a
            full queue, a lost connection, a dead worker. 0 asks once. See `torchserve.retries`.
        on_retry: Called before a prediction is asked again.
        ca: A PEM file with the authorities to trust, in place of SSL_CERT_FILE and the system's.
        model_store: Of a server elsewhere: the folder with copies of its archives for a rollout.
    """

    models = _blocking(flows.list_models)
    describe = _blocking(status.describe)
    register = _blocking(_register)
    scale = _blocking(_scale)
    wait_ready = _blocking(_wait_ready)
    set_default = _blocking(versions.set_default)
    drain = _blocking(draining.drain)
    unregister = _blocking(versions.unregister)
    withdraw = _blocking(versions.withdraw)
    predict = _blocking(_predict)
    ping = _blocking(flows.ping)
    metrics = _blocking(flows.metrics)

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
        asked = _asked_for_lines(self._access, name, inputs, version, content_type)
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
        return BlockingTransport(self._access, self._bounds)

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
    """An asyncio client: `Client`'s arguments, and its methods as coroutines."""

    models = _awaiting(flows.list_models)
    describe = _awaiting(status.describe)
    register = _awaiting(_register)
    scale = _awaiting(_scale)
    wait_ready = _awaiting(_wait_ready)
    set_default = _awaiting(versions.set_default)
    drain = _awaiting(draining.drain)
    unregister = _awaiting(versions.unregister)
    withdraw = _awaiting(versions.withdraw)
    predict = _awaiting(_predict)
    ping = _awaiting(flows.ping)
    metrics = _awaiting(flows.metrics)

    async def stream(
        self,
        name: str,
        inputs: Any,  # noqa: ANN401  any JSON value, arrays, or bytes
        *,
        version: str | None = None,
        content_type: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """As `Client.stream`."""
        asked = _asked_for_lines(self._access, name, inputs, version, content_type)
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
    def _transport(self) -> AsyncTransport:
        return AsyncTransport(self._access, self._bounds)

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
    access: Access,
    name: str,
    inputs: Any,  # noqa: ANN401  any that a request may be
    version: str | None,
    content_type: str | None,
) -> Flow[Answer]:
    body, kind = encoded(inputs, content_type)
    return flows.predict(access, name, version=version, body=body, content_type=kind, streams=True)
