"""The optimizer's report: a table for the console, JSON, and a chart."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from marship.contract.tolerance import Tolerance
from marship.optimizing.choice import EXPORTED, Choice, Rule, Variant, Verdict
from marship.optimizing.fidelity import NORM, NOT_PROVEN, Fidelity
from marship.optimizing.material import Material

KIB = 1024
NAMED = 5
SHORT_MS = 10.0
SMALL = 0.01
MARKED = "bold green"
WRAPPED, LINES_SHOWN = 52, 4
SHORT_NAME = 20
TAIL_SHOWN = 2.0
"""Limit of the axis for tails, in multiples of the longest median; the table has the full value."""

INK, CHOSEN, OTHER, LIMIT = "#1f2933", "#0b7285", "#adb5bd", "#c92a2a"


def figures(
    variants: Sequence[Variant], chosen: str, rule: Rule, *, is_narrow: bool = True
) -> Table:
    """A table with a row for each built variant, the chosen one marked; times in milliseconds.

    Args:
        variants: Those that were built, and others, which are left out.
        chosen: The name of the chosen one.
        rule: What they were chosen by.
        is_narrow: Whether titles take two lines, as on a terminal; a program reads one.
    """
    batches = _batches(variants)
    found = _bare_table("variant")
    titles = [title for n in batches for title in (f"{n} row{'s' * (n != '1')}\nms", "p99\nms")]
    metric = (rule.metric or "").replace("_", "\n")
    for title in ("size", "load\nms", *titles, "speed\n>=", metric, "differs"):
        shown = title if is_narrow else title.replace("\n", " ")
        found.add_column(shown, justify="right", no_wrap=True)
    for variant in (v for v in variants if v.file):
        style = MARKED if variant.name == chosen else None
        found.add_row(variant.name, *_cells(variant, batches, rule), style=style)
    return found


def verdicts(choice: Choice) -> Table:
    """A table with a row for each variant, built or not: why it was or was not chosen."""
    found = _bare_table("variant", "verdict")
    found.add_column("why")
    for name, verdict in choice.verdicts.items():
        style = MARKED if name == choice.chosen else None
        found.add_row(name, verdict.outcome, Text(verdict.why), style=style)
    return found


def _bare_table(*names: str) -> Table:
    found = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in names:
        found.add_column(name, no_wrap=True)
    return found


def _batches(variants: Sequence[Variant]) -> list[str]:
    return list(next((v.latency_ms for v in variants if v.file), {}))


def _cells(variant: Variant, batches: Sequence[str], rule: Rule) -> list[str]:
    times = [variant.latency_ms[batch] for batch in batches]
    return [
        size(variant.size_bytes),
        f"{variant.load_ms:.0f}",
        *(_shown_ms(value) for time in times for value in (time.median, time.p99)),
        f"{variant.speedup:.2f}",
        _shown_metric(variant.metrics[rule.metric]) if rule.metric else "",
        f"{variant.absolute:.2g}",
    ]


def _shown_ms(value: float) -> str:
    return f"{value:.3f}" if value < SHORT_MS else f"{value:.1f}"


def _shown_metric(value: float) -> str:
    return f"{value:.4f}" if value == 0 or abs(value) >= SMALL else f"{value:.3g}"


def remarks(variants: Sequence[Variant]) -> list[str]:
    """Lines of variants whose layers stay float, or whose weights have fewer bits."""
    tellers = (_float_layers, _weight_bits)
    parts = [(v.name, teller(v.details)) for v in variants for teller in tellers]
    return [f"{name}: {text}" for name, text in parts if text]


def _float_layers(details: Mapping[str, Any]) -> str | None:
    """Which layers stay float and what they would cost, in one line."""
    names = [entry["node"] for entry in details.get("stays_float", [])]
    if not names:
        return None
    loss = min(details["loss_all_int8"].values())
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")
    return (
        f"{len(names)} of {details['layers']} layers stay float, else {loss:.2g} is lost: {shown}"
    )


def _weight_bits(details: Mapping[str, Any]) -> str | None:
    bits = details.get("weight_bits")
    if bits is None:
        return None
    return f"weights of {bits} bits, since sums of 8-bit products saturate on this processor"


def closeness(variants: Sequence[Variant]) -> Table:
    """A table with a row for each output of each built variant, compared on real inputs."""
    found = _bare_table("variant")
    found.add_column("output", overflow="fold")
    for title in ("error", "worst row", "agrees", "sure"):
        found.add_column(title, justify="right", no_wrap=True)
    for variant in (v for v in variants if v.file and v.name != EXPORTED):
        worst = sorted(variant.fidelity.items(), key=lambda item: -(item[1].error or 0.0))
        for name, one in worst[:NAMED]:
            found.add_row(variant.name, Text(name), *_shown_closeness(one))
        if len(worst) > NAMED:
            found.add_row(variant.name, f"and {len(worst) - NAMED} more")
    return found


def _shown_closeness(one: Fidelity) -> tuple[str, ...]:
    """Errors, rows that agree, and the share that agrees at 95 % confidence."""
    errors = ["" if value is None else f"{value:.2g}" for value in (one.error, one.worst_row)]
    if one.same is None or one.sure_agreement is None:
        return (*errors, "", "")
    kind = "top class in " if one.is_class else ""
    return (*errors, f"{kind}{one.same} of {one.counted}", f"{100 * one.sure_agreement:.1f} %")


def compared(material: Material) -> dict[str, Any] | None:
    """The entry for `optimize.json` about real inputs; None where they were not compared."""
    if not material.compared_rows:
        return None
    return {
        "rows": material.compared_rows,
        "rows_from": material.heldout_from,
        "error": NORM,
        "most_error": material.bounds.error,
        "least_agreement": material.bounds.agreement,
        "not_proven": NOT_PROVEN,
    }


def remark(material: Material) -> str | None:
    """By what outputs were compared, and what that does not prove, as two lines."""
    if not material.compared_rows:
        return None
    bounds = material.bounds
    return (
        f"Outputs against the exported model's on {material.compared_rows} real inputs "
        f"({material.heldout_from}). Allowed: an error of {bounds.error:g} of a column's spread, "
        f"{100 * (1 - bounds.agreement):.3g} % that do not agree. Sure: the share of "
        f"such inputs that agrees at least, with 95 % confidence.\n{NOT_PROVEN}"
    )


def size(size_bytes: int) -> str:
    """`812 kB`, as tables show it."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    if size_bytes < KIB**2:
        return f"{size_bytes / KIB:.0f} KiB"
    return f"{size_bytes / KIB**2:.1f} MiB"


