"""The commands. What each needs is imported inside it, so that --help is instant."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

import marship
from marship import console
from marship.errors import UsageError
from marship.export import ExportSettings
from marship.optimize import OptimizeSettings
from marship.package import PackageSettings
from marship.server import ServeSettings
from marship.settings import flags

app = typer.Typer(
    name="marship",
    help="Take a PyTorch model to a fast, safe, managed endpoint on TorchServe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Home = Annotated[
    Path | None, typer.Option(help="the server's folder; else MARSHIP_HOME, else .marship here")
]
ModelName = Annotated[str, typer.Argument(help="the model's name on the server")]
Version = Annotated[str | None, typer.Option(help="the version; the default one if left out")]
MODEL_STEPS = "From a trained model to an archive"
SERVER_STEPS = "The server"
MODELS_ON_SERVER = "Models on the server"


def _version(show: bool) -> None:
    if show:
        console.out.print(f"marship {marship.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show stack traces")] = False,
) -> None:
    """Take a PyTorch model to a fast, safe, managed endpoint on TorchServe."""
    del version, debug  # the first acts by itself, the second is read by console.run


@app.command(rich_help_panel=MODEL_STEPS)
@flags(ExportSettings)
def export(
    source: Annotated[
        str, typer.Argument(help="a run folder, or module:function that builds the model")
    ],
    settings: ExportSettings,
    weights: Annotated[Path | None, typer.Option(help="a state dict, .pt or .safetensors")] = None,
    example: Annotated[Path | None, typer.Option(help="an npz with the inputs by name")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder to write")] = None,
) -> None:
    """Convert a model to ONNX and prove that it answers as PyTorch does."""
    from marship import export as step
    from marship import tables

    if ":" in source and not Path(source).is_dir():
        if example is None:
            raise UsageError("--example must name an npz with the model's inputs, got none.")
        done = step.export_model(
            source, example=example, settings=settings, weights=weights, out=out
        )
    else:
        done = step.export_run(Path(source), settings)
    tables.show_export(done)


@app.command(rich_help_panel=MODEL_STEPS)
@flags(OptimizeSettings)
def optimize(
    run_dir: Annotated[Path, typer.Argument(help="a run folder with an exported model")],
    settings: OptimizeSettings,
) -> None:
    """Build optimized variants, measure them, and choose one."""
    from marship.optimize import optimize_run

    optimize_run(run_dir, settings)


@app.command(rich_help_panel=MODEL_STEPS)
@flags(PackageSettings)
def package(
    source: Annotated[Path, typer.Argument(help="a run folder, or any ONNX file")],
    settings: PackageSettings,
) -> None:
    """Pack a model with its handler and its evidence into a .mar."""
    from marship import package as step

    with console.err.status("packing, and recording golden answers"):
        archive = step.package(source, settings)
    size_mb = archive.stat().st_size / 1e6
    console.out.print(f"{archive}  ({size_mb:.1f} MB)", markup=False, soft_wrap=True)


@app.command(rich_help_panel=MODEL_STEPS)
def inspect(
    archive: Annotated[Path, typer.Argument(help="a .mar file")],
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
) -> None:
    """Print what an archive says about itself; nothing in it is run."""
    from marship import archive as archives
    from marship import tables

    tables.show_archive(archives.read(archive), as_json=as_json)


@app.command(rich_help_panel=MODEL_STEPS)
def configure(
    archive: Annotated[Path, typer.Argument(help="a .mar file")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=VALUE to set, NAME= to go back to the handler's default"),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="a new version, to register beside the one that runs")
    ] = None,
) -> None:
    """Print or change the handler's settings in a .mar; the model in it stays as it is."""
    from marship import configure as step
    from marship import tables

    tables.show_configured(step.configure(archive, options or [], version))


@app.command(rich_help_panel=SERVER_STEPS)
@flags(ServeSettings)
def serve(
    settings: ServeSettings,
    detach: Annotated[bool, typer.Option("--detach", help="return when it answers")] = False,
) -> None:
    """Start TorchServe: in the foreground until Ctrl-C, or detached."""
    from marship import server, tables

    with console.err.status("starting TorchServe") as line:
        started = server.start(
            settings, on_wait=lambda s: line.update(f"starting TorchServe, {s:.0f} s")
        )
    if detach:
        tables.show_server(started.record, started.home)
        return

    def on_hold() -> None:
        tables.show_server(started.record, started.home)
        console.err.print("[dim]Ctrl-C stops it[/]")

    started.hold(on_hold=on_hold)
    console.err.print("stopped")


@app.command(rich_help_panel=SERVER_STEPS)
def stop(home: Home = None) -> None:
    """Stop the server and its workers; nothing of them is left."""
    from marship import server

    with console.err.status("stopping TorchServe"):
        record = server.stop(home)
    console.out.print(f"stopped the server at {record.inference_url}")


@app.command(rich_help_panel=SERVER_STEPS)
def status(home: Home = None) -> None:
    """Show where the server listens, where its files lie, and its models."""
    from marship import server, tables
    from marship.torchserve.home import Home as Folder
    from marship.torchserve.home import default_home

    record = server.status(home)
    tables.show_server(record, Folder((home or default_home()).absolute()))
    with _client(home) as client:
        tables.show_models(client.models())


