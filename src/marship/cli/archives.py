"""From a trained model to an archive."""

import json
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from marship import console
from marship.cli import private as privates
from marship.cli.app import app
from marship.cli.private import Cards, Private, PrivateFrom
from marship.cli.report import Report, archive_fields, reported
from marship.exporting.settings import ExportSettings
from marship.optimizing.settings import OptimizeSettings
from marship.packaging.settings import PackageSettings
from marship.settings import flags

if TYPE_CHECKING:
    from marship.trust.archive import Archive

PANEL = "From a trained model to an archive"


@app.command(rich_help_panel=PANEL)
@flags(ExportSettings)
@reported
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="a run folder, module:function that builds the model, a model's file "
            "(.pt2, TorchScript), hf:FOLDER with a model of transformers, or timm:NAME"
        ),
    ],
    settings: ExportSettings,
    weights: Annotated[
        Path | None,
        typer.Option(help="a state dict, .pt or .safetensors, or a folder or index of shards"),
    ] = None,
    weights_key: Annotated[
        str | None, typer.Option(help="which to take of several in a file, such as ema")
    ] = None,
    example: Annotated[Path | None, typer.Option(help="an npz with the inputs by name")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder to write")] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="run what a model's file holds, to open it")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(help="of hf:FOLDER, such as text-classification; its architecture's"),
    ] = None,
    private: Private = None,
    private_from: PrivateFrom = None,
) -> Report:
    """Convert a model to ONNX and prove that its outputs match PyTorch's."""
    from marship.cli import tables
    from marship.exporting import step

    privates.check(private, private_from)
    done = step.export(
        source,
        settings,
        example=example,
        weights=weights,
        weights_key=weights_key,
        out=out,
        trust_code=trust_code,
        task=task,
    )
    fields = {
        "run_dir": done.run_dir,
        "is_fresh": done.fresh,
        "contract": json.loads(done.contract.to_json()),
        "parity": done.report,
    }
    if private == "he":
        return privates.compiled(done.run_dir, fields, private_from)
    if private == "mpc":
        return privates.planned(done.run_dir, fields)
    return Report(fields, lambda: tables.show_export(done))


@app.command(rich_help_panel=PANEL)
@flags(OptimizeSettings)
@reported
def optimize(
    source: Annotated[
        Path, typer.Argument(help="a run folder with an exported model, or any ONNX file")
    ],
    settings: OptimizeSettings,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="real inputs of an ONNX file: an npz by input name, a .json with requests, or a "
            "folder of such files; every fourth row is kept back for judging"
        ),
    ] = None,
    heldout: Annotated[
        Path | None, typer.Option(help="other real inputs of an ONNX file, for judging")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="file.py:function that gives metrics of an ONNX file's outputs and targets, "
            "arrays target/NAME in the npz"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder to write")] = None,
) -> Report:
    """Build optimized variants, measure them, and choose one."""
    from marship.cli import tables
    from marship.optimizing import step

    done = step.optimize(
        source, settings, calibration=calibration, heldout=heldout, judge=judge, out=out
    )
    fields = {"run_dir": done.run_dir, "is_fresh": done.fresh, **done.report}
    return Report(fields, lambda: tables.show_optimized(done))


@app.command(rich_help_panel=PANEL)
@flags(PackageSettings)
@reported
def package(
    source: Annotated[Path, typer.Argument(help="a run folder, or any ONNX file")],
    settings: PackageSettings,
    private: Private = None,
    party: Cards = None,
) -> Report:
    """Package a model with its handler and its evidence as a .mar."""
    from marship.packaging import step

    privates.check(private)
    if private == "mpc":
        return privates.shared(source, settings, party)
    if private is not None:
        return _packaged_private(source, settings, private)
    doing = (
        "packing" if source.is_dir() else f"running for at most {settings.limit_s} s, and packing"
    )
    with console.err.status(f"{doing} {escape(source.name)}"):
        archive = step.package(source, settings)
    privates.warn_of_clients(archive)
    return _packaged(archive)


