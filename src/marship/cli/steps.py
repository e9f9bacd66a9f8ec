"""The progress display of rollouts and applied changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.status import Status

from marship import console
from marship.client.clients import Client
from marship.operate.rollout import RolloutListener
from marship.operate.trial.judgement import summary
from marship.operate.trial.run import TrialListener, TriedShare

if TYPE_CHECKING:
    from marship.engines.trials import TrialFigures
    from marship.operate.state import Change


class Steps(RolloutListener):
    """Prints a line for each finished step; a status line for the current one."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._step = ""

    def on_lock_wait(self, details: str) -> None:
        """Show what is waited for."""
        console.err.print(details, markup=False, soft_wrap=True)

    def on_step(self, step: str) -> None:
        """Show the current step."""
        self._step = step
        self._status.update(escape(step))

    def on_wait(self, ready: int, wanted: int) -> None:
        """Show how many workers are ready."""
        self._status.update(f"{escape(self._step)}: {ready} of {wanted} workers ready")

    def on_done(self, step: str, details: str) -> None:
        """Print a step's result."""
        console.err.print(f"[bold]{step:<11}[/]", end="")
        console.err.print(details, markup=False, soft_wrap=True)


class TrialSteps(Steps, TrialListener):
    """Prints a line for each share that was tried; a status line for the current one."""

    def on_figures(self, share: float, figures: "TrialFigures", left_s: float) -> None:
        """Show how far it is."""
        text = f"{share:.4g} of requests, {figures.new.requests} so far, {left_s:.0f} s left"
        self._status.update(escape(text))

    def on_tried(self, step: TriedShare) -> None:
        """Print what came of it."""
        self.on_done(f"{100 * step.share:.4g} %", summary(step.figures))
        for example in step.figures.examples:
            console.err.print(f"{'':<11}{example}", markup=False, soft_wrap=True)


@contextmanager
def tried(title: str) -> Iterator[TrialSteps]:
    """Shares that are tried, on stderr."""
    with console.err.status(title) as status:
        yield TrialSteps(status)


@contextmanager
def shown(title: str) -> Iterator[Steps]:
    """Steps on stderr."""
    with console.err.status(title) as status:
        yield Steps(status)


def bring(
    client: Client, file: Path, *, prune: bool = False, dry_run: bool = False
) -> "list[Change]":
    """Print a state file's changes, and apply them unless it is a dry run."""
    from marship.cli import tables
    from marship.operate import state, statefile

    entries = statefile.read(file)
    if dry_run:
        changes = state.plan(client, entries, prune=prune)
        tables.show_changes(changes)
        return changes
    with (
        shown(f"applying {file}") as watcher,
        state.planned(client, entries, prune=prune, watcher=watcher) as changes,
    ):
        tables.show_changes(changes)
        state.carry_out(client, changes, watcher)
    return changes
