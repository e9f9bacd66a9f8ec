"""What tuning found: lines and a table for a person, JSON, and a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marship import storage
from marship.operate.tune.candidate import BATCHES, DIRECT, Candidate, profile_of
from marship.operate.tune.figures import Demands, LoadSlice, Measured, front, in_ms, of_few
from marship.operate.tune.search import Search
from marship.operate.tune.settings import HOSTS, TuneSettings
from marship.operate.tune.turns import SureInterval, TurnsResult
from marship.operate.tune.variants import TunedArchive
from marship.operate.tune.verdict import TuneVerdict

PICTURE, JSON_FILE = "tune.png", "tune.json"
_INK, _CHOSEN, _OTHER, _LIMIT = "#1f2933", "#0b7285", "#adb5bd", "#c92a2a"
_LARGEST = 250.0
_BUSY_SHARE = 0.25
_OVERRUN = 1.05


@dataclass(frozen=True, slots=True)
class Tuned:
    """The result.

    Attributes:
        archive: The archive that has the winner's settings, or the given one, unchanged.
        is_changed: Whether settings were written.
        shipped: The settings that the archive came with.
        verdict: What came of it.
        winner: The best, beside them; None if nothing is better by more than the noise.
        compared: All finalists beside the shipped settings.
        calm: Both at seven tenths of the shipped throughput, by requests at a rate.
        measured: All that was measured.
        not_tried: What was not, a sentence each.
        grid: How many candidates there are.
        busy: How many cores other programs used before anything was measured.
        cores: How many there are.
        demands: The limits.
        load: The load, in words.
        slice_s: The length of a slice of load.
        seconds: How long all took.
        minutes: How long it should take at most.
        folder: Where the measurements, the JSON and the picture are.
    """

    archive: Path
    is_changed: bool
    shipped: Candidate
    verdict: TuneVerdict
    winner: TurnsResult | None
    compared: tuple[TurnsResult, ...]
    calm: dict[str, LoadSlice]
    measured: tuple[Measured, ...]
    not_tried: tuple[str, ...]
    grid: int
    busy: float
    cores: int
    demands: Demands
    load: str
    slice_s: float
    seconds: float
    minutes: float
    folder: Path

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": str(self.archive),
            "is_changed": self.is_changed,
            **asdict(self.verdict),
            "load": self.load,
            "limits": asdict(self.demands),
            "shipped": asdict(self.shipped),
            "winner": self.winner and asdict(self.winner),
            "compared": [asdict(one) for one in self.compared],
            "at_rate": {name: asdict(one) for name, one in self.calm.items()},
            "measured": [
                {
                    **asdict(one),
                    "rps": one.rps,
                    "p99_ms": one.p99_ms if one.slices else None,
                    "objection": self.demands.objection(one),
                }
                for one in self.measured
            ],
            "not_tried": list(self.not_tried),
            "grid": self.grid,
            "busy_cores": self.busy,
            "cores": self.cores,
            "slice_s": self.slice_s,
            "seconds": round(self.seconds, 1),
            "picture": str(self.folder / PICTURE),
        }


def line(number: int, found: Measured, demands: Demands) -> str:
    """One measurement."""
    objection = demands.objection(found)
    if not found.slices:
        return f"{number:3}  {found.candidate}: {objection}"
    stopped = "stopped at the first look" if found.is_hopeless else objection
    return (
        f"{number:3}  {found.candidate}: {found.rps:,.0f}/s, p99 {_p99(found)} ms, "
        f"{found.memory_mb:.0f} MB{f'; {stopped}' if stopped else ''}"
    )


def write(done: Tuned) -> None:
    """Write the JSON and the picture into the folder of the results."""
    storage.write_json(done.folder / JSON_FILE, done.fields())
    with storage.replacing(done.folder / PICTURE) as draft:
        draw(done, draft)


HEADER = (
    *("settings", "profile", "answers/s", "lowest", "highest", "p99 ms", "MB", "same"),
    *("load's core", ""),
)


def rows(done: Tuned) -> Iterator[tuple[object, ...]]:
    """A row for each candidate that was measured, the best first."""
    for one in done.demands.ranked(done.measured):
        marks = [
            "shipped" if one.candidate == done.shipped else "",
            "winner" if done.winner and one.candidate == done.winner.candidate else "",
            "stopped at the first look" if one.is_hopeless else done.demands.objection(one),
        ]
        rates = [each.rps for each in one.slices] or [0.0]
        busy = max((each.generator for each in one.slices), default=0.0)
        yield (
            str(one.candidate), profile_of(one.candidate), round(one.rps),
            round(min(rates)), round(max(rates)), _p99(one), round(one.memory_mb),
            f"{one.quality:.0%}", f"{busy:.0%}", "; ".join(filter(None, marks)),
        )  # fmt: skip


def verdict(done: Tuned) -> Iterator[str]:
    """What came of it, a line each."""
    what = "1 / p99" if done.demands.is_open else "answers a second"
    for one in done.compared:
        yield (
            f"{one.candidate} beside the shipped settings, in turns: {what} "
            f"{_shown(one.ratio)} times, p99 {_shown(one.p99_ms)} ms against "
            f"{_shown(one.shipped_p99_ms)} ms{of_few(one.requests)}: {one.why}"
        )
    if done.calm:
        ours, theirs = done.calm["winner"], done.calm["shipped"]
        yield (
            f"requests at a rate of {ours.rps:,.0f} a second, in turns: p99 "
            f"{_p99(ours)} ms against {_p99(theirs)} ms"
        )
    if done.busy > _BUSY_SHARE * done.cores:
        yield (
            f"other programs used {done.busy:.1f} of {done.cores} cores at the start: figures are "
            "noisy, and lower than on a machine of its own"
        )
    if any(one.slices and of_few(one.requests) for one in done.measured):
        yield (
            "p99 of fewer than 100 requests (of ...) is of the slowest of them: a slice of "
            f"{done.slice_s:.3g} s has no more at this load"
        )
    if done.seconds > _OVERRUN * 60 * done.minutes:
        yield (
            f"it took {done.seconds:.0f} s, and --minutes {done.minutes:g} are "
            f"{60 * done.minutes:.0f} s: servers took longer than before"
        )
    if done.winner is None:
        yield f"{done.verdict.reason}; {done.archive} is unchanged"
    else:
        signed = done.archive.with_name(f"{done.archive.name}.sig").exists()
        yield f"{done.archive} has the settings {done.winner.candidate}{'; sign it again' * signed}"


def _p99(one: Measured | LoadSlice) -> str:
    return f"{in_ms(one.p99_ms)}{of_few(one.requests)}"


def _shown(one: SureInterval) -> str:
    return f"{one.median:.3g} ({one.low:.3g} to {one.high:.3g})"


def not_tried(search: Search, source: TunedArchive, settings: TuneSettings) -> Iterator[str]:
    """What was not tried, a sentence each."""
    left = len(search.untried())
    if left:
        count = left + len(search.seen) + len(search.ruled_out)
        expected = "the model of the machine expects less of them"
        yield f"{left} of {count} candidates: {'the time was over' if search.is_over else expected}"
    for reason in dict.fromkeys(search.ruled_out.values()):
        yield f"candidates ruled out by others: {reason}"
    for name, why in source.variants.left_out.items():
        yield f"variant {name}: {why}"
    if settings.run is None:
        yield "other variants of the model: --run names the run folder that has them"
    for host in HOSTS:
        if host not in settings.host:
            yield f"the address {host}: --host {host}"
    if DIRECT in settings.host:
        yield "delays of batches at the direct address, where nothing waits for a batch to fill"
    yield f"more than {BATCHES[-1]} requests of a call, threads of more than twice the cores"
    yield "other paths, queries and forms of requests: all are sent to /predictions/NAME"
    yield "accelerators and other providers, Ray, other machines"


def draw(done: Tuned, path: Path) -> None:
    """Answers a second against p99, memory by size, the front as a line."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = [one for one in done.measured if one.slices]
    with mpl.rc_context({"font.size": 9, "text.color": _INK, "axes.labelcolor": _INK}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots()
        _draw_points(axes, done, shown)
        able = front([one for one in shown if not done.demands.objection(one)])
        rates, tails = [one.rps for one in able], [one.p99_ms for one in able]
        axes.plot(rates, tails, color=_CHOSEN, zorder=1, label="front")
        limit = f"limit: {done.demands.p99_ms:g} ms"
        axes.axhline(done.demands.p99_ms, color=_LIMIT, linewidth=1, linestyle="--", label=limit)
        axes.set(yscale="log", xlabel="answers a second", ylabel="p99, ms")
        axes.set_xlim(0, 1.2 * max((one.rps for one in shown), default=0.0) or 1.0)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(color="#e9ecef", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        title = f"{done.archive.stem}, {done.load}: size is memory; hollow: beyond a limit"
        axes.set_title(title, loc="left", fontsize=10, parse_math=False)
        figure.savefig(path, dpi=110, format="png", metadata={"Software": None})


def _draw_points(axes: Any, done: Tuned, shown: Sequence[Measured]) -> None:  # noqa: ANN401  matplotlib's stubs leave it open
    most = max((one.memory_mb for one in shown), default=0.0) or 1.0
    for one in shown:
        is_able = not done.demands.objection(one)
        color = _CHOSEN if is_able else _OTHER
        size = _LARGEST * one.memory_mb / most
        axes.scatter(
            one.rps, one.p99_ms, s=size, color=color if is_able else "none", edgecolors=color,
            alpha=0.6, zorder=2,
        )  # fmt: skip
        name = _name(done, one)
        if name:
            text = f"{name}\n{one.candidate}\n{one.memory_mb:.0f} MB"
            axes.annotate(
                text, (one.rps, one.p99_ms), (0, 14), textcoords="offset points", ha="center",
                fontsize=8, parse_math=False,
            )  # fmt: skip


def _name(done: Tuned, one: Measured) -> str:
    if done.winner and one.candidate == done.winner.candidate:
        return "winner"
    return "shipped" if one.candidate == done.shipped else ""
