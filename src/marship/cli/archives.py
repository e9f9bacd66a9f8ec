"""From a trained model to an archive."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from marship import console
from marship.cli.app import app
from marship.errors import UsageError
from marship.exporting.step import ExportSettings
from marship.optimizing.step import OptimizeSettings
from marship.packaging.step import PackageSettings
from marship.settings import flags

PANEL = "From a trained model to an archive"


@app.command(rich_help_panel=PANEL)
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
    from marship.cli import tables
    from marship.exporting import step

    if ":" in source and not Path(source).is_dir():
        if example is None:
            raise UsageError("--example must name an npz with the model's inputs, got none.")
        done = step.export_model(
            source, example=example, settings=settings, weights=weights, out=out
        )
    else:
        done = step.export_run(Path(source), settings)
    tables.show_export(done)


@app.command(rich_help_panel=PANEL)
@flags(OptimizeSettings)
def optimize(
    run_dir: Annotated[Path, typer.Argument(help="a run folder with an exported model")],
    settings: OptimizeSettings,
) -> None:
    """Build optimized variants, measure them, and choose one."""
    from marship.optimizing.step import optimize_run

    optimize_run(run_dir, settings)


@app.command(rich_help_panel=PANEL)
@flags(PackageSettings)
def package(
    source: Annotated[Path, typer.Argument(help="a run folder, or any ONNX file")],
    settings: PackageSettings,
) -> None:
    """Pack a model with its handler and its evidence into a .mar."""
    from marship.packaging import step
    from marship.serving.formats import extent
    from marship.trust import archive as archives

    doing = (
        "packing" if source.is_dir() else f"running for at most {settings.limit_s} s, and packing"
    )
    with console.err.status(f"{doing} {escape(source.name)}"):
        archive = step.package(source, settings)
    size_mb = archive.stat().st_size / 1e6
    console.out.print(f"{archive}  ({size_mb:.1f} MB)", markup=False, soft_wrap=True)
    contract = archives.read(archive).contract
    if contract is not None and (size_bytes := extent.row_bytes(contract)) > extent.SHIPPED_BYTES:
        console.err.print(
            f"one row's outputs take {size_bytes} bytes, and max_response_size is "
            f"{extent.SHIPPED_BYTES} as shipped: raise it in config.properties, or pack with a "
            "handler of your own that sends less",
            markup=False,
            soft_wrap=True,
        )


@app.command(rich_help_panel=PANEL)
def inspect(
    archive: Annotated[Path, typer.Argument(help="a .mar file")],
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
) -> None:
    """Print what an archive says about itself; nothing in it is run."""
    from marship.cli import tables
    from marship.trust import archive as archives

    tables.show_archive(archives.read(archive), as_json=as_json)


@app.command(rich_help_panel=PANEL)
def sbom(
    archive: Annotated[
        Path | None, typer.Argument(help="a .mar file; else this environment")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where to write it; else it is printed")] = None,
) -> None:
    """List what an archive, or this environment, is made of: a CycloneDX bill of materials."""
    from marship import storage
    from marship.packaging.sbom import environment, model

    bill = environment.describe() if archive is None else model.describe(archive)
    if out is None:
        console.out.print_json(json.dumps(bill))
        return
    storage.write_json(out, bill)
    console.out.print(
        f"{out}  ({len(bill['components'])} components)", markup=False, soft_wrap=True
    )


@app.command(rich_help_panel=PANEL)
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
    from marship.cli import tables
    from marship.packaging import configure as step

    tables.show_configured(step.configure(archive, options or [], version))
