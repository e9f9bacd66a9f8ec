"""Results as tables, a JSON file and plots."""

import json
import os
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from measurement import Results
from peers import BARE, MARSHIP, THROUGHPUT
from rich.console import Console
from rich.table import Table
from targets import outcomes

Summary = dict[str, Any]
FIGURES = (
    ("requests per second", "rps", 1.0, 0),
    ("p50, ms", "p50_us", 1e-3, 3),
    ("p99, ms", "p99_us", 1e-3, 2),
)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and the versions that all servers run on."""
    import numpy as np
    import onnxruntime as ort

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def summarize(results: Results) -> list[Summary]:
    """One entry for each setup: medians over the rounds, by number of clients."""
    return [
        {
            "peer": setup.peer,
            "profile": setup.profile,
            "workers": setup.workers,
            "clients": {
                str(clients): {
                    "rps": statistics.median(f.rps for f in rounds),
                    "p50_us": statistics.median(f.p50_us for f in rounds),
                    "p99_us": statistics.median(f.p99_us for f in rounds),
                    "errors": sum(f.errors for f in rounds),
                    "rounds_rps": [round(f.rps, 1) for f in rounds],
                }
                for clients, rounds in measured.items()
            },
        }
        for setup, measured in results.items()
    ]


def table(title: str, entries: list[Summary], key: str, scale: float, digits: int) -> Table:
    """One figure of every server at every number of clients."""
    shown = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    shown.add_column("clients")
    shown.add_column("workers", justify="right")
    counts = list(entries[0]["clients"])
    for clients in counts:
        shown.add_column(clients, justify="right")
    for entry in entries:
        found = [entry["clients"][clients] for clients in counts]
        cells = [f"{f[key] * scale:,.{digits}f}{'*' if f['errors'] else ''}" for f in found]
        shown.add_row(name_of(entry), str(entry["workers"]), *cells)
    return shown


def name_of(entry: Summary) -> str:
    """A setup's name in tables and plots."""
    return f"{entry['peer']} {entry['profile']}".strip()


def ratios(cases: Mapping[str, list[Summary]]) -> Table:
    """The targets and the measured ratios."""
    shown = Table(title="ratios", title_justify="left", box=None, header_style="bold")
    for name in ("case", "clients", "profile", "figure", "against"):
        shown.add_column(name)
    for name in ("ratio", "wanted"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    for outcome in outcomes(cases):
        target = outcome.target
        sign = "at least" if target.figure == "rps" else "at most"
        shown.add_row(
            target.case,
            str(target.clients),
            target.profile or "best",
            target.figure,
            outcome.against,
            f"{outcome.ratio:.2f}",
            f"{sign} {target.limit:g}",
            "reached" if outcome.reached else "missed",
        )
    return shown


def picture(name: str, entries: list[Summary], path: Path) -> None:
    """Latency against throughput as clients grow; both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    peers = [peer for peer in dict.fromkeys(entry["peer"] for entry in entries) if peer != BARE]
    for entry in entries:
        found = list(entry["clients"].values())
        if entry["peer"] != BARE:
            axes.plot(
                [f["rps"] for f in found],
                [f["p50_us"] / 1e3 for f in found],
                marker="o",
                color=f"C{peers.index(entry['peer'])}",
                linestyle="--" if entry["profile"] == THROUGHPUT else "-",
                label=name_of(entry),
                linewidth=2.5 if entry["peer"] == MARSHIP else 1,
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="requests per second",
        ylabel="p50, ms",
        title=f"{name}: {', '.join(entries[0]['clients'])} clients",
    )
    figure.legend(fontsize="small", loc="outside right upper")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def write(measured: Mapping[str, Any], folder: Path) -> None:
    """Write results.json, tables.txt, and a picture for each case."""
    (folder / "results.json").write_text(json.dumps(measured, indent=2, default=str) + "\n")
    with (folder / "tables.txt").open("w") as file:
        show(measured, Console(file=file, width=120))
    for name, entries in measured["cases"].items():
        picture(name, entries, folder / f"{name}.png")


def show(measured: Mapping[str, Any], console: Console) -> None:
    """Print the machine, all tables and the ratios."""
    console.print(", ".join(f"{k} {v}" for k, v in measured["machine"].items()))
    for name, entries in measured["cases"].items():
        for title, key, scale, digits in FIGURES:
            console.print()
            console.print(table(f"{name}: {title}", entries, key, scale, digits))
        if any(f["errors"] for entry in entries for f in entry["clients"].values()):
            console.print("* some requests failed")
    console.print()
    console.print(ratios(measured["cases"]))
