"""The commands. What each needs is imported inside it, so that --help is instant."""

from marship import console
from marship.cli import (
    archives,
    autoscale,
    deploying,
    doctor,
    host,
    interfaces,
    keys,
    models,
    party,
    project,
    proxy,
    samples,
    server,
    trials,
    tuning,
)
from marship.cli.app import app

__all__ = [
    "app",
    "archives",
    "autoscale",
    "deploying",
    "doctor",
    "host",
    "interfaces",
    "keys",
    "main",
    "models",
    "party",
    "project",
    "proxy",
    "samples",
    "server",
    "trials",
    "tuning",
]


def main() -> None:
    """The console script."""
    console.run(app)
