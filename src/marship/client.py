"""Clients of TorchServe's management and inference APIs: `Client` blocks, `AsyncClient` awaits.

Both run the same flows of `marship.torchserve.models`; what differs is how bytes travel.
gRPC is not spoken: it drops the status and the headers of errors.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import orjson

from marship.errors import UsageError
from marship.serving.codec import JSON_TYPE, NPY_TYPE, OCTETS_TYPE, read_npy
from marship.torchserve import models as flows
from marship.torchserve import status
from marship.torchserve.access import Access
from marship.torchserve.calls import Answer
from marship.torchserve.models import Registration
from marship.torchserve.status import Model, ModelStatus, OnWait, Patience, Worker
from marship.torchserve.transports import AsyncTransport, BlockingTransport

__all__ = ["AsyncClient", "Client", "Model", "ModelStatus", "OnWait", "Worker"]

LOAD_TIMEOUT_S = 180.0


class Client:
    """A blocking client.

    It finds addresses and tokens in the server's home folder and renews tokens that have
    expired. A server elsewhere is named by its addresses and tokens.

    Args:
        home: The server's home; None is MARSHIP_HOME, else `.marship` in the current folder.
        inference_url: Where predictions are asked for, in place of the home's address.
        management_url: Where models are managed, in place of the home's address.
        metrics_url: Where figures are read, in place of the home's address.
        inference_token: In place of MARSHIP_INFERENCE_TOKEN and the home's.
        management_token: In place of MARSHIP_MANAGEMENT_TOKEN and the home's.
        timeout_s: How long one HTTP exchange may take.
    """

    def __init__(  # noqa: PLR0913  keyword-only
        self,
        home: Path | None = None,
        *,
        inference_url: str | None = None,
        management_url: str | None = None,
        metrics_url: str | None = None,
        inference_token: str | None = None,
        management_token: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        urls = {
            "inference": inference_url,
            "management": management_url,
            "metrics": metrics_url,
        }
        tokens = {"inference": inference_token, "management": management_token}
        self._access = Access(home, urls, tokens)
        self._transport = BlockingTransport(self._access, timeout_s)

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

    def models(self) -> list[Model]:
        """All models with all their versions, by name."""
        return self._transport.run(flows.list_models(self._access))

    def describe(self, name: str, version: str | None = None) -> list[ModelStatus]:
        """One version of a model: the default, the named, or "all" of them.

        Raises:
            NotFoundError: There is no such model or version.
        """
        return self._transport.run(status.describe(self._access, name, version))

    def register(  # noqa: PLR0913  keyword-only
        self,
        archive: str,
        *,
        name: str | None = None,
        workers: int | None = None,
        batch_size: int | None = None,
        max_batch_delay_ms: int | None = None,
        timeout_s: float = LOAD_TIMEOUT_S,
        on_wait: OnWait | None = None,
    ) -> ModelStatus:
        """Register an archive of the model store; return when every wanted worker is ready.

        Args:
            archive: A file name in the server's model store.
            name: The model's name; None is the archive's without its ending.
            workers: How many; None leaves it to the archive's model-config.yaml, else to
                default_workers_per_model. A number given here wins over both.
            batch_size: The most requests in one batch; a model-config.yaml wins.
            max_batch_delay_ms: How long a batch waits; a model-config.yaml wins.
            timeout_s: How long all workers may take.
            on_wait: Called with the workers that are ready, and those wanted.

        Raises:
            UsageError: The archive is no file name, or the model's name cannot be used.
            NotFoundError: The model store does not hold the archive.
            PackageError: The archive is damaged.
            LoadError: A worker died, or the time is over: the message holds the worker's own
                error, the notes its log's last lines. Nothing stays registered.
            ServerError: The server refused.
        """
        wanted = Registration(archive, name, workers, batch_size, max_batch_delay_ms)
        return self._transport.run(
            flows.register(self._access, wanted, Patience(timeout_s, on_wait))
        )

    def scale(
        self,
        name: str,
        workers: int,
        *,
        version: str | None = None,
        timeout_s: float = LOAD_TIMEOUT_S,
        on_wait: OnWait | None = None,
    ) -> ModelStatus:
        """Set the number of workers; return when as many are ready and no more exist.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: Not all came up; the message says how many did, and why.
        """
        return self._transport.run(
            flows.scale(
                self._access,
                name,
                workers,
                version=version,
                patience=Patience(timeout_s, on_wait),
            )
        )

    def wait_ready(
        self,
        name: str,
        *,
        version: str | None = None,
        timeout_s: float = LOAD_TIMEOUT_S,
        on_wait: OnWait | None = None,
    ) -> ModelStatus:
        """Wait for the workers of a model that the server loads, at its start or after a crash.

        Raises:
            NotFoundError: There is no such model or version.
            LoadError: A worker died, or the time is over.
        """
        return self._transport.run(
            flows.wait_ready(
                self._access, name, version=version, patience=Patience(timeout_s, on_wait)
            )
        )

    def set_default(self, name: str, version: str) -> None:
        """Make a version the one that answers where none is named.

        Raises:
            NotFoundError: There is no such model or version.
        """
        self._transport.run(flows.set_default(self._access, name, version))

    def unregister(self, name: str, version: str | None = None) -> None:
        """Remove a version, or the default one, and end its workers.

        Raises:
            NotFoundError: There is no such model or version.
            ServerError: It is the default version, and there are others.
        """
        self._transport.run(flows.unregister(self._access, name, version))

    def predict(
        self,
        name: str,
        inputs: Any,  # noqa: ANN401  any JSON value, arrays, or bytes
        *,
        version: str | None = None,
        content_type: str | None = None,
    ) -> Any:  # noqa: ANN401  by the answer's content type
        """Ask a model.

        Args:
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
        body, kind = _encoded(inputs, content_type)
        return _decoded(self._transport.run(flows.predict(self._access, name, version, body, kind)))

    def ping(self) -> str:
        """The server's own word on its health; it is "Healthy" while models load, too."""
        return self._transport.run(flows.ping(self._access))

    def metrics(self) -> str:
        """All figures in Prometheus' text format."""
        return self._transport.run(flows.metrics(self._access))


