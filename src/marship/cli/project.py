"""A folder of one's own to begin with."""

from pathlib import Path
from typing import Annotated

import typer

from marship import console
from marship.cli.app import app
from marship.cli.archives import PANEL
from marship.cli.report import Report, reported

KINDS = ("regression", "image", "speech", "recommend", "onnx")
"""Those of packaging/project.py, which a test compares: its imports are not for --help."""


@app.command(rich_help_panel=PANEL)
@reported
def new(
    folder: Annotated[Path, typer.Argument(help="empty, or not there yet; names the model")],
    kind: Annotated[
        str,
        typer.Option("--from", help=", ".join(KINDS), autocompletion=lambda: list(KINDS)),
    ],
) -> Report:
    """Begin a folder with a recipe, a handler, a test and a README to go on from."""
    from marship.packaging import project

    files = project.new(folder, kind)

    def show() -> None:
        for file in files:
            console.out.print(file, markup=False, soft_wrap=True)
        console.err.print(f"go on with {folder / 'README.md'}", markup=False, soft_wrap=True)

    return Report({"folder": folder, "kind": kind, "files": files}, show)
