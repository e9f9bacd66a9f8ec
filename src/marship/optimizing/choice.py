"""Which variant is served: the fastest within the budget that is worth it, else float32."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from marship.contract import Tolerance
from marship.errors import UsageError
from marship.optimizing.measure import Latency

EXPORTED = "exported"
ROUNDING = 1e-9
"""0.754 - 0.749 is above 0.005 by less than this."""


@dataclass(slots=True)
class Variant:
    """One way to run the model, and all that was found out about it.

    Attributes:
        name: "exported" is the unchanged model; the others are named as their passes.
        file: In the run folder; None where it was not built.
        reason: Why it was not built.
        objection: Why it cannot be chosen although it was built.
        latency_ms: By number of rows in the call.
        speedup: Over the base, at the least, as the geometric mean over the batch sizes.
        metrics: What the recipe's judge says on held-out data.
        metric_drop: How much worse the deciding metric is than the exported model's.
        details: What its pass found out while making it.
    """

    name: str
    file: str | None = None
    reason: str | None = None
    objection: str | None = None
    size_bytes: int = 0
    load_ms: float = 0.0
    latency_ms: dict[str, Latency] = field(default_factory=dict)
    speedup: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)
    metric_drop: float | None = None
    absolute: float = 0.0
    relative: float = 0.0
    tolerance: Tolerance = field(default_factory=Tolerance)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """What the choice goes by.

    Attributes:
        base: The variant that stays where no other is worth it.
        metric: The deciding metric; None where the run has no judge.
        budget: The largest metric drop.
        least_gain: The smallest speed gain over the base that is worth a change, as a share.
        forced: A variant chosen by hand.
    """

    base: str
    metric: str | None
    budget: float
    least_gain: float
    forced: str | None = None


def choose(variants: Sequence[Variant], rule: Rule) -> tuple[str, str]:
    """The chosen variant's name, and why in one sentence.

    Sets `objection` on those that cannot be chosen.

    Raises:
        UsageError: The variant chosen by hand was not built.
    """
    built = {variant.name: variant for variant in variants if variant.file}
    for variant in built.values():
        variant.objection = variant.objection or _over_budget(variant, rule)
    if rule.forced is not None:
        return _forced(built, rule.forced)
    others = [v for v in built.values() if v.name not in (rule.base, EXPORTED)]
    fit = [variant for variant in others if variant.objection is None]
    worth = [v for v in fit if v.speedup >= 1 + rule.least_gain]
    if worth:
        best = max(worth, key=lambda variant: variant.speedup)
        return best.name, (
            f"it is at least {best.speedup:.2f} times as fast as {rule.base}, "
            f"and {_cost(best, rule)}"
        )
    if fit:
        best = max(fit, key=lambda variant: variant.speedup)
        return _base(built, rule), (
            f"none is worth it: {best.name} is surely {best.speedup:.2f} times as fast, "
            f"and {1 + rule.least_gain:.2f} is asked for"
        )
    return _base(built, rule), "none is worth it: no other variant was built and within its limits"


def _base(built: dict[str, Variant], rule: Rule) -> str:
    """The base; the exported model where something speaks against the base itself."""
    return rule.base if built[rule.base].objection is None else EXPORTED


def within(drop: float, budget: float) -> bool:
    """Whether a metric's drop is within the budget."""
    return drop <= budget + ROUNDING


def _over_budget(variant: Variant, rule: Rule) -> str | None:
    if rule.metric is None:
        return None
    if variant.metric_drop is None or within(variant.metric_drop, rule.budget):
        return None
    return f"{rule.metric} drops by {variant.metric_drop:.2g}, over the budget of {rule.budget:g}"


def _forced(built: dict[str, Variant], name: str) -> tuple[str, str]:
    if name not in built:
        raise UsageError(f"variant must be one that was built: {', '.join(built)}; got {name}.")
    objection = built[name].objection
    return name, "it was asked for" + (f", although {objection}" if objection else "")


def _cost(variant: Variant, rule: Rule) -> str:
    if rule.metric is None or variant.metric_drop is None:
        return "its outputs are within the export's tolerance"
    if variant.metric_drop <= 0:
        return f"{rule.metric} does not drop"
    return f"{rule.metric} drops by {variant.metric_drop:.2g} of {rule.budget:g} allowed"
