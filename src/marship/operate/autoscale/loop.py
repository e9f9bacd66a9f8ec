"""Looks at the load again and again, and brings each version to the workers that it needs.

It holds nothing that a restart would lose: bounds are the archive's or given, the number of workers
is the server's, and samples are taken anew before anything is changed. While the server is gone it
waits for the next one.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

from marship.engines.addresses import Target
from marship.engines.default import DefaultEngine
from marship.engines.engine import Engine, ModelStatus, Wait
from marship.engines.home import Home
from marship.engines.load import ModelLoad
from marship.errors import MarshipError, ServerError, UsageError
from marship.exchange.calls import Flow
from marship.exchange.transports import BlockingTransport, Bounds
from marship.operate.autoscale import record
from marship.operate.autoscale.bounds import bounds_of
from marship.operate.autoscale.policy import Decision, Scale, decide, kept_s, summary
from marship.operate.autoscale.record import ScalingState
from marship.operate.autoscale.samples import Sampler
from marship.operate.autoscale.settings import ScalingSettings

logger = logging.getLogger(__name__)

LOOK_S = 1.0
_RESPONSE_S, _MOST_BYTES, _LOCK_S, _READY_S = 10.0, 1 << 26, 0.2, 180.0
_HOLD_S, _MOST_HOLD_S = 30.0, 960.0
"""After workers that did not load, until the next attempt; each failure doubles it."""
_BUSY_HOLD_S = 5.0
"""After workers that were to be ended and were busy."""

OnState = Callable[[Sequence[ScalingState]], None]


@dataclass
class _Version:
    """One version that is scaled."""

    scale: Scale
    sampler: Sampler
    state: ScalingState
    work: "Future[str] | None" = None
    change: str = ""
    is_more: bool = False  # workers than before it
    held_until: float = 0.0
    hold_s: float = _HOLD_S
    held: str = ""
    registration: str = ""


@dataclass
class Autoscaler:
    """Scales the models of one server.

    Attributes:
        target: The server, by its home.
        names: The models; none means all that may have more than one number of workers.
        settings: The targets.
        on_state: Called after each look with all versions.
    """

    target: Target
    names: Sequence[str]
    settings: ScalingSettings
    on_state: OnState = lambda _states: None
    _versions: dict[tuple[str, str], _Version] = field(default_factory=dict)
    _fixed: set[tuple[str, str, str]] = field(default_factory=set)  # with their registrations
    _complaint: str = ""
    _fault: str = ""

    def run(self, ended: threading.Event) -> None:
        """Scale until the event is set.

        Raises:
            UsageError: A model has no bounds, or a target that cannot be measured.
            ServerError: Autoscaling runs already for this server.
        """
        engine = self._engine()
        if not engine.is_local:
            raise UsageError(
                "autoscaling must run beside its server, got the address of another machine. Run "
                "it there."
            )
        with ExitStack() as held, ThreadPoolExecutor() as pool:
            transport = held.enter_context(closing(self._transport(engine)))
            held.enter_context(engine.home.autoscaling())
            engine.home.require_running()
            while not ended.is_set():
                self._look(engine, transport, pool)
                ended.wait(LOOK_S)

    def _engine(self) -> Engine:
        return DefaultEngine(self.target)

    @staticmethod
    def _transport(engine: Engine) -> BlockingTransport:
        return BlockingTransport(engine, Bounds(_RESPONSE_S, _MOST_BYTES))

    def _look(self, engine: Engine, transport: BlockingTransport, pool: ThreadPoolExecutor) -> None:
        try:
            loads = self._chosen(transport.run(engine.loads()))
            missing = set(self.names) - {load.status.name for load in loads}
            complaint = f"{', '.join(sorted(missing))} must be registered" if missing else ""
        except UsageError:
            raise
        except (MarshipError, OSError) as error:
            loads, complaint = [], str(error)
        if complaint != self._complaint:
            self._complaint = complaint
            logger.warning(complaint or "the server responds again")
        now = time.monotonic()
        found = {(each.status.name, each.status.version): each for each in loads}
        for gone in self._versions.keys() - found.keys():
            del self._versions[gone]
        for named, load in found.items():
            self._step(engine, named, load, now, pool)
        states = [version.state for version in self._versions.values()]
        self._write(engine.home, states)
        self.on_state(states)

    def _write(self, home: Home, states: Sequence[ScalingState]) -> None:
        """Write what `marship status` shows; a full disk must not end the scaling."""
        try:
            record.write(home, states)
            fault = ""
        except (MarshipError, OSError) as error:
            fault = str(error)
        if fault != self._fault:
            self._fault = fault
            logger.warning(fault or "the state is written again")

    def _chosen(self, loads: Sequence[ModelLoad]) -> list[ModelLoad]:
        return [load for load in loads if not self.names or load.status.name in self.names]

    def _step(
        self,
        engine: Engine,
        named: tuple[str, str],
        load: ModelLoad,
        now: float,
        pool: ThreadPoolExecutor,
    ) -> None:
        status = load.status
        version = self._versions.get(named)
        if version is None or version.registration != status.registration:
            if (*named, status.registration) in self._fixed:
                return
            version = self._new(engine, load)
            if version is None:
                self._fixed.add((*named, status.registration))  # bounds are read of whole archives
                return
            self._versions[named] = version
        self._finish(version, now)
        if not version.sampler.look(load, now):
            return
        samples = version.sampler.samples
        decision = decide(samples, version.scale, self.settings)
        mean = summary(samples, self.settings)
        if decision.workers != status.min_workers and now < version.held_until:
            decision = replace(decision, workers=status.min_workers, reason=version.held)
        version.state = replace(
            version.state,
            ready=status.ready,
            wanted=decision.workers,
            cause=decision.cause,
            reason=decision.reason,
            busy=mean.busy,
            ongoing=mean.ongoing,
            wait_s=mean.wait_s,
            p99_s=samples[-1].p99_s,
        )
        # whoever scales by hand waits until all are ready, and would wait in vain
        is_under_way = decision.cause == "bounds" and status.ready < status.min_workers
        if version.work is None and decision.workers != status.min_workers and not is_under_way:
            self._begin(version, status, decision, pool)

    def _new(self, engine: Engine, load: ModelLoad) -> _Version | None:
        status, settings = load.status, self.settings
        scale = bounds_of(engine, status, settings)
        if scale.least == scale.most and not self.names:
            return None
        if settings.target_p99_ms is not None and not load.took and status.ready:
            logger.warning(
                "%s %s has no target of p99: only workers at the direct address tell times.",
                status.name, status.version,
            )  # fmt: skip
        state = ScalingState(
            status.name, status.version, status.ready, status.min_workers, scale.least, scale.most,
            "measuring", "the first samples are taken",
        )  # fmt: skip
        sampler = Sampler(kept_s(settings), settings.window_s)
        return _Version(scale, sampler, state, registration=status.registration)

    def _begin(
        self, version: _Version, status: ModelStatus, decision: Decision, pool: ThreadPoolExecutor
    ) -> None:
        version.change = (
            f"{status.min_workers} -> {decision.workers} workers ({decision.cause}): "
            f"{decision.reason}"
        )
        version.is_more = decision.workers > status.min_workers
        if version.is_more:
            logger.info("%s %s: %s", status.name, status.version, version.change)
        version.work = pool.submit(self._change, status, decision.workers)

    def _change(self, status: ModelStatus, workers: int) -> str:
        """Bring a version to a number of workers; why it was not done, or nothing.

        Raises:
            ServerError: New workers did not load; as many as were ready are wanted again.
        """
        engine = self._engine()
        with closing(self._transport(engine)) as transport:
            return transport.run(_changed(engine, status, workers))

    def _finish(self, version: _Version, now: float) -> None:
        """Take the outcome of a change that has ended."""
        work, state, before = version.work, version.state, version.held
        if work is None or not work.done():
            return
        version.work = None
        try:
            version.held = work.result()
            hold_s = _BUSY_HOLD_S if version.held else 0.0
            version.hold_s = version.hold_s if version.held else _HOLD_S
        except Exception as error:  # a fault with one model must not end the others' scaling
            if not isinstance(error, MarshipError | OSError):
                logger.exception("a change must end with an error of marship's, got another one")
            hold_s, version.hold_s = version.hold_s, min(_MOST_HOLD_S, 2 * version.hold_s)
            version.held = f"no change for {hold_s:g} s, since the last one failed: {error}"
        if version.held:
            if version.held != before:  # busy workers are asked again and again
                logger.warning("%s %s: %s", state.name, state.version, version.held)
        elif version.is_more:
            version.state = replace(state, ups=state.ups + 1)
        else:
            logger.info("%s %s: %s", state.name, state.version, version.change)
            version.state = replace(state, downs=state.downs + 1)
        version.held_until = now + hold_s


def _changed(engine: Engine, before: ModelStatus, workers: int) -> Flow[str]:
    name, version, wait = before.name, before.version, Wait(_READY_S)
    with ExitStack() as held:
        try:
            yield from engine.version_lock(name, held, timeout_s=_LOCK_S)
        except ServerError as error:
            return f"versions are being exchanged: {error}"
        (now,) = yield from engine.describe(name, version)
        if now.min_workers != before.min_workers:
            return "somebody else has scaled it meanwhile"
        if workers < len(now.workers):
            done = yield from engine.shrink(name, workers, version=version, wait=wait)
            return "" if done else "workers to be ended are busy"
        try:
            yield from engine.scale(name, workers, version=version, wait=wait)
        except ServerError:
            yield from engine.scale(name, max(1, now.ready), version=version, wait=wait)
            raise
    return ""
