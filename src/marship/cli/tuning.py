"""Settings that serve best on this machine, found by measuring."""

from pathlib import Path
from typing import Annotated

import typer

from marship import console
from marship.cli.app import app
from marship.cli.archives import PANEL
from marship.cli.report import Report, reported
from marship.operate.tune.settings import TuneSettings
from marship.settings import flags


@app.command(rich_help_panel=PANEL)
@flags(TuneSettings)
@reported
def tune(
    archive: Annotated[Path, typer.Argument(help="a .mar file; its handler's code is run")],
    settings: TuneSettings,
    requests: Annotated[
        Path, typer.Option(help="a file with a real request, or a folder of such files")
    ],
) -> Report:
    """Serve an archive in many ways, load each with real requests, and keep the best settings."""
    from marship.cli import tables
    from marship.operate.tune import report, step

    def tell(line: str) -> None:
        console.err.print(line, markup=False, soft_wrap=True, style="dim")

    done = step.tune(archive, requests, settings, tell)

    def show() -> None:
        tables.grid(report.HEADER, report.rows(done))
        for line in (*report.verdict(done), f"picture: {done.folder / report.PICTURE}"):
            console.out.print(line, markup=False, soft_wrap=True)
        console.out.print("not tried:")
        for line in done.not_tried:
            console.out.print(f"- {line}", markup=False, soft_wrap=True)

    return Report(done.fields(), show, is_failure=done.verdict.is_failure)
