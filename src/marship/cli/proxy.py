"""The proxy: nginx in front of the server."""

from typing import Annotated

import typer

from marship.cli.app import app, connect
from marship.proxy import ProxySettings
from marship.settings import flags

PANEL = "The server"


@app.command(rich_help_panel=PANEL)
@flags(ProxySettings)
def proxy(
    settings: ProxySettings,
    names: Annotated[
        list[str] | None, typer.Argument(help="models that others may ask; else all registered")
    ] = None,
) -> None:
    """Write nginx.conf: TLS, limits, and these models' predictions alone."""
    from marship import proxy, tables

    if not names:
        with connect(settings.home) as client:
            names = [model.name for model in client.models()]
    done = proxy.write(settings, names)
    tables.facts(
        [
            ("written", done.config),
            ("listens at", settings.listen),
            ("passes on to", done.backend),
            ("models", " ".join(done.models)),
            ("certificate", done.certificate),
            ("start it", f"nginx -p {settings.out.absolute()} -c {proxy.CONFIG_FILE}"),
        ]
    )
