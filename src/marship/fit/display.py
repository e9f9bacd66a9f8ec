"""The progress display of a training run, and its signal handlers."""

import signal
import sys
from collections.abc import Mapping
from types import FrameType

from accelerate import Accelerator

from marship import console
from marship.fit import run
from marship.fit.run import CHECKPOINT_FILE, RunSettings

TERMINATED = 128 + signal.SIGTERM
_LOG_LINES = 10


class Display:
    """Shows steps and epochs while it is entered; SIGTERM then raises SystemExit.

    Args:
        settings: The run's settings.
        steps: Optimizer steps of an epoch.
        accelerator: Its main process prints.
    """

    def __init__(self, settings: RunSettings, steps: int, accelerator: Accelerator) -> None:
        self.settings, self.steps = settings, steps
        self.is_main: bool = accelerator.is_main_process
        self.bar = console.progress()
        self.bar.disable = not (self.is_main and console.err.is_terminal)
        self.row = self.bar.add_task("training", total=settings.epochs * steps)
        self.metrics = ""
        self.events = run.open_events(settings) if self.is_main else None

    def __enter__(self) -> "Display":
        self.old = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, _terminate)
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.stop()
        signal.signal(signal.SIGTERM, self.old)
        if self.events is not None:
            self.events.close()
        if kind in (KeyboardInterrupt, SystemExit) and self.is_main:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once
            console.err.print(
                f"stopped; {self.settings.run_dir / CHECKPOINT_FILE} holds the last finished "
                "epoch, --resume continues.",
                soft_wrap=True,
            )

    def skip(self, epochs: int) -> None:
        """Show epochs that were trained before."""
        self.bar.update(self.row, completed=epochs * self.steps)

    def step(self, epoch: int, loss: float) -> None:
        """Show an optimizer step."""
        self.bar.update(self.row, advance=1, description=self._text(epoch, loss))

    def _text(self, epoch: int, loss: float) -> str:
        return f"epoch {epoch}/{self.settings.epochs} loss {loss:.4g}{self.metrics}"

    def epoch(self, row: Mapping[str, float]) -> None:
        """Show an epoch; without a terminal a line is printed for some epochs."""
        shown = {k: v for k, v in row.items() if k not in ("epoch", "learning_rate", "seconds")}
        self.metrics = "".join(f" {k} {v:.4g}" for k, v in shown.items() if k != "loss")
        if self.events is not None:
            for name, value in row.items():
                if name != "epoch":
                    self.events.add_scalar(name, value, int(row["epoch"]))
        number = int(row["epoch"])
        text = self._text(number, row["loss"])
        self.bar.update(self.row, description=text)
        if self.is_main and not console.err.is_terminal and self._prints(number):
            console.err.print(text, soft_wrap=True)

    def _prints(self, epoch: int) -> bool:
        every = max(1, self.settings.epochs // _LOG_LINES)
        return epoch % every == 0 or epoch == self.settings.epochs


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
    sys.exit(TERMINATED)
