"""Keys, and the archives that they sign."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marship import console
from marship.cli.app import app
from marship.cli.report import Report, reported

if TYPE_CHECKING:
    from marship.trust.contents import ArchiveContents

PANEL = "Keys and signatures"

Archive = Annotated[Path, typer.Argument(help="a .mar file; its signature lies beside it")]


@app.command(rich_help_panel=PANEL)
@reported
def keygen(
    name: Annotated[str, typer.Argument(help="of the files NAME.key and NAME.pem")],
    out: Annotated[Path, typer.Option(help="folder for the files; git ignores a new one")] = Path(
        "keys"
    ),
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help="encrypt NAME.key; from MARSHIP_KEY_PASSPHRASE, else prompted"
        ),
    ] = False,
    openssf: Annotated[
        bool, typer.Option("--openssf", help="P-256, for signatures of OpenSSF Model Signing")
    ] = False,
) -> Report:
    """Generate a key pair: NAME.key signs and stays secret, NAME.pem verifies, on servers."""
    from marship.cli import tables
    from marship.trust import keys

    phrase = _passphrase(confirm=True) if passphrase else None
    pair = keys.generate(name, out, openssf=openssf, passphrase=phrase)
    fields = {"private": pair.private, "public": pair.public, "key": pair.id}
    rows = [("signs", pair.private), ("verifies", pair.public), ("key", pair.id[: keys.SHORT_ID])]
    return Report(fields, lambda: tables.facts(rows))


@app.command(rich_help_panel=PANEL)
@reported
def sign(
    archive: Archive,
    key: Annotated[Path, typer.Option(help="the private key, NAME.key")],
) -> Report:
    """Sign a .mar: write the detached signature ARCHIVE.sig beside it."""
    from marship.cli import tables
    from marship.trust import keys, signature

    done = signature.sign(archive, keys.read_private(key, _passphrase))
    rows = [
        ("signed", f"{done.contents.model} {done.contents.version}"),
        ("files", len(done.contents.files)),
        ("native code", ", ".join(done.contents.native_code)),
        ("key", done.key_id[: keys.SHORT_ID]),
        ("signature", done.path),
    ]
    fields = {**_signed(done.contents), "key": done.key_id, "signature": done.path}
    return Report(fields, lambda: tables.facts(rows))


@app.command(rich_help_panel=PANEL)
@reported
def verify(
    archive: Archive,
    trust: Annotated[Path, typer.Option(help="folder of trusted public keys")],
) -> Report:
    """Verify a .mar's signature by a trusted key; nothing in it is run."""
    from marship.cli import tables
    from marship.trust import keys, policy

    done = policy.Trust.load(trust).verify(archive)
    rows = [
        ("verified", f"{done.contents.model} {done.contents.version}"),
        ("files", len(done.contents.files)),
        ("native code", ", ".join(done.contents.native_code)),
        ("key", f"{done.key.id[: keys.SHORT_ID]} ({done.key.path.name})"),
    ]

    def show() -> None:
        tables.facts(rows)
        console.out.print("OK")

    fields = {**_signed(done.contents), "key": done.key.id, "key_file": done.key.path}
    return Report(fields, show)


@app.command(rich_help_panel=PANEL)
@reported
def fetch(
    url: Annotated[str, typer.Argument(help="http(s)://.../NAME.mar; the signature is at URL.sig")],
    trust: Annotated[Path, typer.Option(help="folder of trusted public keys")],
    model_store: Annotated[Path, typer.Option(help="folder that takes both")] = Path("model_store"),
) -> Report:
    """Download a .mar, and keep it only if its signature by a trusted key is valid."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    from marship.cli import tables
    from marship.trust import download, keys, policy

    pinned = policy.Trust.load(trust)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console.err, transient=True) as bar:
        task = bar.add_task("", total=None)
        done = download.fetch(
            url,
            pinned,
            model_store,
            lambda there, size: bar.update(task, completed=there, total=size),
        )
    contents, key = done.verified.contents, done.verified.key
    rows = [
        ("archive", done.path),
        ("verified", f"{contents.model} {contents.version}"),
        ("native code", ", ".join(contents.native_code)),
        ("key", f"{key.id[: keys.SHORT_ID]} ({key.path.name})"),
    ]
    fields = {"path": done.path, **_signed(contents), "key": key.id, "key_file": key.path}
    return Report(fields, lambda: tables.facts(rows))


@app.command(rich_help_panel=PANEL)
@reported
def rewrap(
    archive: Annotated[Path, typer.Argument(help="a sealed .mar file")],
    old: Annotated[
        str, typer.Option("--from", help="the old key: file:PATH, env:NAME, command:...")
    ],
    new: Annotated[str, typer.Option("--to", help="the new key, in the same formats")],
    out: Annotated[
        Path | None, typer.Option(help="output file; replaces the archive if left out")
    ] = None,
) -> Report:
    """Rewrap the keys of a sealed .mar for another operator key, without encrypting it again."""
    from marship.cli import tables
    from marship.packaging import sealing

    done = sealing.rewrap(archive, old, new, out)
    rows = [
        ("archive", done.archive.path),
        ("opened before by", f"the key {done.key_before}"),
        ("opened now by", f"the key {done.key_after}"),
    ]
    fields = {
        "path": done.archive.path,
        "key_before": done.key_before,
        "key_after": done.key_after,
    }
    return Report(fields, lambda: tables.facts(rows))


def _signed(contents: "ArchiveContents") -> dict[str, object]:
    return {
        "name": contents.model,
        "version": contents.version,
        "files": sorted(contents.files),
        "native_code": contents.native_code,
    }


def _passphrase(*, confirm: bool = False) -> str:
    from marship.trust import keys

    if keys.PASSPHRASE_VARIABLE in os.environ or not sys.stdin.isatty():
        return keys.passphrase_from_environment()
    return str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True))
