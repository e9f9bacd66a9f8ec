"""What models take and give: OpenAPI documents, and clients written from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marship import console
from marship.cli import completion
from marship.cli.address import on_server
from marship.cli.app import app
from marship.cli.models import PANEL
from marship.cli.report import Report, reported

if TYPE_CHECKING:
    from marship.client.address import Address

Described = Annotated[
    str,
    typer.Argument(
        help="a model on the server, or a .mar file, whose handler's code is run",
        autocompletion=completion.models,
    ),
]


def described(model: str, address: "Address") -> dict[str, Any]:
    """The OpenAPI document of a model on the server, or of an archive."""
    from marship.operate import interfaces

    if model.endswith(".mar"):
        return interfaces.of_archive(Path(model))
    with address.client() as client:
        return interfaces.of_server(client, model)


@app.command(rich_help_panel=PANEL)
@on_server("inference")
def openapi(
    model: Described,
    out: Annotated[Path | None, typer.Option(help="output file; printed if left out")] = None,
    *,
    address: "Address",
) -> None:
    """Write the OpenAPI document of a model: its requests, responses, examples and errors."""
    from marship import storage

    document = described(model, address)
    if out is None:
        console.write_json(document)
        return
    storage.write_json(out, document)
    console.out.print(f"{out}  ({len(document['paths'])} paths)", markup=False, soft_wrap=True)


@app.command(rich_help_panel=PANEL)
@on_server("inference")
@reported
def client(
    model: Described,
    out: Annotated[Path, typer.Option(help="the package's folder, new or of a client")],
    version: Annotated[
        str | None, typer.Option(help="a version on the server; its default version if left out")
    ] = None,
    *,
    address: "Address",
) -> Report:
    """Write a typed Python client of a model: dataclasses, NumPy in and out."""
    from marship.client.typed import package

    document = described(model, address)
    files = package.write(document, out, version)
    found = package.served(document, version)
    fields = {"path": out, "name": found["name"], "version": found["version"], "files": files}
    shown = f"{out}  ({found['name']} {found['version']})"
    return Report(fields, lambda: console.out.print(shown, markup=False, soft_wrap=True))
