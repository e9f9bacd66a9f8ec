"""A cluster as a home folder knows it: addresses, the token for predictions, Ray's own token."""

import os
import ssl
from pathlib import Path
from typing import Any

from marship import storage
from marship.engines.addresses import TOKEN_VARIABLES, Target
from marship.engines.home import Home, ServerRecord, default_home
from marship.engines.ray import cluster, problems
from marship.errors import NotRunningError, TokenError, UsageError
from marship.exchange.calls import Call, Flow, HttpResponse, Side
from marship.exchange.retries import Crash, Crashes, RetryPolicy, persistent

TOKEN_FILE = "ray_token"  # noqa: S105  a file's name
"""The token of a cluster that the home started."""


class ClusterAccess:
    """Where a cluster is called.

    Args:
        target: Whose home is meant.

    Raises:
        UsageError: It is no home.
    """

    tls: ssl.SSLContext | None = None

    def __init__(self, target: Target) -> None:
        if any(target.urls.values()):
            raise UsageError(
                "a cluster of Ray must be managed through a home, got an address. Make one on a "
                "node of it with: marship serve --engine ray --address HOST:PORT"
            )
        self.home = Home(Path(target.home or default_home()).absolute())
        self._retry_s, self._on_retry, self._has_met = target.retry_s, target.on_retry, False
        self._given = target.tokens

    @property
    def is_local(self) -> bool:
        """Always: the home has what is known of the cluster."""
        return True

    @property
    def record(self) -> ServerRecord:
        """The cluster's record.

        Raises:
            NotRunningError: None runs from the home.
        """
        return self.home.require_running()

    @property
    def model_store(self) -> Path:
        """The folder of archives on this machine."""
        return Path(self.record.model_store)

    def has(self, side: Side) -> bool:  # noqa: ARG002  the interface's
        """All of them."""
        return True

    def connect(self) -> ServerRecord:
        """Connect this process to the cluster.

        Raises:
            MarshipError: As `cluster.connect`.
        """
        record = self.record
        own = self.home.path / TOKEN_FILE
        cluster.connect(record.cluster, own if own.is_file() else None)
        return record

    def url(self, call: Call) -> str:
        """The URL of a call, without its query parameters."""
        return self.record.inference_url + call.path

    def check_peer(self, base: str, line: Any) -> None:  # noqa: ANN401, ARG002  the interface's
        """Check that the cluster still runs: its proxy is no process of this home.

        Raises:
            NotRunningError: It does not; nothing was sent.
        """
        self.home.require_running()

    def not_reachable(self, url: str) -> NotRunningError:
        """The error of a refused connection."""
        return NotRunningError(
            f"Ray's proxy must listen at {url}, got no connection. Start it with: marship serve "
            "--engine ray"
        )

    def ask(self, call: Call) -> Flow[HttpResponse]:
        """Make a call of the inference API with its token.

        Raises:
            MarshipError: The response is an error.
        """
        policy = RetryPolicy(self._retry_s if call.is_retryable else 0.0, self._on_retry)
        response = yield from persistent(
            call.with_token(self._token()),
            policy,
            has_met=self._has_met,
            crashes=Crashes(_crash, _no_limit, _no_check),
        )
        self._has_met = True
        return problems.checked(response)

    def _token(self) -> str:
        if token := self._given.get("inference") or os.environ.get(TOKEN_VARIABLES["inference"]):
            return token
        try:
            return str(storage.read_json(self.home.key_file)["inference"]["key"])
        except (storage.MissingError, KeyError, TypeError) as error:
            raise TokenError(
                f"{self.home.key_file} must hold the cluster's token, got none. Start it again "
                "with: marship serve --engine ray"
            ) from error


def _crash(response: HttpResponse) -> Crash | None:
    return Crash.DIED if response.error.get("code") == "worker_died" else None


def _no_limit(call: Call) -> Flow[float | None]:  # noqa: ARG001
    yield from ()
    return None


def _no_check(call: Call, response: HttpResponse) -> Flow[None]:  # noqa: ARG001
    yield from ()
