"""Samples of requests."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from marship import console
from marship.cli.app import app
from marship.cli.report import Report, reported

PANEL = "Models on the server"


@app.command(rich_help_panel=PANEL)
@reported
def samples(
    folder: Annotated[Path, typer.Argument(help="the folder of `serve --samples`, or one in it")],
    out: Annotated[Path, typer.Option(help="folder for plain files, below MODEL/VERSION")],
    seal_key: Annotated[
        str | None, typer.Option(help="opens them: file:PATH, env:NAME or command:...")
    ] = None,
) -> Report:
    """Open sampled requests into files: for predict, tune, calibration and examples."""
    from marship.cli import tables
    from marship.operate import samples as opening

    done = opening.open_all(folder, out, seal_key)

    def show() -> None:
        rows = [(one.name, one.version, str(one.files), str(one.folder)) for one in done.versions]
        if rows:
            tables.grid(("model", "version", "files", "folder"), rows)
        for reason in opening.summary(done.refused):
            console.err.print(reason, markup=False, highlight=False, soft_wrap=True)

    fields = {
        "versions": [asdict(one) for one in done.versions],
        "refused": [{"path": path, "reason": reason} for path, reason in done.refused.items()],
    }
    return Report(fields, show, is_failure=bool(done.refused))
