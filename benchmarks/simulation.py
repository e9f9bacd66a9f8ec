"""Requests, a queue and workers in simulated time: what a scaling policy would have done.

Requests wait in one queue; a worker takes one at a time. A worker that is started is ready some
seconds later; one that is ended finishes what it has. A worker has a core of its own.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from marship.operate.autoscale import policy
from marship.operate.autoscale.policy import Scale, ScalingSample
from marship.operate.autoscale.settings import ScalingSettings

TICK_S = 1.0
START_S = 3.0
"""From the decision until a new worker takes requests, as measured: see docs/autoscaling.md."""
SPAN_S = 5.0
"""Time over target is counted in such spans."""

Chooser = Callable[[Sequence[ScalingSample]], int]
"""The workers that a policy wants, given all samples until now."""


@dataclass(frozen=True)
class Trace:
    """Requests over time.

    Attributes:
        name: What it is like.
        seconds: How long it is.
        arrivals: When each request comes, seconds, sorted.
        services: How long a worker has each, seconds.
    """

    name: str
    seconds: float
    arrivals: NDArray[np.float64]
    services: NDArray[np.float64]


@dataclass
class Outcome:
    """What came of a trace.

    Attributes:
        took_s: How long each request was in the system, in the order of their ends.
        ended_s: When each ended.
        worker_s: Seconds of all workers, those that start or finish among them.
        wanted: The number of workers wanted at each tick.
    """

    took_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    worker_s: float = 0.0
    wanted: list[int] = field(default_factory=list)

    @property
    def p99_s(self) -> float:
        """What 99 of 100 requests took."""
        return float(np.percentile(self.took_s, 99))

    @property
    def changes(self) -> int:
        """How often the number of workers changed."""
        return int(np.count_nonzero(np.diff(self.wanted)))

    def over(self, target_s: float) -> float:
        """Seconds in spans in which more than one of 100 requests took longer."""
        spans = (np.array(self.ended_s) // SPAN_S).astype(int)
        late = np.bincount(spans, np.array(self.took_s) > target_s)
        return float(SPAN_S * np.count_nonzero(late > 0.01 * np.bincount(spans)))


class Simulation:
    """One trace with one policy.

    Args:
        trace: The requests.
        choose: The policy.
        workers: Those that are ready at the start.
        p99_window_s: What the samples' 99th percentile is of; 0 leaves it out.
    """

    def __init__(
        self, trace: Trace, choose: Chooser, workers: int, *, p99_window_s: float = 0.0
    ) -> None:
        self._trace, self._choose, self._p99_window_s = trace, choose, p99_window_s
        self._idle = self._ready = self._wanted = workers
        self._starting = self._ending = 0
        self._queue: deque[int] = deque()
        self._events: list[tuple[float, int]] = []  # when a request ends; -1: a worker is ready
        self._samples: list[ScalingSample] = []
        self._busy_s = self._waited_s = 0.0
        self._ended = 0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Until the end of the trace."""
        arrivals, following = self._trace.arrivals.tolist(), 0
        self._services = self._trace.services.tolist()
        self._arrivals = arrivals
        for tick in range(1, int(self._trace.seconds / TICK_S) + 1):
            now = tick * TICK_S
            while True:
                arrival = arrivals[following] if following < len(arrivals) else now
                event = self._events[0][0] if self._events else now
                if min(arrival, event) >= now:
                    break
                if arrival <= event:
                    self._arrive(following, arrival)
                    following += 1
                else:
                    self._happen(*heapq.heappop(self._events))
            self._look(now)
        return self.outcome

    def _arrive(self, request: int, now: float) -> None:
        if self._idle:
            self._idle -= 1
            self._begin(request, now)
        else:
            self._queue.append(request)

    def _begin(self, request: int, now: float) -> None:
        self._waited_s += now - self._arrivals[request]
        heapq.heappush(self._events, (now + self._services[request], request))

    def _happen(self, now: float, request: int) -> None:
        """A worker is free: it has ended a request, or has just started."""
        if request < 0:
            self._starting -= 1
            self._ready += 1
        else:
            self._ended += 1
            self._busy_s += self._services[request]
            self.outcome.took_s.append(now - self._arrivals[request])
            self.outcome.ended_s.append(now)
            if self._ending:
                self._ending -= 1
                return
        if self._queue:
            self._begin(self._queue.popleft(), now)
        else:
            self._idle += 1

    def _look(self, now: float) -> None:
        outcome = self.outcome
        outcome.worker_s += TICK_S * (self._ready + self._starting + self._ending)
        running = self._ready + self._ending - self._idle
        self._samples.append(
            ScalingSample(
                now, TICK_S, self._ready, self._wanted, len(self._queue) + running,
                self._busy_s, self._ended, self._ended, self._waited_s, self._p99(now),
            )
        )  # fmt: skip
        self._busy_s, self._waited_s, self._ended = 0.0, 0.0, 0
        self._scale(self._choose(self._samples), now)
        outcome.wanted.append(self._wanted)

    def _p99(self, now: float) -> float | None:
        if not self._p99_window_s:
            return None
        ended = self.outcome.ended_s
        first = np.searchsorted(ended, now - self._p99_window_s)
        last = self.outcome.took_s[int(first) :]
        return float(np.percentile(last, 99)) if last else None

    def _scale(self, wanted: int, now: float) -> None:
        more, self._wanted = wanted - self._wanted, wanted
        for _ in range(more):
            self._starting += 1
            heapq.heappush(self._events, (now + START_S, -1))
        for _ in range(-more):
            self._ready -= 1
            if self._idle:
                self._idle -= 1
            else:
                self._ending += 1


def marship(scale: Scale, settings: ScalingSettings) -> Chooser:
    """Marship's policy."""
    kept = int(policy.kept_s(settings) / TICK_S) + 1
    return lambda samples: policy.decide(samples[-kept:], scale, settings).workers


def fixed(workers: int) -> Chooser:
    """Always as many."""
    return lambda _samples: workers


class RayServe:
    """Ray Serve's policy: requests in hand over the target, held for a delay.

    As ray 2.60 has it in serve/autoscaling_policy.py: the mean of a look-back window, no smoothing,
    and a decision that lasts for the whole delay.

    Args:
        scale: The bounds.
        look_back_s: The window.
        up_s: The delay before more replicas, as shipped.
        down_s: The delay before fewer.
        target: Requests in hand a replica.
    """

    def __init__(
        self,
        scale: Scale,
        look_back_s: float = 30.0,
        up_s: float = 30.0,
        down_s: float = 600.0,
        target: float = 2.0,
    ) -> None:
        self._scale, self._look_back_s, self._target = scale, look_back_s, target
        self._delays_s = {1: up_s, -1: down_s}
        self._direction, self._since_s = 0, 0.0

    def __call__(self, samples: Sequence[ScalingSample]) -> int:
        """The replicas that are wanted."""
        now = samples[-1]
        last = samples[-int(self._look_back_s / TICK_S) :]
        ongoing = sum(sample.ongoing for sample in last) / len(last)
        desired = self._scale.bounded(int(np.ceil(ongoing / self._target)))
        direction = int(np.sign(desired - now.wanted))
        if direction != self._direction:
            self._direction, self._since_s = direction, now.at_s
        if direction and now.at_s - self._since_s >= self._delays_s[direction]:
            self._direction = 0
            return desired
        return now.wanted
