"""What the commands say of private models."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from marship import console
from marship.cli import tables
from marship.cli.report import Fields, Report
from marship.errors import MarshipError, UsageError
from marship.packaging.settings import PackageSettings

if TYPE_CHECKING:
    from marship.private.mpc.archives import PartyPlan
    from marship.private.step import Compiled

Private = Annotated[
    str | None,
    typer.Option(
        "--private",
        help="for inputs that the server cannot read: he, homomorphic encryption; mpc, three "
        "parties (experimental)",
        autocompletion=lambda: ["he", "mpc"],
    ),
]
Cards = Annotated[
    list[str] | None,
    typer.Option(
        "--party", help="with --private mpc: a party's card, partyN.card.json; given three times"
    ),
]
PrivateFrom = Annotated[
    str | None,
    typer.Option(
        "--private-from",
        help="the tensor of the graph from which on values are encrypted; clients run the rest",
    ),
]
_KB, _MB = 1e3, 1e6


def check(kind: str | None, start: str | None = None) -> None:
    """Check what --private names, if anything.

    Raises:
        UsageError: It is unknown, or --private-from stands alone.
    """
    if start is not None and kind != "he":
        raise UsageError(f"private-from must come with --private he, got {start} alone.")
    if kind is not None:
        from marship.private import step

        step.check_kind(kind)


def warn_of_clients(archive: Path) -> None:
    """Say so if an open archive has taken the place of a private one, whose clients go on."""
    from marship.private.client_file import SUFFIX, ClientFile

    beside = archive.with_name(archive.name.removesuffix(".mar") + SUFFIX)
    with suppress(OSError, MarshipError):
        if ClientFile.from_bytes(beside.read_bytes()).kind == "he":
            console.err.print(
                f"{archive.name} takes open inputs now, and {beside.name} is of the private model "
                "that it replaced: package again with --private he, or delete that file",
                markup=False,
                soft_wrap=True,
            )


def compiled(run_dir: Path, fields: Fields, start: str | None) -> Report:
    """Compile an exported model for encrypted inputs; adds the figures to the report's fields."""
    from marship.private import step

    with console.err.status(f"compiling {escape(run_dir.name)} for encrypted inputs"):
        done = step.compile_run(run_dir, start)
    figures = {"kind": step.HE, "plan_digest": done.plan_digest, **asdict(done.figures)}
    return Report({**fields, "private": figures}, lambda: show_compiled(done))


def planned(run_dir: Path, fields: Fields) -> Report:
    """Look whether three parties can compute an exported model; adds that to the fields."""
    from marship.private.mpc import archives

    done = archives.plan(run_dir)
    figures = {"kind": archives.MPC, **asdict(done), "run_dir": run_dir}
    return Report({**fields, "private": figures}, lambda: show_planned(done))


def show_planned(done: "PartyPlan") -> None:
    """What three parties do for a batch."""
    _warn()
    kinds = ", ".join(f"{count} {kind}" for kind, count in done.operations.items())
    tables.facts(
        [
            ("steps", kinds),
            ("weights", f"{done.weights}, 16 bytes each at a party"),
            ("memory", f"about {done.row_bytes / _MB:.2g} MB a row at a party"),
            ("rounds", f"{done.rounds} messages one after the other"),
            ("asked again", f"at most {done.failure:.1e} of rows"),
        ]
    )


def shared(source: Path, settings: PackageSettings, cards: list[str] | None) -> Report:
    """Package a model for three parties."""
    from marship.private.mpc import archives

    with console.err.status(f"packing {escape(source.name)} for three parties"):
        done = archives.package(source, settings, cards or [])
    rows = [
        *((f"party {number}", path) for number, path in enumerate(done.archives)),
        ("clients", done.client_file),
        ("error", f"{done.error:.2g} at golden outputs"),
        ("rounds", f"{done.rounds} messages one after the other"),
        ("asked again", f"at most {done.failure:.1e} of rows"),
    ]

    def show() -> None:
        _warn()
        tables.facts(rows)

    return Report({"kind": archives.MPC, **asdict(done)}, show)


def _warn() -> None:
    from marship.serving.private.mpc.files import EXPERIMENTAL

    console.err.print(EXPERIMENTAL, style="yellow", markup=False)


def show_compiled(done: "Compiled") -> None:
    """What a question costs, and how exact its answer is."""
    figures = done.figures
    bits = f"{figures.modulus_bits} bits of modulus, {figures.scale_bits} of values"
    tables.facts(
        [
            ("levels", figures.levels),
            ("ring", f"{figures.degree}, {bits}: 128 bits of security"),
            ("rotations", figures.rotations),
            ("keys", f"{figures.key_bytes / _MB:.1f} MB uploaded once, {figures.keys_s:.2f} s"),
            ("question", f"{figures.question_bytes / _KB:.0f} KB, {figures.encrypt_ms:.1f} ms"),
            ("answer", f"{figures.answer_bytes / _KB:.0f} KB, {figures.decrypt_ms:.1f} ms"),
            ("server", f"{figures.answer_ms:.1f} ms on this machine, one thread"),
            ("error", f"{figures.error:.2g} at most, of outputs up to {figures.largest:.3g}"),
            ("written to", done.run_dir),
        ]
    )
