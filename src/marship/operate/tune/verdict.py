"""What came of a run: the winner, or why there is none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, Measured, in_ms
from marship.operate.tune.settings import TuneSettings
from marship.operate.tune.turns import TurnsResult, winner

BETTER, NOT_BETTER, NOT_COMPARED, MISSED = "better", "not better", "not compared", "limits missed"
_KEPT = 0.9
"""The share of what comes at a rate that must be answered meanwhile: the last may come later."""
_WHOLE_CORE = 0.9


@dataclass(frozen=True, slots=True)
class TuneVerdict:
    """What came of it.

    Attributes:
        outcome: `better`: there is a winner; `not better`: the archive's settings stay, and keep
            the limits; `not compared`: nothing was measured that could win; `limits missed`:
            the archive's settings stay, and miss a limit.
        reason: A sentence without a period.
    """

    outcome: str
    reason: str

    @property
    def is_failure(self) -> bool:
        """Whether the archive's settings miss a limit, or nothing could be said about them."""
        return self.outcome in (NOT_COMPARED, MISSED)


def judge(
    measured: Sequence[Measured],
    shipped: Candidate,
    compared: Sequence[TurnsResult],
    demands: Demands,
    settings: TuneSettings,
) -> TuneVerdict:
    """What came of a run.

    Args:
        measured: All that was measured, the shipped settings among it.
        shipped: The archive's settings.
        compared: The finalists, in turns with them.
        demands: The limits.
        settings: The load.
    """
    if (best := winner(compared)) is not None:
        return TuneVerdict(BETTER, best.why)
    own = next(one for one in measured if one.candidate == shipped)
    if missed := "; ".join(_missed(own, measured, compared, demands, settings)):
        return TuneVerdict(
            MISSED, f"{missed}. Allow more, make less load, or serve on a faster machine"
        )
    if compared:
        return TuneVerdict(NOT_BETTER, "nothing is better by more than the noise")
    others = [one for one in measured if one is not own]
    if not others:
        return TuneVerdict(
            NOT_COMPARED,
            "the time was over before other settings were measured. Allow more --minutes",
        )
    if all(one.fault for one in others):
        return TuneVerdict(NOT_COMPARED, f"no other settings serve: {others[0].fault.rstrip('.')}")
    nearest = demands.objection(demands.ranked(others)[0])
    return TuneVerdict(
        NOT_BETTER,
        f"of {len(others)} others measured none keeps the limits, as the shipped "
        f"settings do (the nearest: {nearest})",
    )


def _missed(
    own: Measured,
    measured: Sequence[Measured],
    compared: Sequence[TurnsResult],
    demands: Demands,
    settings: TuneSettings,
) -> Iterator[str]:
    """Each limit that the shipped settings miss: theirs, the best of all, and the limit."""
    served = [one for one in measured if one.slices]
    in_turns = {one.candidate: one.p99_ms.median for one in compared}  # it is the surer figure
    p99_ms = compared[0].shipped_p99_ms.median if compared else own.p99_ms
    is_failing, is_slow = demands.failed_share_is_high(own), p99_ms > demands.p99_ms
    if settings.rate is not None and (is_failing or is_slow):
        yield from _beyond(settings.rate, max(served, key=lambda one: one.rps))
    if is_failing:
        best = min(served, key=lambda one: one.failed_share)
        yield (
            f"{own.failed_share:.1%} of the requests fail with the shipped settings, and "
            f"{best.failed_share:.1%} at best ({best.candidate})"
        )
    if is_slow:
        least = {one.candidate: in_turns.get(one.candidate, one.p99_ms) for one in served}
        best_one = min(least, key=lambda one: least[one])
        yield (
            f"p99 is {in_ms(p99_ms)} ms with the shipped settings and {in_ms(least[best_one])} ms "
            f"at best ({best_one}), and may be {demands.p99_ms:g} ms (--p99-ms)"
        )
    if demands.memory_mb is not None and own.memory_mb > demands.memory_mb:
        best = min(served, key=lambda one: one.memory_mb)
        yield (
            f"memory is {own.memory_mb:.0f} MB with the shipped settings and "
            f"{best.memory_mb:.0f} MB at best ({best.candidate}), and may be "
            f"{demands.memory_mb:g} MB (--memory-mb)"
        )


def _beyond(rate: float, fastest: Measured) -> Iterator[str]:
    """Whether the rate is more than the machine answers, by the candidate that answers most."""
    came = sum(one.requests for one in fastest.slices)
    if sum(one.answered for one in fastest.slices) < _KEPT * came:  # as long as they came
        busy = max(one.generator for one in fastest.slices)
        core = "; making them takes a whole core" if busy > _WHOLE_CORE else ""
        yield (
            f"{rate:,g} requests a second are more than this machine answers: at most "
            f"{fastest.rps:,.0f} ({fastest.candidate}){core}"
        )
