"""The host without an engine: what a container runs."""

import logging
from typing import Annotated

import typer

from marship import console
from marship.cli.app import app
from marship.engines.standalone.settings import HostSettings
from marship.settings import flags

PANEL = "The server"


@app.command(rich_help_panel=PANEL)
@flags(HostSettings)
def host(
    settings: HostSettings,
    archives: Annotated[
        list[str], typer.Argument(help="archives, folders of them, or URLs of signed ones")
    ],
) -> None:
    """Serve these archives without TorchServe and Java, as a container does, until SIGTERM."""
    from marship.engines.standalone import host as hosts

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def show(serving: hosts.Serving) -> None:
        names = ", ".join(f"{name} {version}" for name, version in serving.models)
        console.err.print(
            f"serving {names} at {serving.url}, figures at {serving.metrics_url}/metrics",
            soft_wrap=True,
        )

    hosts.run(archives, settings, show)
    console.err.print("stopped")
