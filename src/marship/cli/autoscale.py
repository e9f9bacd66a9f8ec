"""Autoscaling: as many workers as the load needs, until it is stopped."""

import logging
import signal
import threading
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from marship import console
from marship.cli.app import Home, app
from marship.operate.autoscale.settings import ScalingSettings
from marship.settings import flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marship.operate.autoscale.record import ScalingState

PANEL = "Models on the server"


@app.command(rich_help_panel=PANEL)
@flags(ScalingSettings)
def autoscale(
    settings: ScalingSettings,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="models; else all whose archives have more than one number of workers"),
    ] = None,
    home: Home = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="serve metrics there, on 127.0.0.1")
    ] = None,
) -> None:
    """Keep as many workers as the load needs, until Ctrl-C or SIGTERM."""
    from marship.engines.addresses import Target
    from marship.engines.home import default_home
    from marship.operate.autoscale.exposition import Exposition
    from marship.operate.autoscale.loop import Autoscaler

    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with ExitStack() as held:
        exposition = None
        if metrics_port is not None:
            exposition = held.enter_context(Exposition(metrics_port))
            console.err.print(f"metrics at {exposition.url}", highlight=False)

        def show(states: "Sequence[ScalingState]") -> None:
            if exposition is not None:
                exposition.states = states

        Autoscaler(Target(home or default_home()), names or (), settings, show).run(ended)
