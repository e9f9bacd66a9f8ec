"""Containers and Kubernetes."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from marship.cli.app import app
from marship.cli.report import Report, reported
from marship.deploying.settings import ImageSettings, ManifestSettings
from marship.settings import flags

PANEL = "Containers"

Archives = Annotated[list[Path], typer.Argument(help=".mar files")]


@app.command(rich_help_panel=PANEL)
@flags(ImageSettings)
@reported
def image(settings: ImageSettings, archives: Archives) -> Report:
    """Write a Containerfile with its build context: archives, and what serves them without Java."""
    from marship.cli import tables
    from marship.deploying import image as images

    done = images.write(settings, archives)
    paths = [str(done.containerfile), str(done.containerfile.parent)]
    rows = [
        ("written", done.containerfile),
        ("models", " ".join(done.models)),
        ("packages", len(done.packages)),
        ("base", done.base),
        ("build it", shlex.join(["buildah", "build", "-t", "NAME:TAG", "-f", *paths])),
    ]
    return Report(asdict(done), lambda: tables.facts(rows))


@app.command(rich_help_panel=PANEL)
@flags(ManifestSettings)
@reported
def manifests(settings: ManifestSettings, archives: Archives) -> Report:
    """Write Kubernetes' objects for archives, or KServe's."""
    from marship.cli import tables
    from marship.deploying import manifests as objects

    done = objects.write(settings, archives)
    rows = [("written", " ".join(map(str, done.files))), ("models", " ".join(done.models))]
    rows += [
        ("needs", f"kubectl create secret generic {name} --from-file={key}=FILE")
        for name, key in done.secrets.items()
    ]
    rows.append(("apply", shlex.join(["kubectl", "apply", "-k", str(settings.out)])))
    return Report(asdict(done), lambda: tables.facts(rows))
