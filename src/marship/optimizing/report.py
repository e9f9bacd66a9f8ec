"""The optimizer's report: a table for the console, a JSON, a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from marship.contract import Tolerance
from marship.optimizing.choice import Rule, Variant

KIB = 1024
NAMED = 5
TAIL_SHOWN = 2.0
"""How far a tail may stretch the axis, in the longest median; the table has all of it."""

INK, CHOSEN, OTHER, LIMIT = "#1f2933", "#0b7285", "#adb5bd", "#c92a2a"


def table(variants: Sequence[Variant], chosen: str, rule: Rule) -> Table:
    """One row for each variant that was built, the chosen one marked; times in milliseconds."""
    built = [variant for variant in variants if variant.file]
    batches = list(built[0].latency_ms) if built else []
    found = Table(box=None, header_style="bold", pad_edge=False)
    found.add_column("variant", no_wrap=True)
    titles = [title for n in batches for title in (f"{n} row{'s' * (n != '1')}\nms", "p99\nms")]
    for title in ("size", "load\nms", *titles, rule.metric or "", "differs"):
        found.add_column(title, justify="right", no_wrap=True)
    for variant in built:
        style = "bold green" if variant.name == chosen else None
        found.add_row(*_cells(variant, batches, rule), style=style)
    return found


def _cells(variant: Variant, batches: Sequence[str], rule: Rule) -> list[str]:
    times = [variant.latency_ms[batch] for batch in batches]
    return [
        variant.name,
        size(variant.size_bytes),
        f"{variant.load_ms:.0f}",
        *(f"{value:.3f}" for time in times for value in (time.median, time.p99)),
        f"{variant.metrics[rule.metric]:.4f}" if rule.metric else "",
        f"{variant.absolute:.2g}",
    ]


def remarks(variants: Sequence[Variant]) -> list[str]:
    """A line for each variant that could not be built or chosen, or is not all in int8: why."""
    why = [(v.name, f"not built: {v.reason}" if v.file is None else v.objection) for v in variants]
    parts = [(v.name, _float_layers(v.details)) for v in variants]
    return [f"{name}: {text}" for name, text in (*parts, *why) if text]


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


def size(size_bytes: int) -> str:
    """`812 kB`, as tables show it."""
    if size_bytes < KIB**2:
        return f"{size_bytes / KIB:.0f} KiB"
    return f"{size_bytes / KIB**2:.1f} MiB"


def entry(variant: Variant) -> dict[str, Any]:
    """A variant as `optimize.json` states it."""
    difference = {"absolute": variant.absolute, "relative": variant.relative}
    return {
        "name": variant.name,
        "file": variant.file,
        "built": variant.file is not None,
        "reason": variant.reason,
        "objection": variant.objection,
        "details": variant.details,
        "size_bytes": variant.size_bytes,
        "load_ms": variant.load_ms,
        "latency_ms": {batch: asdict(times) for batch, times in variant.latency_ms.items()},
        "speedup": variant.speedup,
        "metrics": variant.metrics,
        "metric_drop": variant.metric_drop,
        "largest_difference": {k: v if math.isfinite(v) else None for k, v in difference.items()},
        "tolerance": asdict(variant.tolerance if math.isfinite(variant.absolute) else Tolerance()),
    }


def draw(variants: Sequence[Variant], chosen: str, rule: Rule, path: Path, title: str) -> None:
    """Latency of each variant beside what it costs: the metric's drop, or the difference."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    built = [variant for variant in variants if variant.file][::-1]
    batches = list(built[0].latency_ms)
    with mpl.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(11, 1.5 + 0.55 * len(built)), layout="constrained")
        panels = figure.subplots(1, len(batches) + 1, sharey=True)
        for axes, batch in zip(panels, batches, strict=False):
            _draw_latency(axes, built, chosen, batch)
        _draw_cost(panels[-1], built, chosen, rule)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10, wrap=True)
        figure.savefig(path, dpi=144)


def _draw_latency(axes: Any, built: Sequence[Variant], chosen: str, batch: str) -> None:  # noqa: ANN401  matplotlib's stubs leave it open
    rows = range(len(built))
    medians = [variant.latency_ms[batch].median for variant in built]
    tails = [variant.latency_ms[batch].p99 for variant in built]
    axes.barh(rows, medians, 0.6, color=_colors(built, chosen))
    axes.hlines(rows, medians, tails, color=INK, linewidth=1)
    for row, median in enumerate(medians):
        axes.annotate(
            f"{median:.3g} ms", (median, row), (3, 4), textcoords="offset points", fontsize=8
        )
    axes.set_yticks(rows, [f"{variant.name}\n{size(variant.size_bytes)}" for variant in built])
    axes.set_title(f"{batch} row{'' if batch == '1' else 's'} in a call", loc="left", fontsize=9)
    axes.set_xlabel("milliseconds: median, line to p99")
    widest = max(medians)
    axes.set_xlim(0, max(1.35 * widest, min(1.05 * max(tails), TAIL_SHOWN * widest)))
    _bare(axes)


def _draw_cost(axes: Any, built: Sequence[Variant], chosen: str, rule: Rule) -> None:  # noqa: ANN401  the same
    rows = range(len(built))
    if rule.metric is None:
        values = [variant.absolute for variant in built]
        axes.set_title("distance from PyTorch's answers", loc="left", fontsize=9)
        axes.set_xlabel("largest absolute difference")
    else:
        values = [variant.metric_drop or 0.0 for variant in built]
        axes.set_title("quality on held-out data", loc="left", fontsize=9)
        axes.set_xlabel(f"loss of {rule.metric}; dashed: the budget")
        axes.axvline(rule.budget, color=LIMIT, linewidth=1, linestyle="--")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.scatter(values, rows, s=60, color=_colors(built, chosen), zorder=3)
    for row, value in zip(rows, values, strict=True):
        axes.annotate(
            f"{value:.2g}",
            (value, row),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.margins(x=0.2, y=0.15)
    axes.locator_params(axis="x", nbins=5)
    _bare(axes)


def _colors(built: Sequence[Variant], chosen: str) -> list[str]:
    return [CHOSEN if variant.name == chosen else OTHER for variant in built]


def _bare(axes: Any) -> None:  # noqa: ANN401  the same
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e9ecef", linewidth=0.8)
    axes.set_axisbelow(True)
