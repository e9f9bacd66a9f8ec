"""From two looks at a version's load to a sample of the policy."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from marship.engines.load import ModelLoad
from marship.operate.autoscale.policy import ScalingSample

_LEAST_TIMES = 100


class Sampler:
    """The samples of one version.

    Args:
        kept_s: How long they are kept.
        p99_s: The window of the 99th percentile.
    """

    def __init__(self, kept_s: float, p99_s: float) -> None:
        self._kept_s, self._p99_s = kept_s, p99_s
        self._before: tuple[float, ModelLoad] | None = None
        self._took: deque[tuple[float, list[float]]] = deque()
        self._waiting: list[float] = []  # of each sample, requests in the engine's queue,
        self._in_own: list[float] = []  # and requests at its own address, by Little's law
        self._assumed_s: list[float] = []  # of each sample, seconds of calls that have not ended
        self.samples: list[ScalingSample] = []

    def look(self, load: ModelLoad, now: float) -> bool:
        """Add what happened since the look before; False where that cannot be told.

        Args:
            load: The load now.
            now: By the monotonic clock.
        """
        last, self._before = self._before, (now, load)
        if last is None or now <= last[0]:
            return False
        before, span_s = last[1], now - last[0]
        is_other = before.source != load.source or load.requests < before.requests
        if is_other:  # another server, or another acceptor, counts anew
            self._assumed_s = [0.0] * len(self.samples)
            return False
        self._keep_times(before, load, now)
        status = load.status
        self.samples.append(
            ScalingSample(
                at_s=now,
                span_s=span_s,
                workers=status.ready,
                wanted=status.min_workers,
                ongoing=load.ongoing + status.waiting,
                busy_s=0.0,
                calls=round(load.calls - before.calls),
                responses=round(load.requests - before.requests),
                waited_s=max(0.0, load.waited_s - before.waited_s),
                p99_s=self._p99(load.took_s),
            )
        )
        while self.samples[0].at_s < now - self._kept_s:
            del self.samples[0], self._assumed_s[:1], self._waiting[:1], self._in_own[:1]
        self._waiting.append(status.waiting)
        self._in_own.append(0.0)
        self._spread_own(max(0.0, load.own_s - before.own_s), self.samples[-1].responses)
        self._spread(before, load)
        return True

    def _spread(self, before: ModelLoad, load: ModelLoad) -> None:
        """Have a long call in each look that it took: workers count it at its end.

        Until then a worker that has requests in hand, and has ended no call since the last look, is
        assumed to run one: since then, or for half of the time if it had none in hand at that look.
        What is counted later makes such assumptions good, the latest first; an assumption is
        forgotten, and its seconds stay, once fewer workers have requests in hand. Where calls are
        shorter than a look, it is taken back for as many workers as have become free.
        """
        counted_s = max(0.0, load.busy_s - before.busy_s)
        ended = max(0, round(load.calls - before.calls))
        span_s, running = self.samples[-1].span_s, min(load.occupied, load.status.ready)
        more = running - min(before.occupied, before.status.ready)
        is_long = counted_s > ended * span_s
        left_s = counted_s
        if ended and not is_long:
            left_s -= self._take_back(min(ended, -more) * span_s, counted_s)
        for index in reversed(range(len(self._assumed_s))):
            own_s = self.samples[index].span_s
            known_s = min(left_s, self._assumed_s[index], ended * own_s) if is_long else 0.0
            left_s -= known_s
            open_s = running * own_s
            self._assumed_s[index] = min(self._assumed_s[index] - known_s, open_s)
        for index in reversed(range(len(self.samples))):
            if left_s <= 0:
                break
            left_s -= self._fill(index, left_s)
        lasting = max(0, running - ended)
        begun = min(lasting, max(0, more))
        open_s = (lasting - begun / 2) * span_s
        self._assumed_s.append(self._fill(len(self.samples) - 1, open_s))

    def _take_back(self, over_s: float, counted_s: float) -> float:
        """Have what is counted in place of what the look before assumed; returns how much it is.

        Args:
            over_s: Seconds of a look, for each worker that has become free.
            counted_s: Of the calls that ended since.
        """
        if not self._assumed_s or over_s <= 0:
            return 0.0
        index = len(self._assumed_s) - 1
        assumed_s = min(self._assumed_s[index], over_s)
        known_s = min(counted_s, assumed_s)
        one = self.samples[index]
        self.samples[index] = replace(one, busy_s=one.busy_s - assumed_s + known_s)
        self._assumed_s[index] -= assumed_s
        return known_s

    def _spread_own(self, seconds: float, ended: int) -> None:
        """Have a long request at the engine's own address in each look that it took.

        The engine counts its time at its end, and says of those in its queue alone before.
        """
        for index in reversed(range(len(self.samples))):
            one, before = self.samples[index], self._in_own[index]
            more = min(seconds / one.span_s, max(1, ended))
            self._in_own[index] = before + more
            waiting = self._waiting[index]
            ongoing = one.ongoing - max(before, waiting) + max(before + more, waiting)
            self.samples[index] = replace(one, ongoing=ongoing)
            seconds -= more * one.span_s
            if seconds <= 0:
                return

    def _fill(self, index: int, seconds: float) -> float:
        """Add seconds of calls to a sample, as many as its workers can have had; returns them."""
        one = self.samples[index]
        more_s = max(0.0, min(seconds, one.workers * one.span_s - one.busy_s))
        self.samples[index] = replace(one, busy_s=one.busy_s + more_s)
        return more_s

    def _keep_times(self, before: ModelLoad, load: ModelLoad, now: float) -> None:
        if len(before.took) == len(load.took) > 0:
            more = [new - old for new, old in zip(load.took, before.took, strict=True)]
            self._took.append((now, more))
        while self._took and self._took[0][0] < now - self._p99_s:
            self._took.popleft()

    def _p99(self, bounds_s: Sequence[float]) -> float | None:
        sums = [sum(column) for column in zip(*(more for _, more in self._took), strict=True)]
        return percentile(sums, bounds_s, 0.99)


def percentile(counts: Sequence[float], bounds_s: Sequence[float], share: float) -> float | None:
    """A percentile of a histogram, as Prometheus' histogram_quantile: linear within a class.

    Args:
        counts: How many are in each class; the last one has no upper bound.
        bounds_s: The upper bounds of all others.
        share: Of all, which are below.

    Returns:
        None of fewer than 100; the last bound where it is above that.

    Example:
        >>> percentile([50, 50, 0], [1.0, 2.0], 0.75)
        1.5
    """
    total = sum(counts)
    if total < _LEAST_TIMES or not bounds_s:
        return None
    left = share * total
    for index, (count, bound_s) in enumerate(zip(counts, bounds_s, strict=False)):
        if count >= left:
            low_s = bounds_s[index - 1] if index else 0.0
            return low_s + (bound_s - low_s) * left / count
        left -= count
    return bounds_s[-1]
