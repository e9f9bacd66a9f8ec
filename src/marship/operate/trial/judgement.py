"""Whether a new version may go on, from what both versions did with the same requests.

A share (errors, differences) is known as an interval (Wilson, "Probable Inference", JASA 1927), and
so is a quantile of times, from the ranks between which it lies (order statistics: Conover,
"Practical Nonparametric Statistics", 3.2). Z is 3: one look is wrong once in 700, and a trial takes
many. So a trial ends at once where the intervals are apart, and at the end of a step the figures
themselves must keep to the limits.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from marship.engines.trials import TOOK_S, TrialFigures
from marship.operate.trial.settings import TrialLimits

Outcome = Literal["going on", "fine", "worse", "too few"]
Z = 3.0
QUANTILES = (0.5, 0.99)
_PAUSE_S, _SILENT_S, _SILENT_TIMES = 0.5, 5.0, 3.0
"""A version must answer somebody within so long, or so many times the other one's slowest."""
_MOST_BEYOND = 10
"""An estimate of a quantile counts where so many samples are beyond it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What can be said of a new version.

    Attributes:
        outcome: Of the figures so far.
        reason: For a person; empty where it goes on, or is fine.
    """

    outcome: Outcome
    reason: str = ""


def share_bounds(count: int, total: int) -> tuple[float, float]:
    """Wilson's interval of a share.

    Example:
        >>> from marship.operate.trial.judgement import share_bounds
        >>> [round(bound, 3) for bound in share_bounds(0, 100)]
        [0.0, 0.083]
    """
    if not total:
        return 0.0, 1.0
    share, spread = count / total, Z * Z / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def time_at(took: Sequence[int], rank: float) -> float:
    """The time of the sample at a rank, 1 is the least; upper bound of its class.

    Args:
        took: How many samples are in each class of `TOOK_S`.
        rank: Over their number, the time is not bounded.
    """
    seen = 0
    for count, bound in zip(took, (*TOOK_S, math.inf), strict=True):
        seen += count
        if seen >= rank:
            return bound
    return math.inf


def time_bounds(took: Sequence[int], quantile: float) -> tuple[float, float]:
    """The interval of a quantile of times; infinity where too few samples bound it."""
    total = sum(took)
    if not total:
        return 0.0, math.inf
    middle, half = total * quantile, Z * math.sqrt(total * quantile * (1 - quantile))
    low, high = math.floor(middle - half), math.ceil(middle + half) + 1
    return (time_at(took, low) if low >= 1 else 0.0), time_at(took, high)


def judge(figures: TrialFigures, limits: TrialLimits, *, is_over: bool) -> Judgement:
    """Judge a new version.

    Args:
        figures: Of one step.
        limits: What it must keep to.
        is_over: Whether the step's time is over.
    """
    if reason := next(_proven(figures, limits), ""):
        return Judgement("worse", reason)
    if not is_over or figures.new.silent_s > max(_PAUSE_S, _slowest_s(figures)):
        return Judgement("going on")  # a step does not end in a silence of which nothing is known
    if reason := next(_lacking(figures, limits), ""):
        return Judgement("too few", reason)
    reason = next(_estimated(figures, limits), "")
    return Judgement("worse", reason) if reason else Judgement("fine")


def _errors(figures: TrialFigures) -> tuple[int, int]:
    """Errors of the new version, those without a worker of it among them, and its requests."""
    return figures.new.errors + figures.absent, figures.new.judged + figures.absent


def _proven(figures: TrialFigures, limits: TrialLimits) -> Iterator[str]:
    """Limits that are exceeded beyond doubt."""
    errors, requests = _errors(figures)
    least, most = share_bounds(errors, requests)[0], _default_errors(figures)[1]
    if least > most + limits.max_error_rate:
        yield _error_reason(figures, limits)
    for quantile in QUANTILES:
        least = time_bounds(figures.new.took, quantile)[0]
        most = time_bounds(figures.default.took, quantile)[1]
        if least > most * limits.max_latency_ratio * _class_ratio():
            yield _time_reason(figures, limits, quantile)
    if share_bounds(_unreadable(figures), figures.compared)[0] > limits.max_error_rate:
        yield _form_reason(figures, limits)
    if share_bounds(figures.differing, figures.compared)[0] > limits.max_differing:
        yield _difference_reason(figures, limits)
    longest_s = _most_silent_s(figures)
    if figures.new.silent_s > longest_s >= figures.default.silent_s:
        yield (
            f"a response must come within {longest_s:.3g} s, got none for "
            f"{figures.new.silent_s:.1f} s while {figures.new.waiting} requests wait"
        )
    elif figures.new.oldest_s > 2 * longest_s >= figures.default.oldest_s:
        yield (
            f"each request must have its response within {2 * longest_s:.3g} s, got one that waits "
            f"for {figures.new.oldest_s:.1f} s"
        )


def _most_silent_s(figures: TrialFigures) -> float:
    """For how long a version may answer nobody: a multiple of what the default one took at most."""
    return max(_SILENT_S, _SILENT_TIMES * _slowest_s(figures))


