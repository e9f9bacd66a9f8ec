"""Which variant is served: the fastest within the budget if it is worth a change, else float32."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from marship.contract.tolerance import Tolerance
from marship.errors import UsageError
from marship.optimizing import fidelity
from marship.optimizing.fidelity import Fidelity
from marship.optimizing.measure import Latency

EXPORTED = "exported"
ROUNDING = 1e-9
"""0.754 - 0.749 is above 0.005 by less than this."""


@dataclass(slots=True)
class Variant:
    """One way to run the model, and what was measured of it.

    Attributes:
        name: "exported" is the unchanged model; the others are named as their passes.
        file: In the run folder; None where it was not built.
        digest: SHA-256 of the file and its external data, as a contract has it.
        reason: Why it was not built.
        objection: Why it was built but must not be served.
        latency_ms: By number of rows per call.
        speedup: Lower bound of the speedup over the base at 97.5 % confidence; geometric mean over
            batch sizes.
        median_speedup: The median speedup, likewise.
        metrics: The judge's metrics on held-out data.
        metric_drop: How much worse the deciding metric is than the exported model's.
        is_exact: Whether all its outputs are within the export's tolerance.
        fidelity: By output, how close it is to the exported model's on real inputs; empty where a
            judge decides.
        details: Details that its pass recorded.
    """

    name: str
    file: str | None = None
    digest: str | None = None
    reason: str | None = None
    objection: str | None = None
    size_bytes: int = 0
    load_ms: float = 0.0
    latency_ms: dict[str, Latency] = field(default_factory=dict)
    speedup: float = 1.0
    median_speedup: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)
    metric_drop: float | None = None
    absolute: float = 0.0
    relative: float = 0.0
    tolerance: Tolerance = field(default_factory=Tolerance)
    is_exact: bool = True
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def worst_error(self) -> float:
        """The largest relative error of an output; 0 without floats."""
        return max((f.error for f in self.fidelity.values() if f.error is not None), default=0.0)


@dataclass(frozen=True, slots=True)
class Rule:
    """The criteria of the choice.

    Attributes:
        base: The variant to compare with, which is kept if no other is better.
        metric: The deciding metric; None if the run has no judge.
        budget: The largest allowed metric drop.
        least_gain: The smallest relative speed gain over the base that justifies a change.
        forced: A variant chosen by the user.
        most_error: The largest relative error of an output on real inputs; None where they are not
            compared.
    """

    base: str
    metric: str | None
    budget: float
    least_gain: float
    forced: str | None = None
    most_error: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one variant.

    Attributes:
        outcome: One or two words, as shown in the table.
        why: One sentence with the figures that decided.
    """

    outcome: str
    why: str


CHOSEN, NOT_BUILT, REJECTED, OVER_BUDGET = "chosen", "not built", "rejected", "over budget"
TOO_SLOW, BEATEN, NOT_REQUESTED = "too slow", "beaten", "not requested"


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen variant's name, and a verdict on each variant by name."""

    chosen: str
    verdicts: dict[str, Verdict]

    @property
    def why(self) -> str:
        """Why the chosen one was chosen."""
        return self.verdicts[self.chosen].why


def choose(variants: Sequence[Variant], rule: Rule) -> Choice:
    """The variant to serve, and why each of the others is not.

    Raises:
        UsageError: The variant chosen by the user was not built.
    """
    best = _forced(variants, rule) if rule.forced is not None else _best(variants, rule)
    return Choice(best.name, {v.name: _verdict(v, best, rule) for v in variants})


def _forced(variants: Sequence[Variant], rule: Rule) -> Variant:
    built = {variant.name: variant for variant in variants if variant.file}
    if rule.forced not in built:
        raise UsageError(
            f"variant must be one that was built: {', '.join(built)}; got {rule.forced}."
        )
    return built[rule.forced]


def _best(variants: Sequence[Variant], rule: Rule) -> Variant:
    """The fastest eligible variant, the smallest of equally fast ones; else the base.

    If the base is rejected itself, the exported model takes its place.
    """
    built = {variant.name: variant for variant in variants if variant.file}
    worth = [
        variant
        for variant in built.values()
        if variant.name != rule.base
        and _rejection(variant, rule) is None
        and variant.speedup > 1 + rule.least_gain
    ]
    if worth:
        return max(worth, key=lambda variant: (variant.speedup, -variant.size_bytes))
    return built[rule.base if _rejection(built[rule.base], rule) is None else EXPORTED]


