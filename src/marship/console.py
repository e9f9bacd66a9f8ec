"""Terminal output: progress, tables, and one line for each error."""

import errno
import io
import json
import logging
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
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
from rich.table import Column
from rich.text import Text
from typer.exceptions import TyperException

from marship import storage
from marship.errors import MarshipError, StorageError, UsageError

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
    """The text with terminal control characters escaped: names and messages may be untrusted.

    Escaped as in JSON are Unicode's categories C (control, format, surrogate, private use,
    unassigned), Zl and Zp, except tabs, line ends, and the joiners U+200C and U+200D.
    """
    if text.isprintable():  # no character of these categories is
        return text
    return "".join(_coded(letter) if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    category = unicodedata.category(letter)
    return (category[0] == "C" or category in {"Zl", "Zp"}) and letter not in _KEPT


def _coded(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class _Console(Console):
    """Escapes control characters, and uses only spinners that the terminal's encoding has."""

    def render_str(self, text: str, **settings: Any) -> Text:  # noqa: ANN401  Rich's own
        """Escape a text before its width is measured."""
        return super().render_str(seen(text), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Escape all other output, such as JSON and the text beside a spinner."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=seen(segment.text))

    def status(self, status: RenderableType, **settings: Any) -> Status:  # noqa: ANN401  Rich's
        """A line with a spinner."""
        return super().status(status, **{"spinner": spinner(self), **settings})


class _Output(_Console):
    """Standard output; into a file or a pipe, lines are neither wrapped nor truncated."""

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's size; for a file or a pipe, wide enough for any line."""
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
    """Write a text to standard output: unchanged to a file or a pipe, escaped to a terminal.

    Raises:
        UsageError: The encoding of the file or pipe lacks a character of the text.
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
    """Write a JSON value to standard output, escaping what its encoding lacks."""
    is_ascii = not out.encoding.lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=is_ascii, default=str)
    out.file.write(f"{seen(text)}\n")


@contextmanager
def as_notes(wanted: bool) -> Iterator[None]:
    """If `wanted`, print to standard error what otherwise goes to standard output."""
    before, out.stderr = out.stderr, wanted or out.stderr
    try:
        yield
    finally:
        out.stderr = before


class _Muted:
    """The levels up to which some thread wants no log now, and what held before all of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.levels: list[int] = []
        self.before = logging.NOTSET


_muted = _Muted()


@contextmanager
def muted(level: int) -> Iterator[None]:
    """Keep what libraries log up to a level off the terminal, in all threads.

    Threads may be in it at once, and leave in any order: the highest level counts.

    Args:
        level: One of `logging`'s, as `logging.WARNING`; what is above is still logged.

    Example:
        >>> with muted(logging.WARNING):
        ...     logging.warning("not seen")
    """
    with _muted.lock:
        if not _muted.levels:
            _muted.before = logging.root.manager.disable
        _muted.levels.append(level)
        logging.disable(max(_muted.before, *_muted.levels))
    try:
        yield
    finally:
        with _muted.lock:
            _muted.levels.remove(level)
            logging.disable(max([_muted.before, *_muted.levels]))


class _RateColumn(ProgressColumn):
    """The recent rate per second."""

    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The rate, once it is known."""
        rate = task.finished_speed or task.speed
        if rate is None:
            return Text("")
        number = f"{rate:,.0f}" if rate >= _WHOLE_RATE else f"{rate:.1f}"
        return Text(f"{number} {self._unit}/s", style="progress.data.speed")


def progress(unit: str | None = None) -> Progress:
    """A progress bar on stderr: description, bar, count, elapsed and remaining time.

    Args:
        unit: What is counted; if given, the rate is shown.
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


def tell(error: MarshipError | OSError) -> None:
    """Print the error as one line.

    Notes, such as the last lines of a dead worker's log, follow below it, dimmed.
    """
    error = _as_own(error) if isinstance(error, OSError) else error
    message = " ".join(str(error).split())
    if len(message) > _MOST_MESSAGE:  # it may quote untrusted text
        message = f"{message[:_MOST_MESSAGE]} ... ({len(message):,} characters)"
    err.print(f"[bold red]error[/] [dim]({error.code})[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        err.print(note, markup=False, soft_wrap=True, style="dim")


def fail(error: MarshipError) -> NoReturn:
    """Print the error and exit: 2 for usage errors, 1 for any other failure."""
    tell(error)
    sys.exit(2 if isinstance(error, UsageError) else 1)


def run(app: Callable[..., Any]) -> None:
    """Call a Typer app; errors become one line unless `--debug` (or MARSHIP_DEBUG=1) is given.

    Ctrl-C exits with 130 and SIGTERM with 143, after cleanup; a second Ctrl-C interrupts the
    cleanup. A terminal that is closed (SIGHUP) ends it as SIGTERM does, unless `nohup` started it.
    """
    debug = "--debug" in sys.argv or os.environ.get("MARSHIP_DEBUG") == "1"
    sys.argv = [word for word in sys.argv if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and messages may hold any character
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        code = app(standalone_mode=False)
        out.file.flush()  # here an error still becomes one line
    except KeyboardInterrupt:  # before a command has begun
        code = INTERRUPTED
    except (MarshipError, TyperException, OSError) as error:
        if debug:
            raise
        fail(_as_own(error))
    if code == INTERRUPTED:
        err.print("interrupted")
    if isinstance(code, int):
        sys.exit(code)


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    """Pass SIGHUP on as SIGTERM, which commands that end in an order of their own handle, too."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell sends one, and so does the kernel
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:  # the terminal is gone: what cleanup says must not end cleanup
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
    signal.raise_signal(signal.SIGTERM)


def _as_own(error: MarshipError | TyperException | OSError) -> MarshipError:
    if isinstance(error, MarshipError):
        return error
    if isinstance(error, OSError):
        if (unusable := storage.as_usage(error)) is not None:
            return unusable
        if error.errno == errno.ENOSPC and error.filename is None:
            return StorageError(
                "the output must fit on the device that it is written to, got: no space left. "
                "Free some, or write it elsewhere."
            )
        return MarshipError(f"{error.filename or 'the system'}: {error.strerror or error}.")
    if not error.format_message():
        sys.exit(error.exit_code)  # no command was given, and the help was printed
    message = error.format_message().rstrip(".")
    unreadable = message.endswith("is not readable")
    return UsageError(
        f"{message}. {'Run as its owner, or name another.' if unreadable else 'See --help.'}"
    )


def run_recipe(main: Callable[..., Any]) -> None:
    """Run a recipe's `main` (already decorated with `settings.flags`) as a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
