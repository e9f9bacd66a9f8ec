"""How many workers a version should have: a pure function of a window of samples.

Four signals may call for more workers, and the greatest number wins:

    busy      ceil(mean of busy workers / target_busy)         as Kubernetes' HPA
    ongoing   ceil(mean of requests in hand / target_ongoing)  as Ray Serve
    wait      one more while the mean wait is over its target
    p99       one more while the 99th percentile is over its target because requests wait

The means are of a stable window. A panic window, a tenth of it, counts alone where its requests
in hand are twice what the ready workers are meant for: then workers are added at once and none
are ended (Knative's autoscaler: stable and panic windows, panic threshold 200 %).

Workers are ended only after a cool-down without any change or panic, at most half of them at
once, and only where the fewer are expected to stay well below every target. This gap, and the
prediction of what requests would wait then, keep a constant load from adding and ending a worker
in turns. Where chance does so all the same, as with few slow requests, each turn doubles the
cool-down, up to eight times.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from marship.operate.autoscale.settings import ScalingSettings

Cause = Literal["bounds", "measuring", "panic", "busy", "ongoing", "wait", "p99", "idle", "steady"]
CAUSES: tuple[Cause, ...] = (
    "bounds", "measuring", "panic", "busy", "ongoing", "wait", "p99", "idle", "steady"
)  # fmt: skip

PANIC = 2.0
"""Times the load that the ready workers are meant for."""
SLACK = 0.85
"""Part of a target that the load may reach with fewer workers."""
CALM = 0.5
"""Part of the target wait that requests may be expected to wait with fewer workers."""
WAIT_CALLS = 2.0
_LEAST_RESPONSES = 50
_MOST_DOUBLINGS = 3
_LOG_100 = math.log(100)
_CLOCK_SLACK_S = 1e-6


@dataclass(frozen=True, slots=True)
class ScalingSample:
    """What one version did between two looks.

    Attributes:
        at_s: When it was looked, by a monotonic clock.
        span_s: Since the look before.
        workers: Those that are ready.
        wanted: How many the server is to have; more than `workers` while some are starting.
        ongoing: Requests that wait or run.
        busy_s: Seconds that workers ran calls, all together.
        calls: Calls of the model that ended.
        responses: Requests that ended.
        waited_s: How long these waited in queues, all together.
        p99_s: What 99 of 100 took in the last window; None where too few ended.
    """

    at_s: float
    span_s: float
    workers: int
    wanted: int
    ongoing: float
    busy_s: float
    calls: int
    responses: int
    waited_s: float
    p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers a version should have.

    Attributes:
        workers: The number.
        cause: What decided, one of `CAUSES`.
        reason: The same for a person.
    """

    workers: int
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Scale:
    """The bounds of a version's workers, and the requests that share a call."""

    least: int
    most: int
    batch: int = 1

    def bounded(self, workers: int) -> int:
        """The nearest number within the bounds."""
        return max(self.least, min(self.most, workers))


@dataclass(frozen=True, slots=True)
class WindowMean:
    """The mean of a window.

    Attributes:
        busy: Workers that ran calls.
        ongoing: Requests that waited or ran.
        wait_s: How long a request waited.
        call_s: How long a call took.
        responses: Requests that ended.
    """

    busy: float
    ongoing: float
    wait_s: float
    call_s: float
    responses: int

    @classmethod
    def of(cls, samples: Sequence[ScalingSample]) -> "WindowMean":
        """The mean of these samples."""
        span_s = max(sum(sample.span_s for sample in samples), _CLOCK_SLACK_S)
        busy_s = sum(sample.busy_s for sample in samples)
        responses = sum(sample.responses for sample in samples)
        return cls(
            busy=busy_s / span_s,
            ongoing=sum(sample.ongoing * sample.span_s for sample in samples) / span_s,
            wait_s=sum(sample.waited_s for sample in samples) / max(1, responses),
            call_s=busy_s / max(1, sum(sample.calls for sample in samples)),
            responses=responses,
        )


