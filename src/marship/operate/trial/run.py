"""Runs a trial: share after share, judged as it goes, and promoted or ended.

Whoever serves the requests lets a trial go on for a lease (`engines.trials.LEASE_S`), which is
renewed here each second. So a trial ends by itself where this process is gone.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace

from marship.client import Client
from marship.client.clients import ModelStatus
from marship.contract.tolerance import Tolerance
from marship.engines.trials import LEASE_S, TrialFigures, TrialOrder, TrialState, added
from marship.errors import MarshipError, NotFoundError, RolloutError, ServerError, UsageError
from marship.exchange.transports import BlockingTransport, Bounds
from marship.operate.rollout import RolloutListener, version_locks
from marship.operate.trial.judgement import Judgement, judge
from marship.operate.trial.settings import CanarySettings, ShadowSettings, TrialLimits
from marship.trust import archive as archives

RENEW_S, LOCK_S = 1.0, 60.0
_SEEN_S, _LOOK_S = 10.0, 0.1
_RESPONSE_S, _MOST_BYTES = 10.0, 1 << 26
_PRIVATE = "marship/serving/private/"


@dataclass(frozen=True, slots=True)
class TriedShare:
    """A share that was tried.

    Attributes:
        share: Of the requests.
        figures: What came of it.
        judgement: Of the figures.
    """

    share: float
    figures: TrialFigures
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial that is over.

    Attributes:
        name: The model.
        version: The new version.
        default: The default version now.
        steps: The shares that were tried.
        is_promoted: Whether the new version has become the default.
    """

    name: str
    version: str
    default: str
    steps: Sequence[TriedShare]
    is_promoted: bool = False

    @property
    def judgement(self) -> Judgement:
        """Of the last step."""
        return self.steps[-1].judgement


class TrialListener(RolloutListener):
    """Callbacks for progress; override those that you need."""

    def on_figures(self, share: float, figures: TrialFigures, left_s: float) -> None:
        """The figures of the current step, and the seconds that are left of it."""

    def on_tried(self, step: TriedShare) -> None:
        """A step is over."""


def shadow(
    client: Client,
    name: str,
    version: str,
    settings: ShadowSettings,
    watcher: TrialListener | None = None,
) -> Tried:
    """Send a new version copies of requests, whose responses nobody gets.

    Args:
        client: The server's client, on the server's machine.
        name: The model.
        version: The new version, registered beside the default one.
        settings: How much of it, how long, and what is held against it.
        watcher: Receives progress.

    Raises:
        UsageError: The version cannot be tried.
        NotFoundError: It is not registered.
        ServerError: The trial is refused, or cannot go on.
    """
    with _Run.begun(client, name, version, settings, watcher) as run:
        steps = [run.step(settings.share)]
    return Tried(name, version, run.default.version, steps)


def canary(
    client: Client,
    name: str,
    version: str,
    settings: CanarySettings,
    watcher: TrialListener | None = None,
) -> Tried:
    """Give a growing share of the clients a new version, and make it the default in the end.

    The first step that it does not pass ends the trial: all clients get the default version.

    Args:
        client: The server's client, on the server's machine.
        name: The model.
        version: The new version, registered beside the default one.
        settings: The shares, how long, and what is held against it.
        watcher: Receives progress.

    Raises:
        UsageError: The version cannot be tried.
        NotFoundError: It is not registered.
        ServerError: The trial is refused, or cannot go on; or another client has changed a version.
    """
    steps: list[TriedShare] = []
    with _Run.begun(client, name, version, settings, watcher) as run:
        header = settings.sticky_header or ""
        run.order = replace(run.order, gives_new=True, sticky_header=header)
        for share in settings.shares:
            steps.append(run.step(share))
            if steps[-1].judgement.outcome != "fine":
                return Tried(name, version, run.default.version, steps)
        run.promote()
    return Tried(name, version, version, steps, is_promoted=True)


def running(client: Client) -> list[TrialState]:
    """The trials that run on a server of this machine; none of another one."""
    with closing(BlockingTransport(client.engine, Bounds(_RESPONSE_S, _MOST_BYTES))) as transport:
        return transport.run(client.engine.trials())


