"""Human-readable tables of models, servers and archives."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.table import Table

from marship import console

if TYPE_CHECKING:
    from marship.client.clients import Model, ModelStatus
    from marship.contract import Contract
    from marship.engines.home import Home, ServerRecord
    from marship.exporting.step import Exported
    from marship.operate.autoscale.record import ScalingState
    from marship.operate.check import Checked
    from marship.operate.state import Change
    from marship.optimizing.step import Optimized
    from marship.packaging.configure import Configured
    from marship.trust.archive import Archive

SHOWN_SECTIONS, SHOWN_FACTS, SHOWN_NAME, SHOWN_BODY, SHOWN_LABELS = 50, 1000, 200, 300, 10


def facts(rows: Iterable[tuple[str, object]], title: str | None = None) -> None:
    """Print names and values in two columns; empty values are left out."""
    table = Table(box=None, show_header=False, title=title, title_justify="left", pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, "", (), [], {}):
            table.add_row(text_of(name), text_of(value))
    _print(table)


def grid(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers stand to the right."""
    rows = [list(row) for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(header):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(text_of(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(text_of, row))
    _print(table)


def _print(table: Table) -> None:
    """Print a table; in a file or a pipe without the blanks that fill its last column."""
    if console.out.is_terminal:
        console.out.print(table)
        return
    for line in console.out.render_lines(table, pad=False):
        console.out.file.write("".join(segment.text for segment in line).rstrip() + "\n")


def text_of(value: object) -> str:
    """A value as a cell shows it, without markup of its own."""
    from rich.markup import escape

    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def show_export(done: "Exported") -> None:
    """An export, and its differences from PyTorch."""
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
    from marship.optimizing.report import closeness, figures, remarks, verdicts

    if done.trial is None:
        text = f"{done.run_dir / 'optimize.json'} is up to date; --again optimizes anew."
        console.out.print(text, markup=False, soft_wrap=True)
        return
    trial, choice = done.trial, done.trial.choice
    is_narrow = console.out.is_terminal
    console.out.print(figures(trial.variants, choice.chosen, trial.rule, is_narrow=is_narrow))
    for line in remarks(trial.variants):
        console.out.print(line, style="dim", markup=False, soft_wrap=True)
    if trial.remark is not None:
        console.out.print(closeness(trial.variants))
    console.out.print(verdicts(choice))
    if trial.remark is not None:
        console.out.print(trial.remark, markup=False, soft_wrap=True)
    console.out.print(f"{choice.chosen} is chosen: {choice.why}.", markup=False, soft_wrap=True)


def show_contract(contract: "Contract") -> None:
    """A contract."""
    bounds = (
        f"{axis} {contract.size_rule(axis)}" for axis in {**contract.bounds, **contract.steps}
    )
    specs = (*contract.inputs, *contract.outputs)
    facts(
        [
            *(("input", spec) for spec in contract.inputs),
            *(("output", spec) for spec in contract.outputs),
            ("sizes", ", ".join(bounds)),
            ("values", ", ".join(_ranges(contract))),
            *((f"type of {s.name}", f"{s.narrow} in the file") for s in specs if s.narrow),
            ("may be missing", ", ".join(s.missing_in for s in contract.inputs if s.takes_missing)),
            *((f"classes of {s.name}", _names(s.labels)) for s in contract.outputs if s.labels),
            ("batched along", contract.batch_axis or "nothing: requests run alone"),
            ("tolerance", contract.tolerance),
            ("opset", contract.opset),
            ("SHA-256", contract.digest),
            *(("custom operators", library) for library in contract.libraries),
        ]
    )


def _names(labels: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(labels) - SHOWN_LABELS
    return ", ".join(labels[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")


def _ranges(contract: "Contract") -> Iterator[str]:
    """The values of what indexes a table."""
    for spec in contract.inputs:
        if spec.value_range is not None:
            yield "{} {} to {}".format(spec.name, *spec.value_range)
        for column in spec.column_ranges:
            yield f"{spec.column(column.axis, column.place)} {column.low} to {column.high}"


def show_server(record: "ServerRecord", home: "Home") -> None:
    """Where a server listens and where its files lie."""
    acceptor = record.acceptor
    gone = "" if acceptor is None or acceptor.is_alive() else " (not running: restart the server)"
    facts(
        [
            ("inference", record.inference_url),
            ("direct", record.direct_url and f"{record.direct_url}{gone}"),
            ("gRPC", record.grpc_address and f"{record.grpc_address}{gone}"),
            ("management", record.management_url),
            ("metrics", f"{record.prometheus_url or record.metrics_url}/metrics"),
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


def show_scaling(states: "Sequence[ScalingState]") -> None:
    """What autoscaling decided; nothing where it does not run."""
    if states:
        grid(
            ("autoscaling", "version", "ready", "wanted", "bounds", "because"),
            (
                (s.name, s.version, s.ready, s.wanted, f"{s.least} to {s.most}", s.reason)
                for s in states
            ),
        )


def note_joining_ended(models: Sequence["Model"], figures: str) -> None:
    """Say which versions run requests alone by now; `figures` are those of the metrics port."""
    from marship.engines.metrics import joining_ended

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
            ("native code", ", ".join(archive.plain.native_code)),
        ]
    )
    if archive.contract is not None:
        _section("contract")
        show_contract(archive.contract)
    for name, contract in archive.graphs.items():
        _section(f"graph {name}"[:SHOWN_NAME])
        show_contract(contract)
    _show_section("model-config.yaml", archive.config)
    for name, value in islice(archive.evidence.items(), SHOWN_SECTIONS):
        if value:
            _show_section(name, value)
    if (more := len(archive.evidence) - SHOWN_SECTIONS) > 0:
        show_rest(more, "sections; --json shows them")
    _section("files")
    grid(
        ("file", "bytes", "SHA-256"),
        ((m.name, m.size_bytes, m.sha256[:16]) for m in archive.members[:SHOWN_FACTS]),
    )
    if (more := len(archive.members) - SHOWN_FACTS) > 0:
        show_rest(more, "files; --json shows them")


def show_checked(done: "Checked") -> None:
    """The result of `marship check`."""
    cases, call = "none in the archive: its answers were not compared", ""
    if done.golden_cases:
        cases = f"{done.golden_cases} replayed, all within the tolerance"
        call = f"{done.golden_ms:.3f} ms for a golden case, on {done.threads} threads"
    facts(
        [
            ("model", f"{done.name} {done.version}, by {done.handler}"),
            ("golden cases", cases),
            ("golden requests", f"{done.golden_requests} replayed" if done.golden_requests else ""),
            ("load", f"{done.load_s:.2f} s"),
            ("one call", call),
            ("memory", f"{_mb(done.loaded_bytes)} loaded, {_mb(done.peak_bytes)} at most"),
        ]
    )
    if (sample := done.response) is not None:
        facts(
            [
                ("response", f"{sample.status} {sample.content_type}"),
                ("size", f"{sample.size_bytes:,} bytes"),
                ("time", f"{sample.ms:.3f} ms in the worker"),
                ("body", _short(sample.body)),
            ]
        )
        if sample.log:
            _section("the worker's log")
            console.out.print(sample.log, markup=False, highlight=False, soft_wrap=True)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


def _short(body: str) -> str:
    return body if len(body) <= SHOWN_BODY else f"{body[:SHOWN_BODY]}..."


def _show_section(title: str, value: object) -> None:
    """Print a section, limited in length, as it may be untrusted."""
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
        console.out.print(
            "no settings of the handler: its defaults apply. Workers, batches and threads: marship "
            "inspect",
            soft_wrap=True,
        )
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
    console.out.print(f"\n[bold]{text_of(title)}[/]")


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


def show_rest(count: int, what: str = "more") -> None:
    """Print how many more there are, if any."""
    console.out.print(f"[dim]and {count:,} {what}[/]\n" if count > 0 else "")


def narrow_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a line for each row, whatever the terminal's width."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in header:
        table.add_column(text_of(name), no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(text_of, row))
    _print(table)
