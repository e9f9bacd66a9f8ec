"""Models, servers, archives and answers as a person reads them in a terminal."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.table import Table

from marship import console

if TYPE_CHECKING:
    from marship.client.clients import Model, ModelStatus
    from marship.contract import Contract
    from marship.engines.torchserve.home import Home, ServerRecord
    from marship.exporting.step import Exported
    from marship.operate.check import Checked
    from marship.operate.state import Change
    from marship.optimizing.step import Optimized
    from marship.packaging.configure import Configured
    from marship.predict import Run
    from marship.predict.outcome import Outcome
    from marship.predict.rows import Row
    from marship.trust.archive import Archive

SHOWN_NUMBERS = 1000
WHOLE_RATE = 10
SAID = ("text", "segments", "timings_ms")
SHOWN_SECTIONS, SHOWN_FACTS, SHOWN_NAME, SHOWN_BODY = 50, 1000, 200, 300
SHOWN_FAILURES, SHOWN_COUNTS, SHOWN_CELLS, SHOWN_NAMES = 5, 10, 4, 3


def facts(rows: Iterable[tuple[str, object]], title: str | None = None) -> None:
    """Print names and values in two columns; empty values are left out."""
    table = Table(box=None, show_header=False, title=title, title_justify="left", pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, "", (), [], {}):
            table.add_row(_text(name), _text(value))
    _print(table)


def grid(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers stand to the right."""
    rows = [list(row) for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(header):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(_text(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    _print(table)


def _print(table: Table) -> None:
    """Print a table; in a file or a pipe without the blanks that fill its last column."""
    if console.out.is_terminal:
        console.out.print(table)
        return
    for line in console.out.render_lines(table, pad=False):
        console.out.file.write("".join(segment.text for segment in line).rstrip() + "\n")


def _text(value: object) -> str:
    from rich.markup import escape

    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def show_export(done: "Exported") -> None:
    """What was exported, and how near it is to PyTorch."""
    show_contract(done.contract)
    difference = done.report["largest_difference"]
    rows = done.report["rows_alone_and_together"]
    facts(
        [
            ("alone since", rows["reason"] if isinstance(rows, dict) else None),
            ("golden cases", done.report["golden"]),
            ("parity", f"{len(done.report['cases'])} cases against PyTorch"),
            ("difference", f"{difference['absolute']:.2g} absolute at most"),
            ("written to", done.run_dir),
        ]
    )


def show_optimized(done: "Optimized") -> None:
    """The variants, and why each was or was not chosen."""
    from marship.optimizing.report import figures, remarks, verdicts

    if done.trial is None:
        text = f"{done.run_dir / 'optimize.json'} is up to date; --again optimizes anew."
        console.out.print(text, markup=False, soft_wrap=True)
        return
    trial, choice = done.trial, done.trial.choice
    console.out.print(figures(trial.variants, choice.chosen, trial.rule))
    for line in remarks(trial.variants):
        console.out.print(line, style="dim", markup=False, soft_wrap=True)
    console.out.print(verdicts(choice))
    console.out.print(f"{choice.chosen} is chosen: {choice.why}.", markup=False, soft_wrap=True)


def show_contract(contract: "Contract") -> None:
    """What a model takes and gives."""
    bounds = (f"{axis} {low} to {high or 'any'}" for axis, (low, high) in contract.bounds.items())
    facts(
        [
            *(("input", spec) for spec in contract.inputs),
            *(("output", spec) for spec in contract.outputs),
            ("sizes", ", ".join(bounds)),
            ("values", ", ".join(_ranges(contract))),
            ("batched along", contract.batch_axis or "nothing: requests run alone"),
            ("tolerance", contract.tolerance),
            ("opset", contract.opset),
            ("SHA-256", contract.digest),
        ]
    )


def _ranges(contract: "Contract") -> Iterator[str]:
    """The values of what indexes a table."""
    for spec in contract.inputs:
        if spec.value_range is not None:
            yield "{} {} to {}".format(spec.name, *spec.value_range)
        for column in spec.column_ranges:
            yield f"{spec.column(column.axis, column.place)} {column.low} to {column.high}"


def show_server(record: "ServerRecord", home: "Home") -> None:
    """Where a server listens and where its files lie."""
    facts(
        [
            ("inference", record.inference_url),
            ("management", record.management_url),
            ("metrics", f"{record.metrics_url}/metrics"),
            ("model store", record.model_store),
            ("trusted keys", record.trust),
            ("seal key", record.seal_key),
            ("tokens", home.key_file),
            ("logs", home.logs),
            ("process", record.pid),
        ]
    )


def show_models(models: Sequence["Model"]) -> None:
    """All models, a line for each version."""
    if not models:
        console.out.print("no models; register one with: marship register NAME.mar")
        return
    grid(
        ("model", "version", "default", "ready", "workers", "batch", "archive"),
        (
            (
                status.name,
                status.version,
                "yes" if status.version == model.default_version else "",
                status.ready,
                len(status.workers),
                status.batch_size,
                status.archive,
            )
            for model in models
            for status in model.versions
        ),
    )


def note_joining_ended(models: Sequence["Model"], figures: str) -> None:
    """Say which versions run requests alone by now; `figures` are those of the metrics port."""
    from marship.engines.torchserve.status import joining_ended

    known = {(status.name, status.version) for model in models for status in model.versions}
    for name, version in sorted(joining_ended(figures) & known):
        console.err.print(
            f"{name} {version} runs requests alone: a joined call gave something else than each "
            "alone. The reason is in the worker's log, see: marship logs",
            markup=False,
            soft_wrap=True,
        )


def show_changes(changes: Sequence["Change"]) -> None:
    """What will be done to the models, a line for each."""
    if changes:
        rows = ((c.kind, c.name, c.version, c.detail) for c in changes)
        grid(("change", "model", "version", ""), rows)
    if all(change.kind == "keep" for change in changes):
        console.out.print("nothing to do")


def show_status(model: "ModelStatus") -> None:
    """One version of a model."""
    pids = ", ".join(
        f"{worker.pid} ({'ready' if worker.ready else 'loading'})" for worker in model.workers
    )
    facts(
        [
            ("model", f"{model.name} {model.version}, from {model.archive}"),
            ("workers", f"{model.ready} ready of {model.min_workers} to {model.max_workers}"),
            ("processes", pids),
            ("batch", f"{model.batch_size} at most, {model.max_batch_delay_ms} ms to fill"),
        ]
    )


def show_archive(archive: "Archive") -> None:
    """Everything that an archive says about itself."""
    facts(
        [
            ("model", f"{archive.name} {archive.version}"),
            ("handler", archive.handler),
            ("created by", archive.manifest.get("archiverVersion")),
            ("sealed", archive.key_name and ", ".join(archive.sealed)),
            ("golden cases", archive.evidence.get("golden")),
            ("opened by", archive.key_name and f"the key {archive.key_name}"),
        ]
    )
    if archive.contract is not None:
        _section("contract")
        show_contract(archive.contract)
    _show_section("model-config.yaml", archive.config)
    for name, value in islice(archive.evidence.items(), SHOWN_SECTIONS):
        if value:
            _show_section(name, value)
    if (more := len(archive.evidence) - SHOWN_SECTIONS) > 0:
        _show_rest(more, "sections; --json shows them")
    _section("files")
    grid(
        ("file", "bytes", "SHA-256"),
        ((m.name, m.size_bytes, m.sha256[:16]) for m in archive.members[:SHOWN_FACTS]),
    )
    if (more := len(archive.members) - SHOWN_FACTS) > 0:
        _show_rest(more, "files; --json shows them")


def show_checked(done: "Checked") -> None:
    """What loading an archive came to."""
    facts(
        [
            ("model", f"{done.name} {done.version}, by {done.handler}"),
            ("golden cases", f"{done.golden_cases} replayed, all within the tolerance"),
            ("load", f"{done.load_s:.2f} s"),
            ("one call", f"{done.golden_ms:.3f} ms for a golden case, on {done.threads} threads"),
            ("memory", f"{_mb(done.loaded_bytes)} loaded, {_mb(done.peak_bytes)} at most"),
        ]
    )
    if (answered := done.response) is not None:
        facts(
            [
                ("response", f"{answered.status} {answered.content_type}"),
                ("size", f"{answered.size_bytes:,} bytes"),
                ("time", f"{answered.ms:.3f} ms in the worker"),
                ("body", _short(answered.body)),
            ]
        )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


def _short(body: str) -> str:
    return body if len(body) <= SHOWN_BODY else f"{body[:SHOWN_BODY]}..."


def _show_section(title: str, value: object) -> None:
    """A title and what stands below it, as far as a person reads: it may be a stranger's."""
    _section(title[:SHOWN_NAME])
    rows = list(islice(_flat(value), SHOWN_FACTS + 1)) if isinstance(value, dict) else [("", value)]
    facts(rows[:SHOWN_FACTS])
    if len(rows) > SHOWN_FACTS:
        console.out.print("[dim]and more; --json shows all[/]")


def show_configured(done: "Configured") -> None:
    """The handler's settings in an archive, and what to do where they have changed."""
    archive = done.archive
    file, name, version = archive.path.name, archive.name, archive.version
    settings = [(key, _changed(done, key)) for key in sorted({*done.before, *done.after})]
    facts([("archive", archive.path), ("model", f"{name} {version}"), *settings])
    if not settings:
        console.out.print("no settings: the handler's own defaults hold")
    if not done.changed:
        return
    beside = version != done.version_before
    undo = f"marship unregister {name} --version {version} && "
    then = f" && marship set-default {name} {version}"
    console.out.print(
        "a server keeps what it has registered until this is taken in:\n  "
        f"{'' if beside else undo}marship register {file}{then if beside else ''}",
        markup=False,
        soft_wrap=True,
    )


def _changed(done: "Configured", name: str) -> str:
    was, now = (values.get(name, "the handler's default") for values in (done.before, done.after))
    return f"{now}" if was == now else f"{now} (was: {was})"


def _section(title: str) -> None:
    console.out.print(f"\n[bold]{_text(title)}[/]")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested mappings as dotted names; a list of mappings, such as a history, by its length.

    Long names are cut, since each level below repeats them.
    """
    for key, item in value.items():
        name = f"{prefix}{key}"[:SHOWN_NAME]
        if isinstance(item, dict):
            yield from _flat(item, f"{name}.")
        elif not isinstance(item, list) or not any(isinstance(entry, dict) for entry in item):
            yield name, item
        elif all(isinstance(entry, dict) and "name" in entry for entry in item):
            for entry in item:
                rest = {k: v for k, v in entry.items() if k != "name"}
                yield from _flat(rest, f"{name}.{str(entry['name'])[:SHOWN_NAME]}.")
        else:
            yield name, f"{len(item)} entries; --json shows them"


def show_answer(answer: Any) -> None:  # noqa: ANN401  any that a model answers
    """A model's answer: a list of records as a table, anything else as JSON.

    Of a transcript, whose segments were printed as they came, the rest.
    """
    import numpy as np

    from marship.predict.transcripts import has_segments

    if isinstance(answer, bytes):
        console.write(answer.decode(errors="replace"))
        return
    if isinstance(answer, np.ndarray):
        console.out.print(np.array2string(answer, threshold=SHOWN_NUMBERS))
        return
    if has_segments(answer):
        rest = [(name, value) for name, value in answer.items() if name not in SAID]
        facts([*rest, ("said", "" if answer["segments"] else "nothing")])
        return
    records = _records(answer)
    if not records:
        console.out.print_json(json.dumps(answer))
        return
    grid(tuple(records[0]), (tuple(record.values()) for record in records))


def _records(answer: object) -> list[dict[str, object]]:
    """The rows of an answer such as `{"items": [{"title": ..., "score": ...}]}`."""
    if not isinstance(answer, dict) or len(answer) != 1:
        return []
    (rows,) = answer.values()
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return []
    return rows if len({tuple(row) for row in rows}) == 1 else []


def show_predictions(done: "Outcome", run: "Run", passed_over: Sequence[str]) -> None:
    """The first answers, how many there are of each kind, what failed, and where all stands."""
    if done.first:
        names = list(next(iter(done.first.values())))[:SHOWN_CELLS]
        rows = (
            [file, *(texts.get(name, "") for name in names)] for file, texts in done.first.items()
        )
        _narrow_grid(("file", *names), rows)
        _show_rest(done.answered - len(done.first))
    for name, counts in done.counts.items():
        if done.answered - len(done.first) > 1:  # else the table tells as much
            grid((name, "files"), counts.most_common(SHOWN_COUNTS))
            _show_rest(len(counts) - SHOWN_COUNTS)
    _show_failures(done.failed)
    rate = done.asked / done.seconds
    digits = 0 if rate >= WHOLE_RATE else 1
    speed = f"{done.asked:,} asked in {done.seconds:.1f} s, {rate:,.{digits}f} a second"
    before = f"{done.answered_before:,} answered before"
    requests = (done.asked and speed, done.answered_before and before)
    facts(
        [
            ("files", f"{done.answered:,} answered, {len(done.failed):,} failed"),
            ("passed over", _some(passed_over)),
            ("requests", ", ".join(text for text in requests if text)),
            ("written to", run.out),
            ("transcripts", run.transcripts and run.transcripts.folder),
        ]
    )


def _some(names: Sequence[str]) -> str:
    """How many there are, and the first of them by name."""
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f"{len(names):,}: {', '.join(names[:SHOWN_NAMES])}{more}" if names else ""


def _show_rest(count: int, what: str = "more") -> None:
    console.out.print(f"[dim]and {count:,} {what}[/]\n" if count > 0 else "")


def _show_failures(failed: Sequence["Row"]) -> None:
    """The first file of each reason, and how many share it."""
    reasons: dict[str, list[Row]] = {}
    for row in failed:
        reasons.setdefault(row.error, []).append(row)
    for error, rows in list(reasons.items())[:SHOWN_FAILURES]:
        others = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
        text = f"[red]failed[/] {_text(rows[0].file)}{others}  [dim]{_text(error)}[/]"
        console.out.print(text, soft_wrap=True)
    if reasons:
        _show_rest(len(reasons) - SHOWN_FAILURES, "other reasons")


def _narrow_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a line for each row, whatever the terminal's width."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in header:
        table.add_column(_text(name), no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(_text, row))
    _print(table)