def _packaged_private(source: Path, settings: PackageSettings, kind: str) -> Report:
    from marship.private import step

    with console.err.status(f"packing {escape(source.name)} for encrypted inputs"):
        done = step.package(source, settings, kind)
    beside = {"encoder": done.encoder} if done.encoder else {}
    return _packaged(done.archive, client_file=done.client_file, known=done.known, **beside)


def _packaged(archive: Path, **beside: Path) -> Report:
    """The report of a new archive, and of files beside it by name."""
    from marship.trust import archive as archives

    size_bytes = archive.stat().st_size
    packed = archives.read(archive)
    _warn_of_large_rows(packed)
    lines = [f"{archive}  ({size_bytes / 1e6:.1f} MB)", *map(str, beside.values())]
    fields = {
        "path": archive,
        "name": packed.name,
        "version": packed.version,
        "size_bytes": size_bytes,
        **beside,
    }
    return Report(fields, lambda: console.out.print("\n".join(lines), markup=False, soft_wrap=True))


def _warn_of_large_rows(archive: "Archive") -> None:
    from marship.serving.formats import extent

    contract = archive.contract
    if contract is not None and (size_bytes := extent.row_bytes(contract)) > extent.SHIPPED_BYTES:
        console.err.print(
            f"one row's outputs take {size_bytes} bytes, and max_response_size is "
            f"{extent.SHIPPED_BYTES} as shipped: raise it in config.properties, or pack with a "
            "handler of your own that sends less",
            markup=False,
            soft_wrap=True,
        )


@app.command(rich_help_panel=PANEL)
@reported
def inspect(
    archive: Annotated[Path, typer.Argument(help="a .mar file")],
) -> Report:
    """Print an archive's metadata; nothing in it is run."""
    from marship.cli import tables
    from marship.trust import archive as archives

    found = archives.read(archive)
    return Report(archive_fields(found), lambda: tables.show_archive(found))


@app.command(rich_help_panel=PANEL)
@reported
def check(
    archive: Annotated[Path, typer.Argument(help="a .mar file; its handler's code is run")],
    request: Annotated[Path | None, typer.Option(help="a file with a request's body")] = None,
    content_type: Annotated[
        str | None, typer.Option(help="of the body; else guessed from the file's name")
    ] = None,
) -> Report:
    """Load an archive without a server: golden cases, a request, times and memory."""
    from marship.cli import tables
    from marship.operate import check as checks

    with console.err.status(f"loading {escape(archive.name)}"):
        done = checks.check(archive, request, content_type=content_type)
    is_error = done.response is not None and done.response.status >= HTTPStatus.BAD_REQUEST
    return Report(asdict(done), lambda: tables.show_checked(done), is_failure=is_error)


@app.command(rich_help_panel=PANEL)
def sbom(
    archive: Annotated[
        Path | None, typer.Argument(help="a .mar file; else this environment")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="output file; printed if left out")] = None,
) -> None:
    """Write a CycloneDX bill of materials (SBOM) of an archive, or of this environment."""
    from marship import storage
    from marship.packaging.sbom import environment, model

    bill = environment.describe() if archive is None else model.describe(archive)
    if out is None:
        console.write_json(bill)
        return
    storage.write_json(out, bill)
    console.out.print(
        f"{out}  ({len(bill['components'])} components)", markup=False, soft_wrap=True
    )


@app.command(rich_help_panel=PANEL)
@reported
def configure(
    archive: Annotated[Path, typer.Argument(help="a .mar file")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=VALUE to set, NAME= to restore the handler's default"),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="a new version, to register beside the one that runs")
    ] = None,
) -> Report:
    """Print or change the handler's settings in a .mar; the model is not changed."""
    from marship.cli import tables
    from marship.packaging import configure as step

    done = step.configure(archive, options or [], version)
    fields = {
        "path": done.archive.path,
        "name": done.archive.name,
        "version": done.archive.version,
        "version_before": done.version_before,
        "is_changed": done.changed,
        "settings": dict(done.after),
        "settings_before": dict(done.before),
    }
    return Report(fields, lambda: tables.show_configured(done))
