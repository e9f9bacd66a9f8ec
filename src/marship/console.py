"""What a person sees: progress, tables, and one clear line for each error."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from marship.errors import MarshipError, UsageError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

INTERRUPTED = 128 + signal.SIGINT


def progress() -> Progress:
    """A progress bar on stderr: description, bar, count, elapsed and remaining time."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=False,
    )


def fail(error: MarshipError) -> NoReturn:
    """Print the error as one line and leave: 2 for usage, 1 for any other failure."""
    message = " ".join(str(error).split())
    err.print(f"[bold red]error[/] [dim]({error.code})[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    sys.exit(2 if isinstance(error, UsageError) else 1)


def run(app: Callable[..., Any], *, debug: bool | None = None) -> None:
    """Call a Typer app; errors become one line unless `--debug` (or MARSHIP_DEBUG=1) is given.

    Ctrl-C leaves with 130. A second Ctrl-C, while the first is being honoured, ends the
    process at once.
    """
    if debug is None:
        debug = "--debug" in sys.argv or os.environ.get("MARSHIP_DEBUG") == "1"
        sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        app()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if debug:
            raise
        err.print("interrupted")
        sys.exit(INTERRUPTED)
    except MarshipError as error:
        if debug:
            raise
        fail(error)
    except OSError as error:
        if debug:
            raise
        fail(MarshipError(f"{error.filename or 'the system'}: {error.strerror or error}."))


def run_recipe(main: Callable[..., Any]) -> None:
    """Run a recipe's `main` (already decorated with `settings.flags`) as a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(lambda: app(standalone_mode=True))
