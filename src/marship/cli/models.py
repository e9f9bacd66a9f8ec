"""Models on the server: register, scale, predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marship import console
from marship.cli.address import on_server
from marship.cli.app import ModelName, StoredArchive, Version, app, waiting
from marship.cli.report import Report, change_fields, model_fields, reported, status_fields
from marship.errors import UsageError

if TYPE_CHECKING:
    from marship.client import Client
    from marship.client.address import Address
    from marship.client.clients import Model
    from marship.predict import Run
    from marship.predict.ray.job import Job
    from marship.predict.single import Single

PANEL = "Models on the server"
Places = Annotated[
    list[str] | None, typer.Argument(help="files, folders, their URLs, or - for standard input")
]
Forms = Annotated[
    list[str] | None,
    typer.Option("--as", help="json, or a transcript: txt, srt, vtt; repeatable for many files"),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="many files: .csv, or .jsonl with whole responses; one: .json .txt .srt .vtt"
    ),
]
Suffixes = Annotated[
    list[str] | None,
    typer.Option(help="suffix of files to take from folders, such as .jpg; repeatable"),
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--address", help="HOST:PORT of the Ray cluster that runs an archive; else the home's"
    ),
]
TrustFolder = Annotated[
    Path | None,
    typer.Option(help="public keys that the archive must be signed with; else the home's"),
]


@app.command(rich_help_panel=PANEL)
@on_server("management")
@reported
def register(
    archive: StoredArchive,
    name: Annotated[str | None, typer.Option(help="the archive's own if left out")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="the archive's own setting if left out")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="latency or throughput; the archive's if left out")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="for all workers to be ready")] = 180,
    *,
    address: "Address",
) -> Report:
    """Register an archive and wait until every wanted worker is ready."""
    from marship.cli import tables

    file = archive if archive.endswith(".mar") else f"{archive}.mar"
    with address.client() as client, waiting(f"registering {file}") as on_wait:
        model = client.register(
            file,
            name=name,
            workers=workers,
            profile=profile,
            timeout_s=timeout_s,
            on_wait=on_wait,
        )
    return Report(status_fields(model), lambda: tables.show_status(model))


@app.command(rich_help_panel=PANEL)
@on_server("management")
@reported
def models(*, address: "Address") -> Report:
    """List all models with their versions and workers."""
    from marship.cli import tables

    with address.client() as client:
        found = known(client)
    return Report({"models": list(map(model_fields, found))}, lambda: tables.show_models(found))


def known(client: "Client") -> "list[Model]":
    """All models; what their workers have to say of themselves goes to standard error."""
    from marship.cli import tables

    found = client.models()
    if client.has("metrics"):
        tables.note_joining_ended(found, client.metrics())
    return found


@app.command(rich_help_panel=PANEL)
@on_server("management")
@reported
def describe(name: ModelName, version: Version = None, *, address: "Address") -> Report:
    """Show a model's settings and workers; --version all shows every version."""
    from marship.cli import tables, trials
    from marship.operate.trial.run import running

    with address.client() as client:
        found = client.describe(name, version)
        tried = [state for state in running(client) if state.order.model == name]

    def show() -> None:
        for status in found:
            tables.show_status(status)
        trials.show(tried)

    fields = {"versions": list(map(status_fields, found)), "trials": trials.state_fields(tried)}
    return Report(fields, show)


@app.command(rich_help_panel=PANEL)
@on_server("management")
@reported
def scale(
    name: ModelName,
    workers: Annotated[int, typer.Argument(min=0, help="number of workers")],
    version: Version = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="for all workers to be ready")] = 180,
    *,
    address: "Address",
) -> Report:
    """Set the number of a model's workers and wait until they are ready."""
    from marship.cli import tables

    with address.client() as client, waiting(f"scaling {name} to {workers}") as on_wait:
        model = client.scale(name, workers, version=version, timeout_s=timeout_s, on_wait=on_wait)
    return Report(status_fields(model), lambda: tables.show_status(model))


@app.command(rich_help_panel=PANEL)
@on_server("management")
def set_default(
    name: ModelName,
    version: Annotated[str, typer.Argument(help="the new default version")],
    *,
    address: "Address",
) -> None:
    """Make a version the default, which serves requests without a version."""
    with address.client() as client:
        client.set_default(name, version)
    console.out.print(f"{name} {version} is the default")


