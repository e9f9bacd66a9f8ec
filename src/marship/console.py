"""What a person sees: progress, tables, and one clear line for each error."""

import io
import json
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.status import Status
from rich.text import Text
from typer.exceptions import TyperException

from marship import storage
from marship.errors import MarshipError, UsageError

_WHOLE_RATE = 10
_UNLIMITED = 1 << 20
INTERRUPTED = 128 + signal.SIGINT
_KEPT = {
    "\t",
    "\n",
    "\u200c",
    "\u200d",
}  # the last two join letters, and spell words of many scripts
_MOST_MESSAGE = 4000


def seen(text: str) -> str:
    """The text with what steers a terminal as codes: names and messages may be a stranger's.

    That is all of Unicode's categories C (control, format, surrogate, private, not assigned), Zl
    and Zp, as JSON escapes it, but for tabs, ends of lines, and the joiners U+200C and U+200D.
    """
    if text.isprintable():  # which no character of these categories is
        return text
    return "".join(_coded(letter) if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    category = unicodedata.category(letter)
    return (category[0] == "C" or category in {"Zl", "Zp"}) and letter not in _KEPT


def _coded(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class _Console(Console):
    """Prints no control characters but its own, and no spinner that the terminal cannot show."""

    def render_str(self, text: str, **settings: Any) -> Text:  # noqa: ANN401  Rich's own
        """A text, before its width is measured."""
        return super().render_str(seen(text), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """All else, such as JSON and what stands beside a spinner."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=seen(segment.text))

    def status(self, status: RenderableType, **settings: Any) -> Status:  # noqa: ANN401  Rich's
        """A line with a spinner."""
        return super().status(status, **{"spinner": spinner(self), **settings})


class _Output(_Console):
    """Standard output: in a file or a pipe no line is wrapped, and no word is cut."""

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's size; else as wide as it takes."""
        known = super().size
        return known if self.is_terminal else known._replace(width=_UNLIMITED)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size


out = _Output(highlight=False)
err = _Console(stderr=True, highlight=False)


def spinner(console: Console) -> str:
    """The name of a spinner that the console's encoding can show."""
    return "line" if console.options.ascii_only else "dots"


def write(text: str) -> None:
    """Write a text to standard output: as it is to a file or a pipe, as `seen` to a terminal.

    Raises:
        UsageError: A file or a pipe whose encoding lacks a letter of it.
    """
    if not out.is_terminal:
        try:
            text.encode(out.encoding)
        except UnicodeEncodeError as error:
            raise UsageError(
                f"standard output must be in an encoding that has every letter of the text, got "
                f"{out.encoding} and U+{ord(text[error.start]):04X}. Set PYTHONIOENCODING=utf-8."
            ) from error
    out.file.write(seen(text) if out.is_terminal else text)


def write_json(value: object) -> None:
    """Write a JSON value to standard output, with escapes for what cannot be shown there."""
    is_ascii = not out.encoding.lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=is_ascii, default=str)
    out.file.write(f"{seen(text)}\n")


@contextmanager
def as_notes(wanted: bool) -> Iterator[None]:
    """Print to standard error what else goes to standard output, if that is wanted."""
    before, out.stderr = out.stderr, wanted or out.stderr
    try:
        yield
    finally:
        out.stderr = before


class _RateColumn(ProgressColumn):
    """How many a second, of late."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The rate, as soon as there is one."""
        rate = task.finished_speed or task.speed
        if rate is None:
            return Text("")
        number = f"{rate:,.0f}" if rate >= _WHOLE_RATE else f"{rate:.1f}"
        return Text(f"{number} {self._unit}/s", style="progress.data.speed")


def progress(unit: str | None = None) -> Progress:
    """A progress bar on stderr: description, bar, count, elapsed and remaining time.

    Args:
        unit: What is counted; with it stands the rate.
    """
    return Progress(
        SpinnerColumn(spinner(err)),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None if unit else 40),
        MofNCompleteColumn(),
        *([_RateColumn(unit)] if unit else []),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


def fail(error: MarshipError) -> NoReturn:
    """Print the error as one line and leave: 2 for usage, 1 for any other failure.

    Notes, such as the last lines of a dead worker's log, follow below it, dimmed.
    """
    message = " ".join(str(error).split())
    if len(message) > _MOST_MESSAGE:  # it may repeat a stranger's words
        message = f"{message[:_MOST_MESSAGE]} ... ({len(message):,} characters)"
    err.print(f"[bold red]error[/] [dim]({error.code})[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        err.print(note, markup=False, soft_wrap=True, style="dim")
    sys.exit(2 if isinstance(error, UsageError) else 1)


def run(app: Callable[..., Any]) -> None:
    """Call a Typer app; errors become one line unless `--debug` (or MARSHIP_DEBUG=1) is given.

    Ctrl-C leaves with 130 and SIGTERM with 143, after what was begun is undone; a second
    Ctrl-C cuts the undoing short.
    """
    debug = "--debug" in sys.argv or os.environ.get("MARSHIP_DEBUG") == "1"
    sys.argv = [word for word in sys.argv if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name, or a message, may hold any letter
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        code = app(standalone_mode=False)
    except (MarshipError, TyperException, OSError) as error:
        if debug:
            raise
        fail(_as_own(error))
    if code == INTERRUPTED:
        err.print("interrupted")
    if isinstance(code, int):
        sys.exit(code)


def _as_own(error: MarshipError | TyperException | OSError) -> MarshipError:
    if isinstance(error, MarshipError):
        return error
    if isinstance(error, OSError):
        if (unusable := storage.as_usage(error)) is not None:
            return unusable
        return MarshipError(f"{error.filename or 'the system'}: {error.strerror or error}.")
    if not error.format_message():
        sys.exit(error.exit_code)  # no command was given: its help stands on the screen
    return UsageError(f"{error.format_message().rstrip('.')}. See the flag --help.")


def run_recipe(main: Callable[..., Any]) -> None:
    """Run a recipe's `main` (already decorated with `settings.flags`) as a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