def _verdict(variant: Variant, best: Variant, rule: Rule) -> Verdict:
    if variant.file is None:
        return Verdict(NOT_BUILT, str(variant.reason))
    rejection = _rejection(variant, rule)
    if variant is best:
        return Verdict(CHOSEN, _why_chosen(variant, rejection, rule))
    if rejection is not None:
        return rejection
    if rule.forced is not None:
        return Verdict(NOT_REQUESTED, f"--variant {rule.forced} was given")
    if variant.name != rule.base and variant.speedup <= 1 + rule.least_gain:
        return Verdict(TOO_SLOW, _too_slow(variant, rule))
    return Verdict(BEATEN, _beaten(variant, best, rule))


def _rejection(variant: Variant, rule: Rule) -> Verdict | None:
    """Why a variant that was built may not be served, however fast it is."""
    if variant.objection is not None:
        return Verdict(REJECTED, variant.objection)
    drop = variant.metric_drop
    if rule.metric is None or drop is None or within(drop, rule.budget):
        return None
    if math.isnan(drop):
        return Verdict(REJECTED, f"{rule.metric} is not a number")
    lost, allowed = _distinct(drop, rule.budget)
    over = f"{rule.metric} drops by {lost}, {drop - rule.budget:.2g} over the budget of {allowed}"
    return Verdict(OVER_BUDGET, over)


def within(drop: float, budget: float) -> bool:
    """Whether a metric's drop is within the budget."""
    return drop <= budget + ROUNDING


def _why_chosen(variant: Variant, rejection: Verdict | None, rule: Rule) -> str:
    if rule.forced is not None:
        return "--variant was given" + (f", although {rejection.why}" if rejection else "")
    needed = 1 + rule.least_gain
    if variant.name != rule.base and variant.speedup > needed and rejection is None:
        return (
            f"it is at least {variant.speedup:.3g} times as fast as {rule.base}, "
            f"and {_cost(variant, rule)}"
        )
    none = f"no other variant passes its checks and is more than {needed:.4g} times as fast"
    return none if variant.name == rule.base else f"{rule.base} is rejected, and {none}"


def _too_slow(variant: Variant, rule: Rule) -> str:
    sure, needed = _distinct(variant.speedup, 1 + rule.least_gain)
    return (
        f"{variant.median_speedup:.3g} times as fast as {rule.base} at the median, at least {sure} "
        f"with 97.5 % confidence; more than {needed} is needed"
    )


def _beaten(variant: Variant, best: Variant, rule: Rule) -> str:
    slower, faster = _distinct(variant.speedup, best.speedup)
    if variant.name == rule.base:
        return f"{best.name} is at least {faster} times as fast"
    if variant.speedup < best.speedup:
        ours = f"at least {slower} times as fast as {rule.base}"
        return f"{ours}, but {best.name} at least {faster} times"
    larger = variant.size_bytes - best.size_bytes
    size = f"{larger:,} bytes larger" if larger else "no smaller"
    return f"exactly as fast as {best.name}, and {size}"


def _cost(variant: Variant, rule: Rule) -> str:
    if rule.metric is None or variant.metric_drop is None:
        labels = fidelity.labels(variant.fidelity)
        if (variant.is_exact or not variant.fidelity) and not labels:
            return "its outputs are within the export's tolerance"
        return f"its outputs are close enough on real inputs: {_closeness(variant)}"
    if variant.metric_drop <= 0:
        return f"{rule.metric} does not drop"
    return f"{rule.metric} drops by {variant.metric_drop:.2g} of {rule.budget:g} allowed"


def _closeness(variant: Variant) -> str:
    """`off by at most 0.012 of their spread, 99.2 % of 250 rows agree`."""
    parts = []
    if any(one.error is not None for one in variant.fidelity.values()):
        parts.append(f"off by at most {variant.worst_error:.2g} of their spread")
    counted = [one for one in variant.fidelity.values() if one.agreement is not None]
    if counted:
        least = min(counted, key=lambda one: (one.agreement or 0.0, one.rows))
        parts.append(f"{100 * (least.agreement or 0.0):.4g} % of {least.shown_count} agree")
    return ", ".join(parts)


def _distinct(one: float, other: float) -> tuple[str, str]:
    """Two figures with at least three digits, and as many as are needed to tell them apart."""
    for digits in range(3, 17):
        shown = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if shown[0] != shown[1]:
            return shown
    return repr(one), repr(other)
