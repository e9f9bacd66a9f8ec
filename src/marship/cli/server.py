"""The server: start, stop, status, logs."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marship import console
from marship.cli import completion, models
from marship.cli.address import on_server
from marship.cli.app import Home, app, connect
from marship.cli.report import Report, model_fields, reported, server_fields
from marship.engines.torchserve.settings import ServeSettings
from marship.settings import flags

if TYPE_CHECKING:
    from marship.client.address import Address
    from marship.engines.ray.head import Cluster
    from marship.engines.torchserve.server import Server
    from marship.operate.logs import LogEntry

PANEL = "The server"


@app.command(rich_help_panel=PANEL)
@flags(ServeSettings)
def serve(
    settings: ServeSettings,
    detach: Annotated[bool, typer.Option("--detach", help="return when it responds")] = False,
    state: Annotated[
        Path | None, typer.Option(help="models to register when it responds: see marship apply")
    ] = None,
    reload: Annotated[
        Path | None,
        typer.Option(help="a run folder or ONNX file: pack it and roll over as files are saved"),
    ] = None,
    reload_package: Annotated[
        Path | None, typer.Option(help="with --reload: a TOML file as `package --settings` takes")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON, and all else to standard error")
    ] = False,
) -> None:
    """Start TorchServe, or Ray Serve: in the foreground until Ctrl-C, or detached."""
    from marship.cli import reloading, tables
    from marship.operate import statefile

    followed = reloading.asked(
        reload, reload_package, detach=detach, profile=settings.profile, trust=settings.trust
    )
    if followed and settings.config is None:  # packing would make it, but the server starts first
        (settings.model_store or Path("model_store")).mkdir(parents=True, exist_ok=True)
    if state is not None:
        statefile.read(state)  # its errors are reported before anything starts
    started = _start_ray(settings) if settings.engine == "ray" else _start(settings)
    if state is not None:
        with console.as_notes(as_json):
            _apply(started, state)

    def show() -> None:
        if as_json:
            console.write_json(server_fields(started.record, started.home))
            console.out.file.flush()
        else:
            tables.show_server(started.record, started.home)

    if detach:
        show()
        return

    with reloading.followed(started.home.path, followed) as follow:

        def on_ready() -> None:
            show()
            console.err.print("[dim]Ctrl-C stops it[/]")
            follow()

        started.run_until_signal(on_ready=on_ready)
    console.err.print("stopped")


def _start(settings: ServeSettings) -> "Server":
    from marship.engines.torchserve import production, server
    from marship.engines.torchserve.engine import TorchServe

    settings.check_engine()
    given, settings = settings, server.remembering(settings)
    if settings.trust != given.trust:
        console.err.print(
            f"archives must be signed with a key in {settings.trust}, as at the last start; "
            "--no-trust ends that",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    with console.err.status("starting TorchServe") as line:
        started = TorchServe.start(
            settings, on_wait=lambda s: line.update(f"starting TorchServe, {s:.0f} s")
        )
    if settings.profile:
        for advice in production.advice(settings.trust):
            console.err.print(f"[yellow]advice:[/] {advice}", soft_wrap=True)
    return started


def _start_ray(settings: ServeSettings) -> "Cluster":
    from marship.engines import default
    from marship.engines.ray.settings import RaySettings

    given = RaySettings(**settings.of_ray())
    with console.err.status("starting Ray") as line:
        started: Cluster = default.named("ray").start(
            given, on_wait=lambda s: line.update(f"starting Ray, {s:.0f} s")
        )
    return started


def _apply(started: "Server | Cluster", state: Path) -> None:
    """Register the declared models; on failure the server is stopped."""
    from marship.cli import steps

    try:
        with connect(started.home.path) as client:
            steps.bring(client, state)
    except BaseException:
        started.stop()
        raise


@app.command(rich_help_panel=PANEL)
def stop(home: Home = None) -> None:
    """Stop the server and its workers."""
    from marship.engines import default

    with console.err.status("stopping"):
        record = default.of_home(home).stop(home)
    if record.engine == "ray" and not record.pid:  # of another home, or another program
        console.out.print(f"left the cluster at {record.cluster}, which goes on")
        return
    console.out.print(f"stopped the server at {record.inference_url}")


@app.command(rich_help_panel=PANEL)
@on_server("management")
@reported
def status(*, address: "Address") -> Report:
    """Show where the server listens, where its files lie, and its models."""
    from marship.cli import tables, trials
    from marship.operate.autoscale import record as scaling
    from marship.operate.trial.run import running

    with address.client() as client:
        record = client.home.require_running() if client.is_local else None
        found = models.known(client)
        states = scaling.read(client.home) if client.is_local else []
        tried = running(client)

    def show() -> None:
        if record is not None:
            tables.show_server(record, client.home)
        tables.show_models(found)
        tables.show_scaling(states)
        trials.show(tried)

    fields = {
        "server": record and server_fields(record, client.home),
        "models": list(map(model_fields, found)),
        "autoscale": list(map(asdict, states)),
        "trials": trials.state_fields(tried),
    }
    return Report(fields, show)


@app.command(rich_help_panel=PANEL)
def logs(
    home: Home = None,
    lines: Annotated[int, typer.Option(min=1, help="the last so many entries")] = 20,
    model: Annotated[
        str | None,
        typer.Option(help="only what is about this model", autocompletion=completion.models),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on with what is logged, until Ctrl-C")
    ] = False,
) -> None:
    """Print what the server, its workers and the acceptor have logged, in the order of time."""
    from marship.engines import default
    from marship.operate.logs import Logs

    def show(entry: "LogEntry") -> None:
        console.out.print(entry.text, markup=False, highlight=False, soft_wrap=True)

    found = Logs(default.of_home(home).log_files(home), model)
    entries = found.new()[-lines:]
    for entry in entries:
        show(entry)
    if not (entries or follow):
        about = f" about {model}" if model else ""
        console.err.print(
            f"no entries{about}. Names of models: marship models; another server: --home",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if follow:
        with suppress(KeyboardInterrupt):
            for entry in found.follow():
                show(entry)
