"""The base of both clients: addresses, tokens and limits."""

import os
from collections.abc import Callable
from pathlib import Path

from marship.arguments import checked
from marship.engines import default
from marship.engines.addresses import MODEL_STORE, Target
from marship.engines.engine import Engine
from marship.engines.home import Home
from marship.errors import UsageError
from marship.exchange.calls import Side
from marship.exchange.retries import RETRY_S
from marship.exchange.transports import MAX_RESPONSE_BYTES, Bounds


class Connected:
    """A server's address, and the credentials for it."""

    @checked
    def __init__(  # noqa: PLR0913  keyword-only
        self,
        home: str | Path | None = None,
        *,
        inference_url: str | None = None,
        management_url: str | None = None,
        metrics_url: str | None = None,
        inference_token: str | None = None,
        management_token: str | None = None,
        timeout_s: float = 60.0,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        retry_s: float = RETRY_S,
        on_retry: Callable[[], None] | None = None,
        ca: str | Path | None = None,
        model_store: str | Path = MODEL_STORE,
        engine: str | None = None,
    ) -> None:
        urls = {"inference": inference_url, "management": management_url, "metrics": metrics_url}
        tokens = {"inference": inference_token, "management": management_token}
        target = Target(home, urls, tokens, retry_s, on_retry, ca, Path(model_store), engine)
        self._engine = default.of_target(target)
        for setting, value in (
            ("timeout_s", timeout_s),
            ("max_response_bytes", max_response_bytes),
        ):
            if value <= 0:
                raise UsageError(f"{setting} must be over 0, got {value}.")
        self._bounds = Bounds(timeout_s, max_response_bytes)

    @property
    def engine(self) -> Engine:
        """The engine that the server runs."""
        return self._engine

    @property
    def home(self) -> Home:
        """The server's home folder, if it is local: see `is_local`."""
        return self._engine.home

    @property
    def is_local(self) -> bool:
        """Whether the server's home is local, and so its model store, registrations and logs."""
        return self._engine.is_local

    @checked
    def has(self, api: Side) -> bool:
        """Whether an API of the server has an address: "inference", "management" or "metrics"."""
        return self._engine.has(api)

    @property
    def model_store(self) -> Path:
        """The server's model store; for a remote server the local folder with copies of archives.

        Raises:
            NotRunningError: No server runs in the home.
        """
        return self._engine.model_store


def file_name(engine: Engine, archive: Path) -> str:
    """The file name of an archive if it lies in the model store; otherwise its path."""
    if len(archive.parts) > 1:  # a name alone is one in the store, whatever the current folder
        store = os.path.realpath(engine.model_store)
        if os.path.realpath(archive.parent) == store:
            return archive.name
    return str(archive)