def decide(window: Sequence[ScalingSample], scale: Scale, settings: ScalingSettings) -> Decision:
    """How many workers a version should have after the last sample.

    Args:
        window: Samples in the order of time, at least one; older ones than `kept_s` are not used.
        scale: The bounds.
        settings: The targets.

    Example:
        >>> from marship.operate.autoscale.settings import ScalingSettings
        >>> busy = [ScalingSample(t, 1.0, 1, 1, 9.0, 1.0, 10, 10, 5.0) for t in range(6)]
        >>> decide(busy, Scale(1, 4), ScalingSettings()).workers
        4
    """
    now = window[-1]
    if (bounded := scale.bounded(now.wanted)) != now.wanted:
        return Decision(
            bounded, "bounds", f"{now.wanted} workers are not from {scale.least} to {scale.most}"
        )
    if not now.workers:
        return Decision(now.wanted, "steady", "no worker is ready")
    return (
        _panic(window, scale, settings)
        or _more(window, scale, settings)
        or _one_more(window, scale, settings)
        or _fewer(window, scale, settings)
        or Decision(now.wanted, "steady", _told(window, settings))
    )


def summary(window: Sequence[ScalingSample], settings: ScalingSettings) -> WindowMean:
    """The mean of the stable window."""
    return WindowMean.of(_last(window, settings.window_s))


def kept_s(settings: ScalingSettings) -> float:
    """How long samples are used."""
    longest_s: float = settings.cool_down_s * 2**_MOST_DOUBLINGS
    return settings.window_s + longest_s


def _last(window: Sequence[ScalingSample], seconds: float) -> Sequence[ScalingSample]:
    """The samples of the last seconds."""
    since = window[-1].at_s - seconds + _CLOCK_SLACK_S
    return window[bisect_right(window, since, key=lambda sample: sample.at_s) :]


def _is_panic(window: Sequence[ScalingSample], scale: Scale, settings: ScalingSettings) -> bool:
    mean, ready = WindowMean.of(_last(window, settings.panic_s)), max(1, window[-1].workers)
    return mean.ongoing >= PANIC * ready * settings.target_ongoing * scale.batch


def _panic(
    window: Sequence[ScalingSample], scale: Scale, settings: ScalingSettings
) -> Decision | None:
    now = window[-1]
    if not _is_panic(window, scale, settings):
        return None
    mean = WindowMean.of(_last(window, settings.panic_s))
    wanted = scale.bounded(max(now.wanted, _needed(mean, scale, settings)[0]))
    return Decision(
        wanted,
        "panic",
        f"{mean.ongoing:.1f} requests in hand in the last {settings.panic_s:g} s, "
        f"{PANIC:g} times what {now.workers} ready are meant for",
    )


def _needed(
    mean: WindowMean, scale: Scale, settings: ScalingSettings, share: float = 1.0
) -> tuple[int, Cause]:
    """The workers that stay within a share of the targets, and the signal that needs most."""
    busy = math.ceil(mean.busy / (settings.target_busy * share) - _CLOCK_SLACK_S)
    target = settings.target_ongoing * scale.batch * share
    ongoing = math.ceil(mean.ongoing / target - _CLOCK_SLACK_S)
    return (busy, "busy") if busy >= ongoing else (ongoing, "ongoing")


def _more(
    window: Sequence[ScalingSample], scale: Scale, settings: ScalingSettings
) -> Decision | None:
    """More workers by the stable window, once that has as much as a panic window."""
    now, stable = window[-1], _last(window, settings.window_s)
    mean = WindowMean.of(stable)
    needed, cause = _needed(mean, scale, settings)
    wanted = scale.bounded(needed)
    if wanted <= now.wanted:
        return None
    if not _covers(stable, settings.panic_s):
        return Decision(now.wanted, "measuring", f"until {settings.panic_s:g} s are measured")
    got = (
        f"{mean.busy:.2f} workers were busy, the target is {settings.target_busy:g} of each"
        if cause == "busy"
        else f"{mean.ongoing:.1f} requests in hand, the target is "
        f"{settings.target_ongoing * scale.batch:g} a worker"
    )
    return Decision(wanted, cause, got)


def _covers(samples: Sequence[ScalingSample], seconds: float) -> bool:
    return sum(sample.span_s for sample in samples) >= seconds - _CLOCK_SLACK_S


def _settled(window: Sequence[ScalingSample], seconds: float) -> Sequence[ScalingSample]:
    """The last samples with as many workers as now, if all that are wanted are ready."""
    last = _last(window, seconds)
    wanted, first = last[-1].wanted, len(last)
    while first and last[first - 1].workers == last[first - 1].wanted == wanted:
        first -= 1
    return last[first:]


def _wait_target_s(mean: WindowMean, settings: ScalingSettings) -> float:
    given = settings.target_wait_ms
    return WAIT_CALLS * mean.call_s if given is None else given / 1000


