"""The progress display of a run over many files."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from marship import console
from marship.errors import MarshipError
from marship.predict import Run, Watcher
from marship.predict.rows import Row

if TYPE_CHECKING:
    from rich.progress import TaskID


class Screen(Watcher):
    """A progress bar on stderr; an interrupted run prints how to resume.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._bar = console.progress(unit="files")
        self._task: TaskID | None = None
        self._rows = self._failed = self._before = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()
        if error is None or self._task is None:
            return
        if isinstance(error, MarshipError):
            error.add_note(self._kept())
        else:  # Ctrl-C and SIGTERM
            console.err.print(self._kept(), markup=False, soft_wrap=True)

    def on_start(self, waiting: int, done: int, *, is_torn: bool) -> None:
        """Show how many files remain, and how many are done."""
        self._before = done
        if is_torn:
            console.err.print(f"dropped a half-written row from {self._run.out}", soft_wrap=True)
        if done:
            console.err.print(f"{done:,} predicted before, {waiting:,} to send")
        self._task = self._bar.add_task(self._run.model, total=waiting)
        if waiting:
            self._bar.start()

    def on_row(self, row: Row) -> None:
        """Advance the bar."""
        self._rows += 1
        self._failed += not row.has_response
        self._show(f"{self._failed:,} failed" if self._failed else "")

    def on_trouble(self) -> None:
        """Show that the server is waited for."""
        self._show("waiting for the server")

    def _show(self, state: str) -> None:
        if self._task is not None:
            text = f"{self._run.model}  {state}" if state else self._run.model
            self._bar.update(self._task, completed=self._rows, description=text)

    def _kept(self) -> str:
        done = self._before + self._rows - self._failed
        return (
            f"{done:,} of {len(self._run.sources):,} files have their response in {self._run.out}; "
            "the same command goes on from there"
        )
