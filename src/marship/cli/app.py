"""The command line itself, and what its commands share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marship import console
from marship.cli import completion
from marship.version import VERSION

if TYPE_CHECKING:
    from marship.client import Client

app = typer.Typer(
    name="marship",
    help="Take a PyTorch model to a fast, safe, managed endpoint on TorchServe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Home = Annotated[
    Path | None, typer.Option(help="the server's folder; else MARSHIP_HOME, else .marship here")
]
ModelName = Annotated[
    str,
    typer.Argument(help="the model's name on the server", autocompletion=completion.models),
]
StoredArchive = Annotated[
    str,
    typer.Argument(
        help="a file name in the server's model store", autocompletion=completion.archives
    ),
]
Version = Annotated[str | None, typer.Option(help="the version; the default one if left out")]


def _version(show: bool) -> None:
    if show:
        console.out.print(f"marship {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show stack traces")] = False,
) -> None:
    """Take a PyTorch model to a fast, safe, managed endpoint on TorchServe."""
    del version, debug  # the first acts by itself, the second is read by console.run


def connect(home: Path | None) -> "Client":
    """A client of the server in a folder, whatever addresses the environment holds."""
    from marship.client import Client
    from marship.engines.home import default_home

    return Client(home or default_home())


@contextmanager
def waiting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A status line with the workers that are ready so far."""
    with console.err.status(what) as line:

        def update(ready: int, wanted: int) -> None:
            line.update(f"{what}: {ready} of {wanted} workers ready")

        yield update
