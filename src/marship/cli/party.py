"""Parties of private models."""

import os
from pathlib import Path
from typing import Annotated

import typer

from marship import console
from marship.cli.app import app
from marship.cli.report import Report, reported

PANEL = "Private models"


@app.command("party-keys", rich_help_panel=PANEL)
@reported
def party_keys(
    number: Annotated[int, typer.Argument(help="0, the server's worker; 1 or 2, marship party")],
    address: Annotated[
        str, typer.Option(help="host:port at which party 1 or 2 is reached by the others")
    ] = "",
    out: Annotated[Path, typer.Option(help="folder for the files; git ignores a new one")] = Path(
        "keys"
    ),
) -> Report:
    """Make a party's key, which stays secret, and its card, with which models are packaged."""
    from marship.cli import tables
    from marship.private.mpc import cards

    private, public = cards.generate(number, address, out)
    rows = [("stays with the party", private), ("goes to who packages", public)]
    return Report({"private": private, "card": public}, lambda: tables.facts(rows))


@app.command(rich_help_panel=PANEL)
def party(
    archive: Annotated[Path, typer.Argument(help="NAME.party1.mar or NAME.party2.mar")],
    key: Annotated[
        Path | None, typer.Option(help="the party's key; else from MARSHIP_PARTY_KEY")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="folder of trusted public keys: verify the archive first")
    ] = None,
) -> None:
    """Run party 1 or 2 of a private model, until it is stopped. Experimental."""
    from marship.errors import UsageError
    from marship.private.mpc import duty
    from marship.serving.private.mpc.files import EXPERIMENTAL
    from marship.serving.private.mpc.identity import KEY_VARIABLE
    from marship.trust import policy

    found = key or os.environ.get(KEY_VARIABLE)
    if not found:
        raise UsageError(f"the party's key must be given with --key or {KEY_VARIABLE}, got none.")
    if trust is not None:
        policy.Trust.load(trust).verify(archive)
    station = duty.opened(archive, found)
    program = station.program
    console.err.print(EXPERIMENTAL, style="yellow", markup=False)
    duty.serve(
        station,
        lambda address: console.out.print(
            f"party {station.own.number} of {program.model} {program.version} at {address}",
            markup=False,
            soft_wrap=True,
        ),
    )