def entry(variant: Variant, verdict: Verdict) -> dict[str, Any]:
    """A variant's entry for `optimize.json`."""
    difference = {"absolute": variant.absolute, "relative": variant.relative}
    return {
        "name": variant.name,
        "file": variant.file,
        "digest": variant.digest,
        "built": variant.file is not None,
        "verdict": verdict.outcome,
        "why": verdict.why,
        "details": variant.details,
        "size_bytes": variant.size_bytes,
        "load_ms": variant.load_ms,
        "latency_ms": {batch: asdict(times) for batch, times in variant.latency_ms.items()},
        "speedup": variant.speedup,
        "median_speedup": variant.median_speedup,
        "metrics": variant.metrics,
        "metric_drop": variant.metric_drop,
        "outputs": {name: _entry_of(one) for name, one in variant.fidelity.items()},
        "largest_difference": {k: v if math.isfinite(v) else None for k, v in difference.items()},
        "tolerance": asdict(variant.tolerance if math.isfinite(variant.absolute) else Tolerance()),
    }


def _entry_of(one: Fidelity) -> dict[str, Any]:
    """How close an output is, as JSON."""
    errors = {"error": one.error, "worst_row": one.worst_row}
    finite = {k: v if v is None or math.isfinite(v) else None for k, v in errors.items()}
    counted = "top class" if one.is_class else "values"
    shares = {"agreement": one.agreement, "sure_agreement": one.sure_agreement}
    same = None if one.same is None else counted
    return {"rows": one.rows, **finite, "same": same, "counted": one.counted, **shares}