@app.command(rich_help_panel=SERVER_STEPS)
def logs(
    home: Home = None,
    lines: Annotated[int, typer.Option(min=1, help="of each log, the last so many")] = 20,
) -> None:
    """Print the last lines of the server's and the workers' logs."""
    from marship import server

    for path in server.log_files(home):
        console.err.print(f"[bold]{path}[/]")
        for line in path.read_text(errors="replace").splitlines()[-lines:]:
            console.out.print(line, markup=False, soft_wrap=True)


@app.command(rich_help_panel=MODELS_ON_SERVER)
def register(
    archive: Annotated[str, typer.Argument(help="a file name in the server's model store")],
    home: Home = None,
    name: Annotated[str | None, typer.Option(help="the archive's name if left out")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="the archive's own setting if left out")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="latency or throughput; the archive's if left out")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="for all workers to be ready")] = 180,
) -> None:
    """Register an archive and wait until every wanted worker is ready."""
    from marship import tables

    file = archive if archive.endswith(".mar") else f"{archive}.mar"
    with _client(home) as client, _waiting(f"registering {file}") as on_wait:
        model = client.register(
            file,
            name=name,
            workers=workers,
            profile=profile,
            timeout_s=timeout_s,
            on_wait=on_wait,
        )
    tables.show_status(model)


@app.command(rich_help_panel=MODELS_ON_SERVER)
def models(home: Home = None) -> None:
    """List all models with their versions and workers."""
    from marship import tables

    with _client(home) as client:
        tables.show_models(client.models())


@app.command(rich_help_panel=MODELS_ON_SERVER)
def describe(name: ModelName, home: Home = None, version: Version = None) -> None:
    """Show a model's settings and workers; --version all shows every version."""
    from marship import tables

    with _client(home) as client:
        for model in client.describe(name, version):
            tables.show_status(model)


@app.command(rich_help_panel=MODELS_ON_SERVER)
def scale(
    name: ModelName,
    workers: Annotated[int, typer.Argument(min=0, help="how many there shall be")],
    home: Home = None,
    version: Version = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="for all workers to be ready")] = 180,
) -> None:
    """Set the number of a model's workers and wait until they are there."""
    from marship import tables

    with _client(home) as client, _waiting(f"scaling {name} to {workers}") as on_wait:
        model = client.scale(name, workers, version=version, timeout_s=timeout_s, on_wait=on_wait)
    tables.show_status(model)


@app.command(rich_help_panel=MODELS_ON_SERVER)
def set_default(
    name: ModelName,
    version: Annotated[str, typer.Argument(help="the version that shall answer")],
    home: Home = None,
) -> None:
    """Make a version the one that answers where none is named."""
    with _client(home) as client:
        client.set_default(name, version)
    console.out.print(f"{name} {version} is the default")


@app.command(rich_help_panel=MODELS_ON_SERVER)
def unregister(name: ModelName, home: Home = None, version: Version = None) -> None:
    """Remove a version and end its workers."""
    with _client(home) as client:
        client.unregister(name, version)
    console.out.print(f"removed {name}{f' {version}' if version else ''}")


@app.command(rich_help_panel=MODELS_ON_SERVER)
def predict(
    name: ModelName,
    source: Annotated[
        list[str] | None, typer.Argument(help="files, folders, or - for standard input")
    ] = None,
    json_text: Annotated[str | None, typer.Option("--json", help="the request itself")] = None,
    home: Home = None,
    version: Version = None,
    content_type: Annotated[str | None, typer.Option(help="if the file's name lies")] = None,
    forms: Annotated[
        list[str] | None,
        typer.Option("--as", help="json, or what was said: txt, srt, vtt; repeatable for many"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="many answers: .csv, or whole ones .jsonl; one: .json .txt .srt .vtt"),
    ] = None,
    suffix: Annotated[
        list[str] | None, typer.Option(help="what to take of folders, such as .jpg; repeatable")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(min=1, help="requests at a time; else by workers and batches")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="forget earlier answers")] = False,
) -> None:
    """Ask a model. One file: print the answer. More, or a folder: a table and a CSV, resumable."""
    from marship import tables
    from marship.predict import Run, ask_all, single, sources, transcripts
    from marship.predict.screen import Screen

    places, forms = source or [], forms or []
    transcripts.check(forms)
    if not (sources.is_many(places) or sources.is_table(out)):
        if suffix or in_flight or again:
            raise UsageError(
                "--suffix, --in-flight and --again must come with a folder, several files or "
                "a table as --out, got one request."
            )
        form = single.form_of(forms, out)
        body, kind = sources.read_one(places, json_text)
        one = single.Single(name, body, content_type or kind, version, form, out)
        answer = single.ask(one, home)
        if form is None:
            tables.show_answer(answer)
        return
    if json_text is not None:
        raise UsageError("--json must come with one request, got several files.")
    out = out or sources.default_out(places)
    sources.check_out(out, places)
    files = sources.find(places, suffix or ())
    beside = transcripts.Transcripts.beside(out, places, forms) if forms else None
    run = Run(name, files, out, version, content_type, in_flight, again, beside)
    with Screen(run) as screen:
        done = ask_all(run, home, screen)
    tables.show_predictions(done, run)
    if done.failed:
        raise typer.Exit(1)


def _client(home: Path | None) -> "marship.client.Client":
    from marship.client import Client

    return Client(home)


@contextmanager
def _waiting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A status line with the workers that are ready so far."""
    with console.err.status(what) as line:

        def update(ready: int, wanted: int) -> None:
            line.update(f"{what}: {ready} of {wanted} workers ready")

        yield update


def main() -> None:
    """The console script."""
    console.run(app)