@app.command(rich_help_panel=PANEL)
@on_server("management", needs_both=True)
@reported
def rollout(
    archive: StoredArchive,
    name: Annotated[str | None, typer.Option(help="the archive's own if left out")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="as many as the old version has if left out")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="latency or throughput; as the old one was registered if left out"),
    ] = None,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="leave the old version registered")
    ] = False,
    probe: Annotated[
        Path | None, typer.Option(help="a request that the new version must handle")
    ] = None,
    timeout_s: Annotated[
        float,
        typer.Option(min=1, help="for loading, for waiting for another rollout, for draining"),
    ] = 180,
    *,
    address: "Address",
) -> Report:
    """Roll over to a new version without losing a request; failures are rolled back."""
    from marship.cli import steps
    from marship.operate import rollout as rollouts

    file = archive if archive.endswith(".mar") else f"{archive}.mar"
    with address.client() as client, steps.shown(f"rolling out {file}") as watcher:
        done = rollouts.rollout(
            client,
            file,
            name=name,
            workers=workers,
            profile=profile,
            keep_old=keep_old,
            timeout_s=timeout_s,
            probe=probe,
            watcher=watcher,
        )
    kept = f"; {done.old.version} is kept" if done.is_old_kept else ""
    text = f"{done.new.name} {done.new.version} is the default{kept}"
    fields = {
        "new": status_fields(done.new),
        "old_version": done.old.version,
        "is_old_kept": done.is_old_kept,
    }
    return Report(fields, lambda: console.out.print(text, markup=False))


@app.command(rich_help_panel=PANEL)
@on_server("management", needs_both=True)
@reported
def apply(
    file: Annotated[Path, typer.Argument(help="the declared models, as TOML")],
    prune: Annotated[
        bool, typer.Option("--prune", help="remove versions that the file does not name")
    ] = (False),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the changes")] = False,
    *,
    address: "Address",
) -> Report:
    """Bring the server to a declared set of models, printing the changes first."""
    from marship.cli import steps

    with address.client() as client:
        changes = steps.bring(client, file, prune=prune, dry_run=dry_run)
    return Report(change_fields(changes), lambda: None)


@app.command(rich_help_panel=PANEL)
@on_server("management")
def unregister(name: ModelName, version: Version = None, *, address: "Address") -> None:
    """Unregister a version and stop its workers."""
    with address.client() as client:
        client.unregister(name, version)
    console.out.print(f"unregistered {name}{f' {version}' if version else ''}")


@app.command(rich_help_panel=PANEL)
@on_server("inference")
def predict(
    name: ModelName,
    source: Places = None,
    json_text: Annotated[str | None, typer.Option("--json", help="the request itself")] = None,
    version: Version = None,
    content_type: Annotated[
        str | None, typer.Option(help="override the guessed media type")
    ] = None,
    forms: Forms = None,
    out: Out = None,
    suffix: Suffixes = None,
    in_flight: Annotated[
        int | None, typer.Option(min=1, help="concurrent requests; else by workers and batches")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="discard earlier responses")] = False,
    cluster: ClusterAddress = None,
    trust: TrustFolder = None,
    *,
    address: "Address",
) -> None:
    """Get predictions. One file: print the response. More, or a folder: a resumable table.

    With --engine ray and an archive, model.mar, in place of a name the nodes of a Ray cluster read
    and predict the files.
    """
    from marship.predict import Run, single, sources, transcripts

    places, forms = [sources.local_path(place) for place in source or []], forms or []
    transcripts.check(forms)
    job = _job(name, version, cluster, trust, address)
    if job or sources.is_many(places) or sources.is_table(out):
        if json_text is not None:
            raise UsageError("--json must come with one request, got several files.")
        out = out or sources.default_out(places)
        sources.check_out(out, places)
        found = sources.find(places, suffix or ())
        beside = transcripts.Transcripts.beside(out, places, forms) if forms else None
        run = Run(name, found.sources, out, version, content_type, in_flight, again, beside)
        _predict_files(run, found.passed_over, job or address)
        return
    if suffix or in_flight or again:
        raise UsageError(
            "--suffix, --in-flight and --again must come with a folder, several files or "
            "a table as --out, got one request."
        )
    form = single.form_of(forms, out)
    body, kind = sources.read_one(places, json_text)
    _predict_one(single.Single(name, body, content_type or kind, version, form, out), address)


def _predict_one(request: "Single", address: "Address") -> None:
    from marship.cli import responses
    from marship.predict import single

    response = single.predict_one(request, address)
    if request.form is None:
        responses.show_response(response)


def _job(
    name: str, version: str | None, cluster: str | None, trust: Path | None, address: "Address"
) -> "Job | None":
    """The archive that a cluster of Ray runs; None of a model on a server."""
    is_archive = name.endswith(".mar") and address.engine == "ray"
    if not is_archive and (cluster or trust):
        raise UsageError(
            "--address and --trust must come with an archive and --engine ray, got the name of a "
            "model. Name the archive's file, or a model's server with --home or --url."
        )
    if not is_archive:
        return None
    if version:
        raise UsageError("--version must come with a model's name, got an archive, which has one.")
    from marship.predict.ray.job import Job

    return Job(archive=Path(name), address=cluster, home=address.home, trust=trust)


def _predict_files(run: "Run", passed_over: Sequence[str], by: "Address | Job") -> None:
    from marship.cli import responses
    from marship.client.address import Address
    from marship.predict import predict_files
    from marship.predict.screen import Screen

    with Screen(run) as screen:
        if isinstance(by, Address):
            done = predict_files(run, by, screen)
        else:
            from marship.predict.ray import predict_archive

            done = predict_archive(run, by, screen)
    responses.show_predictions(done, run, passed_over)
    if done.failed:
        raise typer.Exit(1)
