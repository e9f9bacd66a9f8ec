"""Human-readable responses to one request, and summaries of many."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from marship import console
from marship.cli.tables import facts, grid, narrow_grid, show_rest, text_of

if TYPE_CHECKING:
    from marship.predict import Run
    from marship.predict.outcome import Outcome
    from marship.predict.rows import Row

SHOWN_NUMBERS = 1000
WHOLE_RATE = 10
SAID = ("text", "segments", "timings_ms")
SHOWN_FAILURES, SHOWN_COUNTS, SHOWN_CELLS, SHOWN_NAMES = 5, 10, 4, 3
SHOWN_SIGNS = 200


def show_response(response: Any) -> None:  # noqa: ANN401  any that a model answers
    """Print a response: a list of records as a table, anything else as JSON.

    Of a transcript, whose segments were printed as they came, the rest.
    """
    from marship.predict.transcripts import has_segments

    if isinstance(response, bytes):
        console.write(response.decode(errors="replace"))
        return
    if isinstance(response, np.ndarray):
        console.out.print(np.array2string(response, threshold=SHOWN_NUMBERS))
        return
    if has_segments(response):
        rest = [(name, value) for name, value in response.items() if name not in SAID]
        facts([*rest, ("said", "" if response["segments"] else "nothing")])
        return
    records = _records(response)
    if not records:
        console.out.print_json(json.dumps(response))
        return
    grid(tuple(records[0]), (tuple(map(_cell, record.values())) for record in records))


def _records(response: object) -> list[dict[str, object]]:
    """The rows of a response such as `{"items": [{"title": ..., "score": ...}]}`."""
    if not isinstance(response, dict) or len(response) != 1:
        return []
    (rows,) = response.values()
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return []
    return rows if len({tuple(row) for row in rows}) == 1 else []


def _cell(value: object) -> object:
    """A value of a record; of records within it, such as reasons, only texts and fractions."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return value
    told = ([v for v in one.values() if isinstance(v, str | float)] for one in value)
    return "; ".join(" ".join(map(str, values)) for values in told)


def show_predictions(done: "Outcome", run: "Run", passed_over: Sequence[str]) -> None:
    """Print the first responses, counts, failures, and the output file."""
    if done.first:
        names = list(next(iter(done.first.values())))[:SHOWN_CELLS]
        rows = (
            [file, *(_short(texts.get(name, "")) for name in names)]
            for file, texts in done.first.items()
        )
        narrow_grid(("file", *map(_short, names)), rows)
        show_rest(done.predicted - len(done.first))
    for name, counts in done.counts.items():
        if done.predicted - len(done.first) > 1:  # else the table tells as much
            common = counts.most_common(SHOWN_COUNTS)
            grid((name, "files"), [(_short(text), count) for text, count in common])
            show_rest(len(counts) - SHOWN_COUNTS)
    _show_failures(done.failed)
    rate = done.sent / done.seconds
    digits = 0 if rate >= WHOLE_RATE else 1
    speed = f"{done.sent:,} sent in {done.seconds:.1f} s, {rate:,.{digits}f} a second"
    before = f"{done.predicted_before:,} predicted before"
    requests = (done.sent and speed, done.predicted_before and before)
    facts(
        [
            ("files", f"{done.predicted:,} predicted, {len(done.failed):,} failed"),
            ("passed over", _some(passed_over)),
            ("requests", ", ".join(text for text in requests if text)),
            ("written to", run.out),
            ("transcripts", run.transcripts and run.transcripts.folder),
        ]
    )


def _short(text: str) -> str:
    """The beginning of a long text: in a pipe a table is as wide as its longest one."""
    return text if len(text) <= SHOWN_SIGNS else f"{text[:SHOWN_SIGNS]}..."


def _some(names: Sequence[str]) -> str:
    """How many there are, and the first of them by name."""
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f"{len(names):,}: {', '.join(names[:SHOWN_NAMES])}{more}" if names else ""


def _show_failures(failed: Sequence["Row"]) -> None:
    """The first file of each reason, and how many share it."""
    reasons: dict[str, list[Row]] = {}
    for row in failed:
        reasons.setdefault(row.error, []).append(row)
    for error, rows in list(reasons.items())[:SHOWN_FAILURES]:
        others = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
        text = f"[red]failed[/] {text_of(rows[0].file)}{others}  [dim]{text_of(error)}[/]"
        console.out.print(text, soft_wrap=True)
    if reasons:
        show_rest(len(reasons) - SHOWN_FAILURES, "other reasons")