class AsyncClient:
    """The same client for asyncio; its arguments, results and errors are `Client`'s."""

    def __init__(  # noqa: PLR0913  keyword-only
        self,
        home: Path | None = None,
        *,
        inference_url: str | None = None,
        management_url: str | None = None,
        metrics_url: str | None = None,
        inference_token: str | None = None,
        management_token: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        urls = {
            "inference": inference_url,
            "management": management_url,
            "metrics": metrics_url,
        }
        tokens = {"inference": inference_token, "management": management_token}
        self._access = Access(home, urls, tokens)
        self._transport = AsyncTransport(self._access, timeout_s)

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

    async def models(self) -> list[Model]:
        """See `Client.models`."""
        return await self._transport.run(flows.list_models(self._access))

    async def describe(self, name: str, version: str | None = None) -> list[ModelStatus]:
        """See `Client.describe`."""
        return await self._transport.run(status.describe(self._access, name, version))

    async def register(  # noqa: PLR0913  keyword-only
        self,
        archive: str,
        *,
        name: str | None = None,
        workers: int | None = None,
        batch_size: int | None = None,
        max_batch_delay_ms: int | None = None,
        timeout_s: float = LOAD_TIMEOUT_S,
        on_wait: OnWait | None = None,
    ) -> ModelStatus:
        """See `Client.register`."""
        wanted = Registration(archive, name, workers, batch_size, max_batch_delay_ms)
        return await self._transport.run(
            flows.register(self._access, wanted, Patience(timeout_s, on_wait))
        )

    async def scale(
        self,
        name: str,
        workers: int,
        *,
        version: str | None = None,
        timeout_s: float = LOAD_TIMEOUT_S,
        on_wait: OnWait | None = None,
    ) -> ModelStatus:
        """See `Client.scale`."""
        return await self._transport.run(
            flows.scale(
                self._access,
                name,
                workers,
                version=version,
                patience=Patience(timeout_s, on_wait),
            )
        )

    async def wait_ready(
        self,
        name: str,
        *,
        version: str | None = None,
        timeout_s: float = LOAD_TIMEOUT_S,
        on_wait: OnWait | None = None,
    ) -> ModelStatus:
        """See `Client.wait_ready`."""
        return await self._transport.run(
            flows.wait_ready(
                self._access, name, version=version, patience=Patience(timeout_s, on_wait)
            )
        )

    async def set_default(self, name: str, version: str) -> None:
        """See `Client.set_default`."""
        await self._transport.run(flows.set_default(self._access, name, version))

    async def unregister(self, name: str, version: str | None = None) -> None:
        """See `Client.unregister`."""
        await self._transport.run(flows.unregister(self._access, name, version))

    async def predict(
        self,
        name: str,
        inputs: Any,  # noqa: ANN401  any JSON value, arrays, or bytes
        *,
        version: str | None = None,
        content_type: str | None = None,
    ) -> Any:  # noqa: ANN401  by the answer's content type
        """See `Client.predict`."""
        body, kind = _encoded(inputs, content_type)
        return _decoded(
            await self._transport.run(flows.predict(self._access, name, version, body, kind))
        )

    async def ping(self) -> str:
        """See `Client.ping`."""
        return await self._transport.run(flows.ping(self._access))

    async def metrics(self) -> str:
        """See `Client.metrics`."""
        return await self._transport.run(flows.metrics(self._access))


def _encoded(inputs: Any, content_type: str | None) -> tuple[bytes, str]:  # noqa: ANN401  any that a request may be
    if isinstance(inputs, bytes | bytearray | memoryview):
        return bytes(inputs), content_type or OCTETS_TYPE
    try:
        body = orjson.dumps(inputs, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise UsageError(f"inputs must be JSON, arrays or bytes, got {error}.") from error
    return body, content_type or JSON_TYPE


def _plain(value: object) -> Any:  # noqa: ANN401  any JSON value
    """What orjson does not take by itself: arrays that are not contiguous, or of text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__}")


def _decoded(answer: Answer) -> Any:  # noqa: ANN401  by content type
    if answer.content_type == JSON_TYPE:
        return answer.json()
    if answer.content_type == NPY_TYPE:
        return read_npy(answer.body)
    return answer.body
