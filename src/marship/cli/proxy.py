"""The proxy: nginx in front of the server."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from marship import console
from marship.cli.app import app, connect
from marship.cli.report import Report, reported
from marship.operate.proxy_settings import ProxySettings
from marship.settings import flags

PANEL = "The server"


@app.command(rich_help_panel=PANEL)
@flags(ProxySettings)
@reported
def proxy(
    settings: ProxySettings,
    names: Annotated[
        list[str] | None, typer.Argument(help="models to expose; else all registered")
    ] = None,
) -> Report:
    """Write nginx.conf: TLS, limits, and only the predictions of these models."""
    from marship.cli import tables
    from marship.operate import proxy

    done = proxy.write(settings, names or _registered(settings.home))
    if names:
        _advise(settings.home, names)
    rows = [
        ("written", done.config),
        ("listens at", settings.address),
        ("passes on to", done.backend),
        ("models", " ".join(done.models)),
        ("certificate", done.certificate),
        ("start it", f"nginx -p {settings.out.absolute()} -c {proxy.CONFIG_FILE}"),
    ]
    fields = {**asdict(done), "listen": settings.address}
    return Report(fields, lambda: tables.facts(rows))


def _registered(home: Path | None) -> list[str]:
    with connect(home) as client:
        return [model.name for model in client.models()]


def _advise(home: Path | None, names: Sequence[str]) -> None:
    """Warn about unknown models, which may be misspelt or registered later."""
    from marship.errors import NotRunningError
    from marship.operate import proxy

    unknown, store = proxy.without_archive(home, names)
    registered: list[str] = []
    if unknown:
        with contextlib.suppress(NotRunningError):
            registered = _registered(home)
    if strange := [name for name in unknown if name not in registered]:
        console.err.print(
            f"[yellow]advice:[/] no registered model, and no archive in {store}, is named "
            f"{' or '.join(strange)}. Register it, or write the name otherwise.",
            soft_wrap=True,
        )