def _one_more(
    window: Sequence[ScalingSample], scale: Scale, settings: ScalingSettings
) -> Decision | None:
    """One more by how long requests took, which says that there are too few, not how many."""
    now, settled = window[-1], _settled(window, settings.window_s)
    if now.wanted >= scale.most or not _covers(settled, settings.panic_s):
        return None
    mean = WindowMean.of(settled)
    if mean.responses < _LEAST_RESPONSES:
        return None
    target_s = _wait_target_s(mean, settings)
    if mean.wait_s > target_s:
        told = f"requests waited {_ms(mean.wait_s)}, the target is {_ms(target_s)}"
        return Decision(now.wanted + 1, "wait", told)
    limit_s = _p99_target_s(settings)
    if now.p99_s is not None and now.p99_s > limit_s and _helps(now.p99_s, mean, limit_s):
        told = f"99 of 100 took up to {_ms(now.p99_s)}, the target is {_ms(limit_s)}"
        return Decision(now.wanted + 1, "p99", told)
    return None


def _helps(p99_s: float, mean: WindowMean, limit_s: float) -> bool:
    """Whether 99 of 100 requests would be in time if none waited: else more workers are no use."""
    return p99_s - _LOG_100 * mean.wait_s <= limit_s


def _p99_target_s(settings: ScalingSettings) -> float:
    return math.inf if settings.target_p99_ms is None else settings.target_p99_ms / 1000


def _fewer(
    window: Sequence[ScalingSample], scale: Scale, settings: ScalingSettings
) -> Decision | None:
    now = window[-1]
    if now.workers != now.wanted or now.wanted <= scale.least:
        return None
    cool_down_s: float = settings.cool_down_s * 2 ** min(_MOST_DOUBLINGS, _turns(window))
    calm = _settled(window, cool_down_s)
    if not _covers(calm, cool_down_s):
        return None
    lengths_s = (settings.window_s, settings.window_s + cool_down_s)
    means = [WindowMean.of(_last(window, length_s)) for length_s in lengths_s]
    needed = max(_needed(mean, scale, settings, SLACK)[0] for mean in means)
    wanted = scale.bounded(max(needed, math.ceil(now.wanted / 2)))
    while wanted < now.wanted and not all(
        _stays_calm(mean, now, wanted, settings) for mean in means
    ):
        wanted += 1
    first = len(window) - len(calm)
    if wanted >= now.wanted or any(
        _is_panic(window[: end + 1], scale, settings) for end in range(first, len(window))
    ):
        return None
    mean = means[0]
    return Decision(
        wanted,
        "idle",
        f"{mean.busy:.2f} workers were busy, {wanted} stay below the targets; no change for "
        f"{cool_down_s:g} s",
    )


def _turns(window: Sequence[ScalingSample]) -> int:
    """How often workers were added again after some were ended."""
    ups = [
        after.wanted > before.wanted
        for before, after in pairwise(window)
        if after.wanted != before.wanted
    ]
    return sum(up and not before for before, up in pairwise(ups))


def _stays_calm(
    mean: WindowMean, now: ScalingSample, workers: int, settings: ScalingSettings
) -> bool:
    """Whether requests are expected to wait little with fewer workers."""
    wait_s = expected_wait_s(mean.busy, workers, mean.call_s)
    if wait_s > CALM * _wait_target_s(mean, settings):
        return False
    limit_s = _p99_target_s(settings)
    if now.p99_s is None or limit_s == math.inf or not _helps(now.p99_s, mean, limit_s):
        return True
    added_s = wait_s - expected_wait_s(mean.busy, now.workers, mean.call_s)
    return now.p99_s + _LOG_100 * max(0.0, added_s) <= SLACK * limit_s


def expected_wait_s(busy: float, workers: int, call_s: float) -> float:
    """The mean wait in a queue of several workers with random arrivals and calls (M/M/c).

    Sakasegawa 1977, "An approximation formula for the mean waiting time of M/G/c queues"; where
    waits are exponential, 99 of 100 are below ln(100) times the mean.

    Args:
        busy: The mean number of workers that run a call.
        workers: How many there are.
        call_s: The mean time of a call.

    Example:
        >>> round(expected_wait_s(0.5, 1, 0.1), 3)
        0.1
    """
    share = busy / workers
    if share >= 1:
        return math.inf if call_s else 0.0
    queued: float = share ** (math.sqrt(2 * (workers + 1)) - 1)
    return call_s * queued / (workers * (1 - share))


def _told(window: Sequence[ScalingSample], settings: ScalingSettings) -> str:
    mean = summary(window, settings)
    told = f"{mean.busy:.2f} workers were busy, {mean.ongoing:.1f} requests in hand"
    return f"{told}, which waited {_ms(mean.wait_s)}" if mean.responses else told


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