class _Run:
    """One trial of a version."""

    def __init__(
        self,
        client: Client,
        tried: tuple[ModelStatus, ModelStatus],
        limits: TrialLimits,
        watcher: TrialListener,
        transport: BlockingTransport,
    ) -> None:
        self.default, self.new = tried
        self._client, self._limits, self._watcher = client, limits, watcher
        self._transport = transport
        tolerance = _tolerance(client, self.default, limits)
        self.order = TrialOrder(
            owner=secrets.token_hex(8),
            model=self.default.name,
            default=self.default.version,
            version=self.new.version,
            share=0.0,
            gives_new=False,
            absolute=tolerance.atol,
            relative=tolerance.rtol,
        )

    @classmethod
    @contextmanager
    def begun(
        cls,
        client: Client,
        name: str,
        version: str,
        limits: TrialLimits,
        watcher: TrialListener | None,
    ) -> Iterator["_Run"]:
        """A trial, which is over when the block is left, however."""
        tried = _versions(client, name, version)
        transport = BlockingTransport(client.engine, Bounds(_RESPONSE_S, _MOST_BYTES))
        with closing(transport):
            run = cls(client, tried, limits, watcher or TrialListener(), transport)
            try:
                yield run
            finally:
                with suppress(MarshipError, OSError):  # then it ends with its lease
                    transport.run(client.engine.renew_trial(replace(run.order, share=0.0)))

    def step(self, share: float) -> TriedShare:
        """Try a share until its time is over, or the new version is worse beyond doubt.

        Raises:
            ServerError: The trial is refused, or cannot go on.
        """
        self.order = replace(self.order, share=share)
        known: dict[str, TrialFigures] = {}
        end = now = renewed_at = time.monotonic()
        end += 60 * self._limits.minutes
        while True:
            self._check_renewed(time.monotonic() - now, "as this command stood still")
            answers = self._transport.run(self._client.engine.renew_trial(self.order))
            now = time.monotonic()
            renewed_at = now if answers else renewed_at
            self._check_renewed(now - renewed_at, "as the server does not answer")
            known |= {one.source: one for one in answers}
            figures = added(known.values())
            judgement = judge(figures, self._limits, is_over=now >= end)
            if judgement.outcome != "going on":
                step = TriedShare(share, figures, judgement)
                self._watcher.on_tried(step)
                return step
            self._watcher.on_figures(share, figures, end - now)
            time.sleep(min(RENEW_S, max(0.05, end - now)))

    def _check_renewed(self, seconds: float, why: str) -> None:
        """Check that nobody has ended the trial for want of a renewal.

        Raises:
            ServerError: It is over.
        """
        if seconds > LEASE_S:
            raise ServerError(
                f"the trial of {self.order.model} must be renewed within {LEASE_S:g} s, got "
                f"{seconds:.0f} s, {why}. It is over; run it again."
            )

    def promote(self) -> None:
        """Make the new version the default.

        Raises:
            RolloutError: Another client has changed the default, or the new version.
        """
        client, name = self._client, self.default.name
        self._watcher.on_step("default")
        with version_locks(client, [name], timeout_s=LOCK_S, watcher=self._watcher):
            found = _versions(client, name, self.new.version)
            kept = [one.registration for one in found] == [
                one.registration for one in (self.default, self.new)
            ]
            if not kept:
                raise RolloutError(
                    f"{name} must keep both versions until one is promoted, got one that another "
                    "client has registered anew. Try it again."
                )
            client.set_default(name, self.new.version)
        self._hand_over()

    def _hand_over(self) -> None:
        """Keep the trial until it ends by the new default: else clients would get the old one.

        Whoever serves them sees the server's default version a moment later.
        """
        end = time.monotonic() + _SEEN_S
        with suppress(ServerError):  # what ends it: its versions are others now
            while time.monotonic() < end:
                self._transport.run(self._client.engine.renew_trial(self.order))
                time.sleep(_LOOK_S)


def _versions(client: Client, name: str, version: str) -> tuple[ModelStatus, ModelStatus]:
    """The default version and the new one.

    Raises:
        NotFoundError: One is not registered.
        UsageError: The new one cannot be tried.
    """
    (default,) = client.describe(name)
    try:
        (new,) = client.describe(name, version)
    except NotFoundError as error:
        raise NotFoundError(
            f"{name} {version} must be registered beside {default.version} to be tried, got no "
            "such version. Register it with: marship register ARCHIVE"
        ) from error
    if new.version == default.version:
        raise UsageError(
            f"{name} {version} must not be the default version to be tried, got the default one. "
            "Name another, which you have registered beside it."
        )
    if not new.ready:
        raise UsageError(
            f"{name} {version} must have a worker that is ready to be tried, got none. Run: "
            f"marship scale {name} 1 --version {version}"
        )
    return default, new


def _tolerance(client: Client, default: ModelStatus, limits: TrialLimits) -> Tolerance:
    """By how much numbers in responses may differ.

    Raises:
        UsageError: The model is private: its clients' keys are for one version.
    """
    path = client.model_store / default.archive
    found = archives.read(path) if path.is_file() else None
    if found is not None and any(one.name.startswith(_PRIVATE) for one in found.members):
        raise UsageError(
            f"{default.name} must not be private to be tried with part of its requests, got keys "
            "and shares that belong to one version. Use: marship rollout"
        )
    if limits.tolerance is not None:
        return Tolerance(limits.tolerance, 0.0)
    if found is None or found.contract is None:
        raise UsageError(
            f"{default.archive} must have a contract that says what numbers may differ by, got "
            "none. Give it with --tolerance."
        )
    widest = max(found.contract.tolerance.absolute(one.name) for one in found.contract.outputs)
    return Tolerance(widest, found.contract.tolerance.rtol)