def draw(variants: Sequence[Variant], choice: Choice, rule: Rule, path: Path, name: str) -> None:
    """A row for each variant: latency, the metric's drop or the difference, and the verdict."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = variants[::-1]
    batches = _batches(variants)
    panels = len(batches) + 2
    with mpl.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(14, 1.5 + 0.72 * len(shown)), layout="constrained")
        grid = figure.subplots(1, panels, sharey=True, width_ratios=[1] * (panels - 1) + [1.4])
        for axes, batch in zip(grid, batches, strict=False):
            _draw_latency(axes, shown, choice.chosen, batch)
        _draw_cost(grid[-2], shown, choice.chosen, rule)
        _draw_verdicts(grid[-1], shown, choice)
        grid[0].set_yticks(range(len(shown)), [_label(variant) for variant in shown])
        grid[0].set_ylim(-0.6, len(shown) - 0.4)
        title = f"{name}: {choice.chosen} is chosen"
        if rule.most_error is not None:
            figure.supxlabel(NOT_PROVEN, x=0.01, ha="left", fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
        figure.savefig(path, dpi=144)


def _label(variant: Variant) -> str:
    return f"{variant.name}\n{size(variant.size_bytes)}" if variant.file else variant.name


def _draw_latency(axes: Any, shown: Sequence[Variant], chosen: str, batch: str) -> None:  # noqa: ANN401  matplotlib's stubs leave it open
    rows, built = _built(shown)
    medians = [variant.latency_ms[batch].median for variant in built]
    tails = [variant.latency_ms[batch].p99 for variant in built]
    axes.barh(rows, medians, 0.6, color=_colors(built, chosen))
    axes.hlines(rows, medians, tails, color=INK, linewidth=1)
    for row, median in zip(rows, medians, strict=True):
        axes.annotate(
            f"{median:.3g} ms", (median, row), (3, 4), textcoords="offset points", fontsize=8
        )
    axes.set_title(f"{batch} row{'' if batch == '1' else 's'} in a call", loc="left", fontsize=9)
    axes.set_xlabel("milliseconds: median, line to p99")
    widest = max(medians)
    axes.set_xlim(0, max(1.35 * widest, min(1.05 * max(tails), TAIL_SHOWN * widest)))
    _bare(axes)


def _draw_cost(axes: Any, shown: Sequence[Variant], chosen: str, rule: Rule) -> None:  # noqa: ANN401  the same
    rows, built = _built(shown)
    if rule.metric is None and rule.most_error is not None:
        values = [variant.worst_error for variant in built]
        axes.set_title("error on real inputs, no labels", loc="left", fontsize=9)
        axes.set_xlabel("share of an output's spread; dashed: allowed")
        axes.axvline(rule.most_error, color=LIMIT, linewidth=1, linestyle="--")
    elif rule.metric is None:
        values = [variant.absolute for variant in built]
        axes.set_title("difference from the exported model", loc="left", fontsize=9)
        axes.set_xlabel("largest absolute difference")
    else:
        values = [variant.metric_drop or 0.0 for variant in built]
        axes.set_title("quality on held-out data", loc="left", fontsize=9)
        axes.set_xlabel(f"loss of {rule.metric}; dashed: the budget")
        axes.axvline(rule.budget, color=LIMIT, linewidth=1, linestyle="--")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.scatter(values, rows, s=60, color=_colors(built, chosen), zorder=3)
    for row, value, variant in zip(rows, values, built, strict=True):
        axes.annotate(
            _cost_label(variant, value),
            (value, row),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            parse_math=False,
        )
    axes.margins(x=0.4 if rule.most_error is not None else 0.2)
    axes.locator_params(axis="x", nbins=5)
    _bare(axes)


def _cost_label(variant: Variant, value: float) -> str:
    """The figure; for an error the output's name before it, and how many rows agree at least."""
    if not variant.fidelity or not value:
        return f"{value:.2g}"
    name = max(variant.fidelity, key=lambda name: variant.fidelity[name].error or 0.0)
    shares = [one.agreement for one in variant.fidelity.values() if one.agreement is not None]
    agree = f", {100 * min(shares):.3g} % agree" if shares else ""
    return f"{textwrap.shorten(name, SHORT_NAME, placeholder='...')} {value:.2g}{agree}"


def _draw_verdicts(axes: Any, shown: Sequence[Variant], choice: Choice) -> None:  # noqa: ANN401  the same
    axes.set_title("verdict", loc="left", fontsize=9)
    axes.set_xlim(0, 1)
    for row, variant in enumerate(shown):
        verdict = choice.verdicts[variant.name]
        lines = textwrap.wrap(f"{verdict.outcome}: {verdict.why}", WRAPPED, max_lines=LINES_SHOWN)
        color = CHOSEN if variant.name == choice.chosen else INK
        axes.text(0, row, "\n".join(lines), va="center", fontsize=8, color=color, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelbottom=False)


def _built(shown: Sequence[Variant]) -> tuple[list[int], list[Variant]]:
    """The variants with figures, and the rows in which they are drawn."""
    found = [(row, variant) for row, variant in enumerate(shown) if variant.file]
    return [row for row, _ in found], [variant for _, variant in found]


def _colors(built: Sequence[Variant], chosen: str) -> list[str]:
    return [CHOSEN if variant.name == chosen else OTHER for variant in built]


def _bare(axes: Any) -> None:  # noqa: ANN401  the same
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e9ecef", linewidth=0.8)
    axes.set_axisbelow(True)