def _slowest_s(figures: TrialFigures) -> float:
    """The default version's slowest response."""
    return time_at(figures.default.took, sum(figures.default.took))


def _unreadable(figures: TrialFigures) -> int:
    """Responses that a program which reads the default version's cannot read.

    Where the default version's lists of numbers always have the same lengths, the new one's must;
    and its keys, where they are always the same; and its rows, where they are always as many as
    the request's.
    """
    unlike = figures.unlike if figures.lengths else 0
    keyless = figures.keyless if figures.keys else 0
    rowless = figures.rowless if figures.follows_rows else 0
    # one may be of two kinds
    return min(figures.compared, figures.unreadable + unlike + keyless + rowless)


def _default_errors(figures: TrialFigures) -> tuple[float, float]:
    return share_bounds(figures.default.errors, figures.default.judged)


def _class_ratio() -> float:
    """What two times may be apart that are in one class."""
    return TOOK_S[1] / TOOK_S[0]


def _lacking(figures: TrialFigures, limits: TrialLimits) -> Iterator[str]:
    """What a judgement lacks."""
    both = min(figures.default.requests, figures.new.requests)
    if both < limits.min_requests:
        yield f"both versions must have {limits.min_requests} requests to be judged, got {both}"
    if limits.max_differing < 1 and figures.compared < limits.min_requests:
        yield (
            f"{limits.min_requests} responses must be compared to be judged, got "
            f"{figures.compared}; {figures.incomparable} could not be"
        )


def _estimated(figures: TrialFigures, limits: TrialLimits) -> Iterator[str]:
    """Limits that the figures themselves exceed."""
    errors, requests = _errors(figures)
    default = figures.default
    own = default.errors / default.judged if default.judged else 0.0
    if errors / max(1, requests) > own + limits.max_error_rate:
        yield _error_reason(figures, limits)
    for quantile in QUANTILES:
        if sum(figures.new.took) * (1 - quantile) < _MOST_BEYOND:
            continue
        new, old = (_quantile(arm.took, quantile) for arm in (figures.new, default))
        if new > old * limits.max_latency_ratio * _class_ratio():
            yield _time_reason(figures, limits, quantile)
    if not figures.compared:
        return
    if _unreadable(figures) / figures.compared > limits.max_error_rate:
        yield _form_reason(figures, limits)
    if figures.differing / figures.compared > limits.max_differing:
        yield _difference_reason(figures, limits)


def _quantile(took: Sequence[int], quantile: float) -> float:
    return time_at(took, max(1.0, sum(took) * quantile))


def milliseconds(took: Sequence[int], quantile: float) -> float | None:
    """A quantile of times in milliseconds; None of none."""
    return 1e3 * _quantile(took, quantile) if sum(took) else None


def summary(figures: TrialFigures) -> str:
    """What came of a share, in one line."""
    new, old = figures.new, figures.default
    parts = [f"{figures.taken} of {figures.asked} requests"]
    parts.append(f"errors {new.errors + figures.absent} (default {old.errors})")
    for quantile in QUANTILES:
        mine, its = (milliseconds(arm.took, quantile) for arm in (new, old))
        if mine is not None and its is not None:
            parts.append(f"p{100 * quantile:g} {mine:.3g} ms ({its:.3g})")
    parts.append(f"{figures.differing} of {figures.compared} differ")
    if figures.largest:
        parts[-1] += f", by {figures.largest:.4g} at most"
    if count := _unreadable(figures):
        parts.append(f"{count} have another form")
    named = {"not compared": figures.incomparable, "not sent twice": figures.dropped}
    parts += [f"{count} {what}" for what, count in named.items() if count]
    return "; ".join(parts)


def _error_reason(figures: TrialFigures, limits: TrialLimits) -> str:
    errors, requests = _errors(figures)
    default = figures.default
    return (
        f"errors must be at most {limits.max_error_rate:g} more than the default version's, got "
        f"{errors} of {requests} beside {default.errors} of {default.judged}"
    )


def _time_reason(figures: TrialFigures, limits: TrialLimits, quantile: float) -> str:
    new, old = (milliseconds(arm.took, quantile) for arm in (figures.new, figures.default))
    return (
        f"p{100 * quantile:g} must be at most {limits.max_latency_ratio:g} times the default "
        f"version's, got {new or 0:.3g} ms beside {old or 0:.3g} ms"
    )


def _form_reason(figures: TrialFigures, limits: TrialLimits) -> str:
    place = f"; {figures.examples[0]}" if figures.examples else ""
    return (
        f"at most {limits.max_error_rate:g} of the responses must have another form, got "
        f"{_unreadable(figures)} of {figures.compared}{place}"
    )


def _difference_reason(figures: TrialFigures, limits: TrialLimits) -> str:
    by = f", by {figures.largest:.4g} at most" if figures.largest else ""
    return (
        f"at most {limits.max_differing:g} of the responses must differ, got {figures.differing} "
        f"of {figures.compared}{by}"
    )
